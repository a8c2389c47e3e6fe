"""What a server checks before it starts, and what it says when it does not."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError

from lineage.embedded import Embedded
from lineage.ledger import Ledger
from lineage.signing import open_signer
from lineage.stores import PATIENCE as LEDGER_PATIENCE
from lineage.witness import FileWitness, S3Witness, WitnessWriter, hear
from tests.servers.governed import (
    BASE,
    Pipeline,
    Server,
    clean_environment,
    governed,
    judgement,
    refusal_to_start,
    settings,
)

WRONG = [
    ("TRIPTYCH_LEDGER", "", "TRIPTYCH_LEDGER: is not set"),
    ("TRIPTYCH_LEDGER", "mysql+pymysql://u:secret@db/m", "is in mysql; use SQLite or PostgreSQL"),
    ("TRIPTYCH_LEDGER", "postgresql+psycopg://u:secret@127.0.0.1:1/m", "cannot be used"),
    ("TRIPTYCH_LEDGER", "postgresql+psycopg://u:secret@h:port/m", "is no database"),
    ("TRIPTYCH_ROOT", "0" * 64, "was opened by another root key"),
    ("TRIPTYCH_PROMOTION_KEY", "file2:/nowhere/key.pem", "there is no usable key at file2:/nowhere/key.pem"),
    ("TRIPTYCH_MARK", "/tmp/mark", "TRIPTYCH_MARK must name a .json file"),
    ("TRIPTYCH_AUTHENTICATION", "header", "TRIPTYCH_USER_HEADER goes with"),
    ("TRIPTYCH_USER_HEADER", "X_User", "TRIPTYCH_USER_HEADER: "),
    ("TRIPTYCH_OFFICERS", "olga", "needs authentication"),
    ("TRIPTYCH_ALLOWED_HOSTS", "*", "must name the hosts"),
    ("TRIPTYCH_CHANNEL_LIFE", "0", "TRIPTYCH_CHANNEL_LIFE: "),
    ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "true", "jobs run users' code"),
]
"""Variable, a wrong value, and what the server says to it."""
LOOKED_UP = "import importlib; importlib.import_module('infra.governed.app').create_app"
"""What MLflow's command does with an app."""


@pytest.mark.parametrize(("variable", "value", "reason"), WRONG)
def test_a_wrong_setting_is_named_and_no_password(tmp_path: Path, variable: str, value: str, reason: str) -> None:
    environment = clean_environment() | settings(tmp_path) | {variable: value}
    line = [sys.executable, "-c", LOOKED_UP]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 1
    assert "the governed server does not start: " in done.stderr and reason in done.stderr
    # The rest of what it wrote is the traceback, which the command does not show.
    assert "secret" not in done.stderr.rpartition("the governed server does not start: ")[2]


def test_importing_the_app_runs_nothing(tmp_path: Path) -> None:
    line = [sys.executable, "-c", "import infra.governed.app"]
    done = subprocess.run(line, env=clean_environment(), capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0 and "does not start" not in done.stderr


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--no-serve-artifacts", "only what the server writes"),
        ("--gunicorn-opts=--preload", "works under uvicorn"),
        ("--static-prefix=/static", "MLflow's log-in lets pass"),
    ],
)
def test_the_command_refuses_options_that_open_a_way_round(tmp_path: Path, option: str, reason: str) -> None:
    assert reason in refusal_to_start(tmp_path, settings(tmp_path), option)


BACKEND = """
import click
with click.Context(click.Command("server")) as context:
    context.params["backend_store_uri"] = {url!r}
    {looked_up}
"""


@pytest.mark.parametrize(
    "url", ["mysql+pymysql://u:secret@db/m", "mssql+pyodbc://u:secret@db/m", "oracle://u:secret@db"]
)
def test_databases_that_take_one_name_for_another_are_refused(tmp_path: Path, url: str) -> None:
    # MLflow connects to its database before it asks for the app, so here the app is asked as the command asks it.
    line = [sys.executable, "-c", BACKEND.format(url=url, looked_up=LOOKED_UP)]
    environment = clean_environment() | settings(tmp_path)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 1
    said = done.stderr.rpartition("the governed server does not start: ")[2]
    assert "the guard needs SQLite or PostgreSQL there" in said and "secret" not in said


def verdict(server: Server, run: str) -> None:
    """A pipeline's verdict arrives."""
    ledger = Ledger.open(server.url, server.root)
    ledger.append(judgement("portraits", run, BASE, BASE, "reject", f"sha256:{run}"), Pipeline(server).gate_signer)


def cut(folder: Path, entries: int) -> None:
    """Take entries off the end of the ledger and forget the mark, as its host could."""
    import sqlite3

    with sqlite3.connect(folder / "ledger.db") as database:
        database.execute("DROP TRIGGER triptych_no_DELETE")
        size = database.execute("SELECT count(*) FROM triptych_ledger").fetchone()[0]
        database.execute("DELETE FROM triptych_ledger WHERE position >= ?", (size - entries,))
    (folder / "mark.json").unlink()


def test_entries_cut_off_while_the_server_was_down_are_missed(tmp_path: Path) -> None:
    environment = settings(tmp_path)
    with governed(tmp_path, environment) as server:
        verdict(server, "a")
        verdict(server, "b")
        # No move was made, and yet both verdicts are witnessed, and the mark knows them.
        told = hear(FileWitness(tmp_path / "witness"), server.ledger().state)
        assert told.latest is not None and told.latest.size == server.ledger().state.size
        assert f'"size":{told.latest.size},' in (tmp_path / "mark.json").read_text()
    cut(tmp_path, 1)
    assert "were taken off its end" in refusal_to_start(tmp_path, environment)


def test_a_mark_that_knows_more_stops_the_start(tmp_path: Path) -> None:
    environment = settings(tmp_path)
    with governed(tmp_path, environment) as server:
        verdict(server, "a")
    mark = (tmp_path / "mark.json").read_bytes()
    cut(tmp_path, 1)
    (tmp_path / "mark.json").write_bytes(mark)
    shutil.rmtree(tmp_path / "witness")
    assert "the mark" in refusal_to_start(tmp_path, environment)


def test_a_witness_that_fails_fails_no_entry_and_is_told_by_the_next(tmp_path: Path) -> None:
    with governed(tmp_path, settings(tmp_path), workers=1) as server:
        verdict(server, "a")
        size, kept = server.ledger().state.size, tmp_path / "witness"
        assert server.ask("GET", "/api/2.0/triptych/state").json()["witness"] == {"size": size, "error": ""}
        kept.rename(tmp_path / "away")
        kept.write_text("not a folder")
        verdict(server, "b")
        shown = server.ask("GET", "/api/2.0/triptych/state").json()["witness"]
        assert shown["size"] == size and "witness" in shown["error"]
        assert "the witness was not told" in server.log()
        kept.unlink()
        verdict(server, "c")
        shown = server.ask("GET", "/api/2.0/triptych/state").json()["witness"]
        assert shown == {"size": size + 2, "error": ""}


def test_one_checkpoint_is_read_at_the_start_however_many_there_are(tmp_path: Path) -> None:
    read: list[str] = []

    class Counting(FileWitness):
        def read(self, prefix: str = "") -> Iterator[tuple[str, bytes]]:
            for name, content in super().read(prefix):
                read.append(name)
                yield name, content

    state = Ledger.open(settings(tmp_path)["TRIPTYCH_LEDGER"]).state
    writer = WitnessWriter(FileWitness(tmp_path / "many"), open_signer(Embedded(tmp_path).uri("witness")))
    for size in range(1, 21):
        writer.write(state.model_copy(update={"size": size}))
    told = hear(Counting(tmp_path / "many"), state, whole=False)
    assert told.latest is not None and told.latest.size == 20
    assert read == [f"{state.ledger}-0000000020.json"]


def test_a_witness_that_never_answers_keeps_no_writer_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        closed = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in closed.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(BotoCoreError):
            S3Witness("s3://witness/checkpoints").write("checkpoint.json", b"{}")
        assert time.monotonic() - began < LEDGER_PATIENCE / 1.5


def test_a_witness_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    environment = settings(tmp_path) | {"TRIPTYCH_WITNESS": "s3://nowhere/checkpoints"}
    closed = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    said = refusal_to_start(tmp_path, environment | closed | {"AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "x"})
    assert "the witness s3://nowhere/checkpoints cannot be read" in said


def test_rubbish_beside_the_checkpoints_is_told_and_stops_nothing(tmp_path: Path) -> None:
    environment = settings(tmp_path)
    name = Ledger.open(environment["TRIPTYCH_LEDGER"]).state.ledger
    (tmp_path / "witness").mkdir()
    (tmp_path / "witness" / f"{name}-0000000007.json").touch()
    (tmp_path / "witness" / f"{name}-0000000009.json").write_text("[" * 100_000)
    with governed(tmp_path, environment) as server:
        assert f"checkpoint {name}-0000000007.json of the witness says nothing" in server.log()
        assert f"checkpoint {name}-0000000009.json of the witness says nothing" in server.log()


def test_a_checkpoint_that_holds_and_contradicts_the_ledger_stops_the_start(tmp_path: Path) -> None:
    environment = settings(tmp_path)
    state = Ledger.open(environment["TRIPTYCH_LEDGER"]).state
    writer = WitnessWriter(FileWitness(tmp_path / "witness"), open_signer(Embedded(tmp_path).uri("witness")))
    writer.write(state.model_copy(update={"head": "sha256:another"}))
    assert "the ledger was rewritten or forked" in refusal_to_start(tmp_path, environment)
