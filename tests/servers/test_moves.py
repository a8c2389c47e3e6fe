"""Moves of the champion on a running server: who may make them, and what the ledger says afterwards."""

from __future__ import annotations

import http.client
import time
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import requests

from lineage.embedded import Embedded
from lineage.entries import Entry, Judged, LedgerError, Moved, read_entry
from lineage.ledger import Ledger, _signed
from lineage.moves import ServerMover
from lineage.policy import policy_digest
from lineage.signing import open_signer
from tests.servers.conftest import Portraits, portraits_on
from tests.servers.governed import (
    ADMIN,
    BASE,
    EDITOR,
    EVALUATION,
    GATE,
    OFFICER,
    PASSWORD,
    READER,
    Pipeline,
    Server,
    digest_of,
    judgement,
    reason_in,
    signed_in,
)


def last_move(server: Server, model: str) -> Moved:
    return server.moves(model)[-1]


def test_setting_the_alias_promotes_and_the_ledger_says_who(basic_server: Server) -> None:
    portraits = portraits_on(basic_server, "edited")
    before = basic_server.ledger().state.size
    assert basic_server.set_alias("edited", portraits.next.number, user=EDITOR).ok
    made = last_move(basic_server, "edited")
    assert (made.action, made.user) == ("promote", EDITOR)
    assert (made.previous_version, made.version) == (portraits.champion.number, portraits.next.number)
    assert made.verdict == portraits.next.tags["verdict"]
    assert [entry.body for entry in basic_server.ledger().entries(before)] == [made]
    assert basic_server.champion("edited") == portraits.next.number


@pytest.mark.parametrize("way", ["alias", "move"])
def test_a_client_that_gave_up_waiting_finds_its_move_made_once(
    basic_server: Server, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the server reads large weights for longer than a client waits, which then asks again."""
    portraits = portraits_on(basic_server, f"impatient-{way}")
    wanted, before = portraits.next.number, len(basic_server.moves(portraits.model))
    with signed_in(basic_server, EDITOR):
        if way == "alias":
            with suppress(requests.Timeout):
                body = {"name": portraits.model, "version": wanted, "alias": "champion"}
                path = f"{basic_server.url}/api/2.0/mlflow/registered-models/alias"
                requests.post(path, json=body, auth=(EDITOR, PASSWORD), timeout=(30, 0.01))
                pytest.fail("the server was faster than any client gives up")
        else:
            monkeypatch.setattr("lineage.moves.MOVE_PATIENCE", 0.01)
            with pytest.raises(LedgerError, match="does not answer"):
                ServerMover(basic_server.url, portraits.model).move("promote", wanted)
            monkeypatch.undo()
        until = time.monotonic() + 60
        while basic_server.champion(portraits.model) != wanted:
            assert time.monotonic() < until, "the move was not made"
            time.sleep(0.1)
    assert basic_server.set_alias(portraits.model, wanted, user=EDITOR).ok
    assert len(basic_server.moves(portraits.model)) == before + 1


def test_a_pipeline_asks_for_a_promotion_and_need_not_set_the_alias(basic_server: Server) -> None:
    portraits = portraits_on(basic_server, "asked")
    assert "may not edit" in reason_in(basic_server.move("promote", "asked", portraits.next.number, user=READER))
    with signed_in(basic_server, EDITOR):
        said = ServerMover(basic_server.url, "asked").move("promote", portraits.next.number)
    assert said[0] == f"promote of version {portraits.next.number} of asked: done"
    made = last_move(basic_server, "asked")
    assert (made.action, made.user, made.version) == ("promote", EDITOR, portraits.next.number)
    assert basic_server.champion("asked") == portraits.next.number


def test_who_may_only_read_cannot_promote_or_roll_back_or_reconcile(basic_server: Server) -> None:
    portraits = portraits_on(basic_server, "read-only")
    assert basic_server.set_alias("read-only", portraits.next.number, user=READER).status_code == 403
    assert basic_server.set_alias("read-only", portraits.next.number, user=EDITOR).ok
    refusal = basic_server.move("rollback", "read-only", portraits.champion.number, "looks better", user=READER)
    assert "may not edit" in reason_in(refusal)
    assert "may not edit" in reason_in(basic_server.reconcile("read-only", user=READER))
    assert basic_server.reconcile("read-only", user=EDITOR).json() == {"said": [], "settled": True}
    assert basic_server.champion("read-only") == portraits.next.number


def test_going_back_needs_a_reason(basic_server: Server) -> None:
    portraits = portraits_on(basic_server, "back")
    assert basic_server.set_alias("back", portraits.next.number).ok
    assert "triptych rollback" in reason_in(basic_server.set_alias("back", portraits.champion.number))
    assert "triptych rollback" in reason_in(basic_server.move("promote", "back", portraits.champion.number))
    assert basic_server.move("rollback", "back", portraits.champion.number, "  ").status_code == 400
    with signed_in(basic_server, EDITOR):
        mover = ServerMover(basic_server.url, "back")
        mover.move("rollback", portraits.champion.number, "faces came out blurred\u2028in a third")
    made = last_move(basic_server, "back")
    assert (made.action, made.user, made.reason) == ("rollback", EDITOR, "faces came out blurred\u2028in a third")
    assert basic_server.champion("back") == portraits.champion.number
    with signed_in(basic_server):
        over_http = Ledger.open(basic_server.url, basic_server.root)
        assert over_http.state.head == basic_server.ledger().state.head


def test_officers_withdraw_and_override(basic_server: Server) -> None:
    portraits = portraits_on(basic_server, "officers")
    for action in ("withdraw", "override"):
        for user in (ADMIN, EDITOR):
            refusal = basic_server.move(action, "officers", portraits.rejected.number, "I want it", user=user)
            assert "is for officers" in reason_in(refusal)
    mover = ServerMover(basic_server.url, "officers")
    with signed_in(basic_server, EDITOR), pytest.raises(LedgerError, match="override is for officers"):
        mover.move("override", portraits.rejected.number, "I want it")
    assert basic_server.champion("officers") == portraits.champion.number
    with signed_in(basic_server, OFFICER):
        mover.move("override", portraits.rejected.number, "the release cannot wait")
        assert basic_server.champion("officers") == portraits.rejected.number
        mover.move("withdraw", portraits.rejected.number, "a person took back consent")
    made = last_move(basic_server, "officers")
    assert (made.action, made.user, made.reason) == ("withdraw", OFFICER, "a person took back consent")
    assert basic_server.champion("officers") == ""
    assert "withdrawn" in reason_in(basic_server.set_alias("officers", portraits.rejected.number))


def test_only_an_officer_changes_the_policy_and_no_verdict_under_the_old_one_promotes(basic_server: Server) -> None:
    portraits = portraits_on(basic_server, "policies")
    asked = {"model": "policies", "gate": GATE | {"margin": 0.5}, "evaluation": EVALUATION, "reason": "we ask for more"}
    for user in (ADMIN, EDITOR):
        answer = basic_server.ask("POST", "/api/2.0/triptych/policy", json=asked, user=user)
        assert "setting a policy is for officers" in reason_in(answer)
    unreasoned = basic_server.ask("POST", "/api/2.0/triptych/policy", json=asked | {"reason": " "}, user=OFFICER)
    assert unreasoned.status_code == 400
    answer = basic_server.ask("POST", "/api/2.0/triptych/policy", json=asked, user=OFFICER)
    assert answer.json() == {"digest": policy_digest(asked["evaluation"], asked["gate"])}
    shown = basic_server.ask("GET", "/api/2.0/triptych/state").json()["policies"]["policies"]
    assert (shown["digest"], shown["user"], shown["reason"]) == (answer.json()["digest"], OFFICER, "we ask for more")
    assert "the ledger pins" in reason_in(basic_server.set_alias("policies", portraits.next.number))


def test_without_authentication_nobody_is_an_officer(open_server: Server) -> None:
    portraits = portraits_on(open_server, "unknown")
    for action in ("withdraw", "override"):
        refusal = open_server.move(action, "unknown", portraits.rejected.number, "I am the boss")
        assert f"{action} is off" in reason_in(refusal)
    asked = {"model": "unknown", "gate": {}, "evaluation": {}, "reason": "I am the boss"}
    answer = open_server.ask("POST", "/api/2.0/triptych/policy", json=asked)
    assert "setting a policy is off" in reason_in(answer)
    assert open_server.set_alias("unknown", portraits.next.number).ok
    assert last_move(open_server, "unknown").user == "unauthenticated"
    assert open_server.move("rollback", "unknown", portraits.champion.number, "blurred").ok
    assert open_server.champion("unknown") == portraits.champion.number


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/entries"),
        ("POST", "/entries"),
        ("POST", "/moves"),
        ("POST", "/policy"),
        ("POST", "/reconcile"),
        ("GET", "/state"),
    ],
)
def test_nobody_without_a_password(basic_server: Server, method: str, path: str) -> None:
    import requests

    assert requests.request(method, f"{basic_server.url}/api/2.0/triptych{path}", timeout=60).status_code == 401


def test_setting_the_same_champion_again_changes_nothing(portraits: Portraits) -> None:
    before = portraits.server.ledger().state.size
    assert portraits.server.set_alias(portraits.model, portraits.champion.number).ok
    assert portraits.server.ledger().state.size == before


@pytest.mark.parametrize(
    ("file", "reason"),
    [("artifacts/weights/unet.bin", "the weights of"), ("MLmodel", "what lies around the weights")],
)
def test_a_model_that_changed_on_the_disk_is_not_promoted(open_server: Server, file: str, reason: str) -> None:
    model = f"changed-{file[:6].lower()}"
    portraits = portraits_on(open_server, model)
    (path,) = (open_server.folder / "artifacts").glob(f"*/{portraits.next.mlflow_run}/artifacts/*/model/{file}")
    path.write_text("something else")
    assert reason in reason_in(open_server.set_alias(model, portraits.next.number))
    assert open_server.champion(model) == portraits.champion.number


@pytest.mark.parametrize("file", ["model/MLmodel", "model/artifacts/weights/unet.bin", "evidence/new.txt"])
def test_an_upload_that_began_before_there_was_a_version_does_not_end_in_it(open_server: Server, file: str) -> None:
    model = f"slow-{file[-5:].replace('.', '-')}"
    portraits = portraits_on(open_server, model)
    upload = http.client.HTTPConnection(urlsplit(open_server.url).netloc, timeout=60)

    def begin(source: str) -> None:
        folder = source.removeprefix("mlflow-artifacts:/").removesuffix("/model")
        upload.putrequest("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{folder}/{file}")
        upload.putheader("Content-Length", "14")
        upload.endheaders(b"other w")

    made = Pipeline(open_server).candidate(model, "late", digest_of(portraits.champion), uploaded=begin)
    upload.send(b"eights!")
    answer = upload.getresponse()
    assert answer.status == 403 and b"its files never change" in answer.read()
    assert open_server.set_alias(model, made.number).ok
    assert ServerMover(open_server.url, model).reconcile().said == []


def test_what_was_done_behind_its_back_is_put_right(open_server: Server) -> None:
    portraits = portraits_on(open_server, "behind")
    mover = ServerMover(open_server.url, "behind")
    assert mover.reconcile().said == []
    with open_server.database() as database:
        database.execute(
            "UPDATE registered_model_aliases SET version = ? WHERE name = 'behind'", (portraits.rejected.number,)
        )
    assert open_server.champion("behind") == portraits.rejected.number
    assert mover.reconcile().said == [
        f"alias champion was on version {portraits.rejected.number}, is on version {portraits.champion.number}"
    ]
    assert open_server.champion("behind") == portraits.champion.number
    assert "knows no version of a model" in reason_in(open_server.reconcile("nobody' OR name = 'behind"))


def test_ten_thousand_newer_versions_hide_none(open_server: Server) -> None:
    portraits = portraits_on(open_server, "crowded")
    with open_server.database() as database:
        columns = "name, version, creation_time, last_updated_time, current_stage, source, status, workspace, run_id"
        values = "name, version + ?, creation_time, last_updated_time, current_stage, source, status, workspace, run_id"
        database.executemany(
            f"INSERT INTO model_versions ({columns}) SELECT {values} FROM model_versions "
            f"WHERE name = 'crowded' AND version = {portraits.next.number}",
            [(number,) for number in range(1, 10_001)],
        )
    assert open_server.set_alias("crowded", portraits.next.number).ok
    assert open_server.champion("crowded") == portraits.next.number


def entry_of(server: Server, role: str, body: Judged | Moved) -> Entry:
    """An entry that follows the head, signed but not sent."""
    return _signed(server.ledger().state, body, open_signer(Embedded(server.folder).uri(role)))


def test_entries_of_pipelines_and_nobody_elses(open_server: Server) -> None:
    url = "/api/2.0/triptych/entries"
    judged = judgement("entries", "r", BASE, BASE, "promote", "sha256:1")
    portraits = portraits_on(open_server, "entries")
    moved = Moved(
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
    assert "gate key" in reason_in(open_server.ask("POST", url, data=wrong.model_dump_json()))
    good = entry_of(open_server, "gate", judged)
    edited = good.model_copy(update={"body": good.body.model_copy(update={"decision": "reject"})})
    assert "was changed" in reason_in(open_server.ask("POST", url, data=edited.model_dump_json()))
    assert "is not a ledger entry" in reason_in(open_server.ask("POST", url, data="{}"))
    assert open_server.ask("POST", url, data=good.model_dump_json()).status_code == 200
    assert open_server.ask("POST", url, data=good.model_dump_json()).status_code == 409
    answer = open_server.ask("GET", f"{url}?after={good.index}")
    assert [read_entry(line).index for line in answer.text.split("\n") if line] == [good.index]


@pytest.mark.parametrize("after", ["99999999999999999999999", "-1", "one", "1.5"])
def test_an_index_that_no_entry_can_have_is_malformed(open_server: Server, after: str) -> None:
    answer = open_server.ask("GET", f"/api/2.0/triptych/entries?after={after}")
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("after: ")
