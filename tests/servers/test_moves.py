"""Moves of the champion on a running server: who may make them, and what the ledger says afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lineage.entries import Entry, Intended, Judged, LedgerError
from lineage.ledger import Ledger, read_entry
from lineage.remote import move, reconcile
from lineage.signing import open_signer
from tests.servers.conftest import Portraits, portraits_on
from tests.servers.governed import (
    ADMIN,
    BASE,
    EDITOR,
    OFFICER,
    READER,
    Server,
    clean_environment,
    command,
    digest_of,
    free_port,
    reason_in,
    settings,
    signed_in,
)


def last_move(server: Server, model: str) -> Intended:
    return [move for move in server.ledger().state.moves.values() if move.model == model][-1]


def test_setting_the_alias_promotes_and_the_ledger_says_who(basic_server: Server) -> None:
    portraits = portraits_on(basic_server, "edited")
    assert basic_server.set_alias("edited", portraits.next.number, user=EDITOR).ok
    made = last_move(basic_server, "edited")
    assert (made.action, made.user) == ("promote", EDITOR)
    assert (made.previous_version, made.version) == (portraits.champion.number, portraits.next.number)
    assert made.verdict == portraits.next.tags["verdict"]
    kinds = [entry.kind for entry in basic_server.ledger().all[-2:]]
    assert kinds == ["intended", "completed"]
    assert basic_server.champion("edited") == portraits.next.number


def test_who_may_only_read_cannot_promote_or_roll_back(basic_server: Server) -> None:
    portraits = portraits_on(basic_server, "read-only")
    assert basic_server.set_alias("read-only", portraits.next.number, user=READER).status_code == 403
    assert basic_server.set_alias("read-only", portraits.next.number, user=EDITOR).ok
    refusal = basic_server.move("rollback", "read-only", portraits.champion.number, "looks better", user=READER)
    assert "may not edit" in reason_in(refusal)
    assert basic_server.champion("read-only") == portraits.next.number


def test_going_back_needs_a_reason(basic_server: Server) -> None:
    portraits = portraits_on(basic_server, "back")
    assert basic_server.set_alias("back", portraits.next.number).ok
    assert "triptych rollback" in reason_in(basic_server.set_alias("back", portraits.champion.number))
    assert basic_server.move("rollback", "back", portraits.champion.number, "  ").status_code == 400
    with signed_in(basic_server, EDITOR):
        move(basic_server.url, "rollback", "back", portraits.champion.number, "faces came out blurred\u2028in a third")
    made = last_move(basic_server, "back")
    assert (made.action, made.user, made.reason) == ("rollback", EDITOR, "faces came out blurred\u2028in a third")
    assert basic_server.champion("back") == portraits.champion.number
    with signed_in(basic_server):
        over_http = Ledger(basic_server.url, basic_server.root)
    assert over_http.state.head == basic_server.ledger().state.head


def test_officers_withdraw_and_override(basic_server: Server) -> None:
    portraits = portraits_on(basic_server, "officers")
    for action in ("withdraw", "override"):
        for user in (ADMIN, EDITOR):
            refusal = basic_server.move(action, "officers", portraits.rejected.number, "I want it", user=user)
            assert "is for officers" in reason_in(refusal)
    with signed_in(basic_server, EDITOR), pytest.raises(LedgerError, match="override is for officers"):
        move(basic_server.url, "override", "officers", portraits.rejected.number, "I want it")
    assert basic_server.champion("officers") == portraits.champion.number
    with signed_in(basic_server, OFFICER):
        move(basic_server.url, "override", "officers", portraits.rejected.number, "the release cannot wait")
        assert basic_server.champion("officers") == portraits.rejected.number
        move(basic_server.url, "withdraw", "officers", portraits.rejected.number, "a person took back consent")
    made = last_move(basic_server, "officers")
    assert (made.action, made.user, made.reason) == ("withdraw", OFFICER, "a person took back consent")
    assert basic_server.champion("officers") == ""
    assert "withdrawn" in reason_in(basic_server.set_alias("officers", portraits.rejected.number))


def test_without_authentication_nobody_is_an_officer(open_server: Server) -> None:
    portraits = portraits_on(open_server, "unknown")
    for action in ("withdraw", "override"):
        refusal = open_server.move(action, "unknown", portraits.rejected.number, "I am the boss")
        assert f"{action} is off" in reason_in(refusal)
    assert open_server.set_alias("unknown", portraits.next.number).ok
    assert last_move(open_server, "unknown").user == "unauthenticated"
    assert open_server.move("rollback", "unknown", portraits.champion.number, "blurred").ok
    assert open_server.champion("unknown") == portraits.champion.number


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/entries"), ("POST", "/entries"), ("POST", "/moves"), ("POST", "/reconcile"), ("GET", "/state")],
)
def test_nobody_without_a_password(basic_server: Server, method: str, path: str) -> None:
    import requests

    assert requests.request(method, f"{basic_server.url}/api/2.0/triptych{path}", timeout=60).status_code == 401


def test_setting_the_same_champion_again_changes_nothing(portraits: Portraits) -> None:
    before = portraits.server.ledger().state.size
    assert portraits.server.set_alias(portraits.model, portraits.champion.number).ok
    assert portraits.server.ledger().state.size == before


def test_weights_that_changed_on_the_disk_are_not_promoted(open_server: Server) -> None:
    portraits = portraits_on(open_server, "changed")
    (file,) = (open_server.folder / "artifacts").glob(
        f"*/{portraits.next.run}/artifacts/model/artifacts/weights/unet.bin"
    )
    file.write_text("other weights")
    assert "changed after they were recorded" in reason_in(open_server.set_alias("changed", portraits.next.number))
    assert open_server.champion("changed") == portraits.champion.number


def test_what_was_done_behind_its_back_is_put_right(open_server: Server) -> None:
    import sqlite3

    portraits = portraits_on(open_server, "behind")
    with sqlite3.connect(open_server.backend.removeprefix("sqlite:///")) as database:
        database.execute(
            "UPDATE registered_model_aliases SET version = ? WHERE name = 'behind'", (portraits.rejected.number,)
        )
    assert open_server.champion("behind") == portraits.rejected.number
    said = [line for line in reconcile(open_server.url) if line.startswith("behind:")]
    assert said == [
        f"behind: alias champion was on version {portraits.rejected.number}, is on version {portraits.champion.number}"
    ]
    assert open_server.champion("behind") == portraits.champion.number


def entry_of(server: Server, role: str, body: Judged | Intended) -> Entry:
    """An entry that follows the head, signed but not sent."""
    from lineage.embedded import Embedded
    from lineage.ledger import _signed

    return _signed(server.ledger().state, body, open_signer(Embedded(server.folder).uri(role)))


def test_entries_of_pipelines_and_nobody_elses(open_server: Server) -> None:
    url = "/api/2.0/triptych/entries"
    judged = Judged(run="r", candidate=BASE, incumbent=BASE, decision="promote", verdict="sha256:1")
    portraits = portraits_on(open_server, "entries")
    moved = Intended(
        move="m",
        action="promote",
        model="entries",
        version=portraits.next.number,
        candidate=digest_of(portraits.next),
        previous_version=portraits.champion.number,
        previous=digest_of(portraits.champion),
        verdict=portraits.next.tags["verdict"],
        user="somebody",
        reason="",
    )
    stolen = entry_of(open_server, "promotion", moved)
    assert "moves go through this server" in reason_in(open_server.ask("POST", url, data=stolen.model_dump_json()))
    wrong = entry_of(open_server, "run", judged)
    assert "only a gate key" in reason_in(open_server.ask("POST", url, data=wrong.model_dump_json()))
    good = entry_of(open_server, "gate", judged)
    edited = good.model_copy(update={"body": good.body | {"decision": "reject"}})
    assert "was changed" in reason_in(open_server.ask("POST", url, data=edited.model_dump_json()))
    assert "is not a ledger entry" in reason_in(open_server.ask("POST", url, data="{}"))
    assert open_server.ask("POST", url, data=good.model_dump_json()).status_code == 200
    assert open_server.ask("POST", url, data=good.model_dump_json()).status_code == 409
    answer = open_server.ask("GET", f"{url}?after={good.index}")
    assert [read_entry(line).index for line in answer.text.split("\n") if line] == [good.index]


OTHER = {
    "TRIPTYCH_LEDGER": ("", "TRIPTYCH_LEDGER: is not set"),
    "TRIPTYCH_ROOT": ("0" * 64, "was opened by another root key"),
    "TRIPTYCH_PROMOTION_KEY": ("file2:/nowhere/key.pem", "there is no usable key at file2:/nowhere/key.pem"),
    "TRIPTYCH_AUTHENTICATION": ("header", "TRIPTYCH_USER_HEADER goes with"),
    "TRIPTYCH_OFFICERS": ("olga", "needs authentication"),
    "TRIPTYCH_ALLOWED_HOSTS": ("*", "must name the hosts"),
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": ("true", "jobs run users' code"),
}
"""Variable -> a wrong value, and what the server says to it."""


@pytest.mark.parametrize("variable", OTHER)
def test_a_wrong_setting_is_named(tmp_path: Path, variable: str) -> None:
    value, reason = OTHER[variable]
    environment = clean_environment() | settings(tmp_path) | {variable: value}
    line = [sys.executable, "-c", "import infra.governed.app"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("the governed server does not start: ") and reason in done.stderr


@pytest.mark.parametrize(
    ("option", "reason"),
    [("--no-serve-artifacts", "only what the server writes"), ("--gunicorn-opts=--preload", "works under uvicorn")],
)
def test_the_command_refuses_options_that_open_a_way_round(tmp_path: Path, option: str, reason: str) -> None:
    line = command(tmp_path, free_port(), 2, f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path), option)
    environment = clean_environment() | settings(tmp_path)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=180, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "the governed server does not start: " in done.stderr and reason in done.stderr
