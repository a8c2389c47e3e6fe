"""Attacks on the audit and on commands that read: hanging them, tracebacks, having them read beside."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import resource
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from securesystemslib.signer import CryptoSigner

from components.register.register import create, new_attempt
from lineage.digests import LineageError
from lineage.entries import Recorded
from lineage.signing import key_facts, open_signer, read_key
from pipelines.audit import write_text
from pipelines.commands.audit import sources_of
from pipelines.commands.request import Subject
from tests.audit.world import MODEL, World, written_on


def _audit(folder: Path, told: Any) -> None:
    """As `triptych audit` does, in a work folder's layout."""
    from pipelines.audit import audit

    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
    try:
        found = audit(f"{MODEL}/2", sources_of(Subject(work_dir=folder, model=MODEL)))
        told.put("holds" if found.holds else "does not hold")
    except LineageError as error:
        told.put(f"refused: {error}")
    except BaseException as error:
        told.put(f"traceback: {error!r}"[:300])


def audited(world: World, patience: float = 60) -> str:
    """How an audit ends; empty where it does not."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=_audit, args=(world.folder, told))
    process.start()
    try:
        return str(told.get(timeout=patience))
    except Exception:
        return ""
    finally:
        process.kill()
        process.join()


def test_control(world: World) -> None:
    """Untouched, the audit ends well and holds."""
    assert audited(world) == "holds"


def test_a_pipe_in_the_place_of_the_high_water_mark(world: World) -> None:
    """A named pipe as marks/auditor.json: `read_bytes` waits for a writer, for ever."""
    mark = world.home.marks / "auditor.json"
    mark.unlink(missing_ok=True)
    os.mkfifo(mark)
    assert audited(world, 30)


def test_a_pipe_in_the_place_of_the_marks_lock(world: World) -> None:
    lock = world.home.marks / "auditor.lock"
    lock.unlink(missing_ok=True)
    os.mkfifo(lock)
    assert audited(world, 30)


def test_a_lock_that_a_mere_reader_holds(world: World) -> None:
    import fcntl

    assert audited(world) == "holds"
    with (world.home.marks / "auditor.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert audited(world, 30)


ENDLESS = (
    "CREATE VIEW {} AS WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c) SELECT n AS position, "
    "'' AS ledger, '' AS previous, (SELECT entry FROM kept LIMIT 1) AS entry FROM c"
)


def test_a_ledger_without_end(world: World) -> None:
    """The table exchanged for a view that has a row more each time: read without end, into memory."""
    with sqlite3.connect(world.home.folder / "ledger.db") as database:
        database.execute("ALTER TABLE triptych_ledger RENAME TO kept")
        database.execute(ENDLESS.format("triptych_ledger"))
    told = audited(world, 90)
    assert told and not told.startswith("traceback"), told


def test_a_ledger_row_that_is_no_text(world: World) -> None:
    """A column that takes numbers: reading its row raises TypeError, which nobody expects."""
    with sqlite3.connect(world.home.folder / "ledger.db") as database:
        database.execute("ALTER TABLE triptych_ledger RENAME TO kept")
        database.execute("CREATE TABLE triptych_ledger (position INTEGER PRIMARY KEY, ledger, previous, entry)")
        database.execute("INSERT INTO triptych_ledger SELECT position, ledger, previous, position FROM kept")
    told = audited(world)
    assert told and not told.startswith("traceback"), told


def strange_key() -> dict[str, Any]:
    """A public key of an algorithm that no library knows."""
    facts = key_facts(CryptoSigner.generate_ecdsa().public_key)
    lines = facts["keyval"]["public"].strip().splitlines()
    der = bytearray(base64.b64decode("".join(lines[1:-1])))
    der[6] ^= 1
    pem = "\n".join([lines[0], base64.b64encode(bytes(der)).decode(), lines[-1], ""])
    return {**facts, "keyval": {"public": pem}}


def test_a_public_key_of_an_unknown_algorithm_is_none() -> None:
    with pytest.raises(LineageError):
        read_key(strange_key())


def test_a_ledger_opened_with_a_key_of_an_unknown_algorithm(world: World) -> None:
    """One row of the database, no key: the audit ends with UnsupportedAlgorithm."""
    with sqlite3.connect(world.home.folder / "ledger.db") as database:
        database.execute("DROP TRIGGER IF EXISTS triptych_no_UPDATE")
        [row] = database.execute("SELECT entry FROM triptych_ledger WHERE position = 0").fetchone()
        entry = json.loads(row)
        entry["body"]["keys"]["root"] = {**strange_key(), "keyid": entry["key"]}
        database.execute("UPDATE triptych_ledger SET entry = ? WHERE position = 0", [json.dumps(entry)])
    told = audited(world)
    assert told and not told.startswith("traceback"), told


def test_a_record_outside_the_folder_of_records_is_not_read(world: World) -> None:
    """The run key alone: a run named ../../… has the audit read a file elsewhere and print some of it."""
    secret = world.folder / "elsewhere"
    secret.mkdir()
    (secret / "config.json").write_text('{"password": "hunter2-hunter2"}')
    lie = {"run": "../../elsewhere", "step": "config", "status": "complete", "record": "sha256:" + "0" * 64}
    with pytest.raises(ValidationError):
        Recorded.model_validate(lie)
    said = Recorded.model_construct(**lie)  # type: ignore[arg-type]
    entries = written_on(world, said, "run")
    report = world.audit("sha256:" + "0" * 64, entries=entries)
    assert "hunter2" not in report.model_dump_json()


def test_an_empty_registry_is_not_written_to(world: World) -> None:
    """An audit writes nothing but its mark; into an empty mlflow.db it has MLflow make all its tables."""
    (world.folder / "mlflow.db").write_bytes(b"")
    assert audited(world)
    assert (world.folder / "mlflow.db").stat().st_size == 0


def test_a_folder_of_code_that_the_run_key_registered_does_not_hold(world: World) -> None:
    """The run key alone: good weights with their true verdict, in a folder whose MLmodel runs somebody's code."""
    from shutil import copytree

    from lineage.artifacts import folder_digest, listing
    from lineage.projection import tags_of

    store, before = world.store, world.registered("4")
    folder = world.model("4").parent.with_name(new_attempt())
    copytree(world.model("4").parent, folder)
    (folder / "model" / "code").mkdir()
    (folder / "model" / "code" / "evil.py").write_text("raise SystemExit\n")
    described = (folder / "model" / "MLmodel").read_text().replace("training.portrait", "evil")
    (folder / "model" / "MLmodel").write_text(described.replace("python_function:", "python_function:\n    code: code"))
    made = create(store, before.mlflow_run, (folder / "model").as_uri(), {}, "").number
    said = before.model_copy(update={"version": made, "folder": folder_digest(listing(folder / "model"))})
    world.home.open("tests").append(said, open_signer(world.home.uri("run")))
    found = store.version(made)
    assert found
    store.tag(found, tags_of(world.home.open("tests").state, MODEL, made))
    report = world.audit(made)
    assert not report.holds, write_text(report)[:400]
