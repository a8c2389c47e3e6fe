"""What is wrong, gone or in the way is named, and nothing is half-written."""

from __future__ import annotations

import importlib
import pkgutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import lineage
from components.promote.promote import promote_version
from components.register.register import register_candidate
from lineage import database
from lineage.database import DatabaseStore
from lineage.digests import LineageError
from lineage.embedded import Embedded
from lineage.entries import Body, Entry, LedgerError, Recorded, Registered, read_entry
from lineage.memory import Remembered
from lineage.records import StepRecord, recording
from lineage.registry import Registry, RegistrySettings
from lineage.signing import Role, open_signer
from lineage.statements import Statement
from lineage.witness import Checkpoint, verify_entries
from tests.audit.world import MODEL, World
from tests.lineage.test_ledger import BASE, ONE, candidate, judgement, recorded, say
from tests.tampering.test_entries import KINDS


@pytest.fixture
def home(tmp_path: Path) -> Embedded:
    made = Embedded(tmp_path / "lineage")
    made.open()
    return made


@contextmanager
def held(home: Embedded) -> Iterator[None]:
    """Another connection in the middle of a write."""
    with closing(sqlite3.connect(home.folder / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_locked_database(home: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.2)
    size = home.open().state.size
    ledger, signer = home.open(), open_signer(home.uri("run"))
    with held(home), pytest.raises(LedgerError, match=r"ledger\.db cannot be used: .*locked; nothing was written"):
        ledger.append(recorded("plan"), signer)
    assert home.open().state.size == ledger.state.size == size
    ledger.append(recorded("plan"), signer)
    assert home.open().state.size == size + 1, "afterwards it goes on"


def test_a_step_whose_entry_cannot_be_written_fails(home: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.2)
    context = home.context("r1", str(home.folder / "records"), "")
    with held(home), pytest.raises(LedgerError, match="locked"), recording(context, "plan", {}):
        pass
    assert not home.open().state.records


def test_a_database_that_is_gone_while_it_is_used(home: Embedded) -> None:
    ledger, signer = home.open(), open_signer(home.uri("run"))
    (home.folder / "ledger.db").rename(home.folder / "elsewhere.db")
    with pytest.raises(LedgerError, match=r"cannot be used: .*nothing was written"):
        ledger.append(recorded("plan"), signer)
    (home.folder / "ledger.db").unlink(missing_ok=True)
    (home.folder / "elsewhere.db").rename(home.folder / "ledger.db")
    assert not home.open().state.records


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_a_database_that_is_none(home: Embedded, content: bytes) -> None:
    (home.folder / "ledger.db").write_bytes(content)
    with pytest.raises(LedgerError, match=r"cannot be used"):
        home.open()


def test_a_table_that_is_gone(home: Embedded) -> None:
    with closing(sqlite3.connect(home.folder / "ledger.db")) as database:
        database.execute("DROP TABLE triptych_ledger")
    for _ in "ab":
        with pytest.raises(LedgerError, match=r"no such table.*nothing was written"):
            home.open()


class Backwards(datetime):
    """A clock that was set back."""

    @classmethod
    def now(cls, tz: Any = None) -> Backwards:
        return cls(2001, 1, 1, tzinfo=UTC)


def test_a_clock_that_goes_backwards_is_reported_and_refuses_nothing(
    home: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(home, "run", recorded("plan"))
    with monkeypatch.context() as patch:
        patch.setattr("lineage.clock.datetime", Backwards)
        say(home, "run", recorded("gate"))
    ledger = home.open()
    assert "gate" in ledger.state.records["r1"]
    said = verify_entries(ledger.entries(), home.root, None)
    assert "ledger entry 2 (recorded) is dated before the entry it follows" in said


FORMATS = {Entry: "index", Checkpoint: "size", StepRecord: "status", Statement: "predicateType", Remembered: "code"}
"""What lies in files, with a field of each."""
OTHERS = {
    "Frozen": "the base of the others",
    "Section": "the base of sections of the configuration",
    "RunContext": "a parameter of steps",
    "Subject": "part of a statement",
    "RegistrySettings": "configuration",
    "LineageSettings": "configuration",
    "Environment": "the base of what servers are told by variables",
    "Body": "what all bodies have in common",
    "State": "part of what a reader remembers, under that reader's signature",
    "KnownKey": "part of a state",
    "Champion": "part of a state",
    "Kernel": "part of a scores artifact, which the verdict names by digest",
}


def test_an_entry_of_an_unknown_kind_is_named(home: Embedded) -> None:
    line = home.open().entries()[0].model_dump_json()
    with pytest.raises(LedgerError, match=r"'erased'.*; a newer Triptych may know it"):
        read_entry(line.replace('"kind":"opened"', '"kind":"erased"'))


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_this_version_does_not_know(world: World, kind: str) -> None:
    entry = next(entry for entry in world.home.open("tests").entries() if entry.body.kind == kind)
    line = entry.model_dump_json()
    for place in ('"index":', '"kind":'):
        with pytest.raises(LedgerError, match="this is not a ledger entry"):
            read_entry(line.replace(place, f'"invented":1,{place}', 1))


def test_every_body_is_a_kind() -> None:
    """A new one that is not in the union would never be tampered with."""
    assert {body.model_fields["kind"].default for body in Body.__subclasses__()} == set(KINDS)


@pytest.mark.parametrize("form", FORMATS)
def test_everything_on_file_refuses_what_it_does_not_know(form: type[BaseModel]) -> None:
    assert form.model_config["extra"] == "forbid"
    assert FORMATS[form] in form.model_fields


def test_no_format_is_forgotten() -> None:
    """Each model of `lineage` is tampered with in this folder, or is nothing that lies in a file by itself."""
    names = [found.name for found in pkgutil.iter_modules(lineage.__path__) if not found.ispkg]
    modules = [importlib.import_module(f"lineage.{name}") for name in names]
    models = {
        found
        for module in modules
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, BaseModel) and found.__module__ == module.__name__
    }
    bodies = set(Body.__subclasses__())
    assert {found.__name__ for found in models - {*FORMATS, *bodies}} <= OTHERS.keys()
    assert models >= {*FORMATS, *bodies}


def another(folder: Path) -> Embedded:
    made = Embedded(folder / "another")
    made.open()
    return made


def test_keys_of_another_workspace_say_nothing_here(home: Embedded, tmp_path: Path) -> None:
    candidate(home, "1", ONE, BASE)
    size, strange = home.open().state.size, another(tmp_path)
    for role in ("run", "gate", "promotion", "root"):
        with pytest.raises(LedgerError, match="does not know"):
            home.open().append(recorded("plan"), open_signer(strange.uri(role)))
    assert home.open().state.size == size


def test_an_entry_of_another_ledger_is_not_taken(home: Embedded, tmp_path: Path) -> None:
    strange = another(tmp_path)
    entry = say(strange, "run", recorded("plan"))
    with pytest.raises(LedgerError, match=r"does not follow|does not know"):
        home.open().accept(entry)


def test_a_run_that_was_told_another_root(home: Embedded, tmp_path: Path) -> None:
    context = home.context("r1", str(tmp_path / "records"), "").model_copy(update={"root": another(tmp_path).root})
    with pytest.raises(LedgerError, match="opened by another root key"), recording(context, "plan", {}):
        pass


@pytest.mark.parametrize("role", ["run", "gate"])
def test_a_key_that_is_absent(home: Embedded, role: Role) -> None:
    context = home.context("r1", "", "").model_copy(update={"keys": {}})
    with pytest.raises(LineageError, match=f"given no {role} key; set keys.{role}"):
        context.signer(role)
    (home.keys / f"{role}.pem").unlink()
    with pytest.raises(LineageError, match=rf"no usable key at .*{role}\.pem"):
        open_signer(home.uri(role))


def test_a_revoked_key_gives_no_more_verdicts(home: Embedded) -> None:
    old = open_signer(home.uri("gate"))
    home.revoke("gate", home.open().state.size, "lost")
    size = home.open().state.size
    with pytest.raises(LedgerError, match="retired"):
        home.open().append(judgement(ONE, BASE), old)
    assert home.open().state.size == size


def pieces(world: World, run: str) -> dict[str, Path]:
    folder = world.folder / "pipeline" / run
    names = {name: name for name in ("candidate", "verdict", "scores", "validated")}
    return {name: folder / where for name, where in (names | {"training": "training_record"}).items()}


def register(world: World, run: str, artifacts: dict[str, Path], mlflow_run: str) -> Registered:
    context = world.home.context(run, str(world.records), world.store.tracking_uri)
    keys = {"training_key": "", "evaluation_terms": ""}
    return register_candidate(context, RegistrySettings(model_name=MODEL), mlflow_run, artifacts, keys)[0]


@pytest.mark.parametrize("name", ["verdict", "candidate", "scores"])
def test_what_another_run_made_is_not_registered(world: World, name: str) -> None:
    """Such as a verdict about other weights, or against another incumbent."""
    before = len(world.store.versions())
    artifacts = {**pieces(world, "run-2"), name: pieces(world, "run-1")[name]}
    with pytest.raises(LineageError, match=r"the verdict is about|was exchanged"):
        register(world, "run-2", artifacts, world.store.open_run("again"))
    assert len(world.store.versions()) == before


def test_an_artifact_store_that_refuses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_run(self: Registry, run: str) -> str:
        mlflow_run = opened(self, run)
        place = Path(self.client.get_run(mlflow_run).info.artifact_uri.removeprefix("file://"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("a file where a folder should be")
        return mlflow_run

    opened, versions = Registry.open_run, len(world.store.versions())
    monkeypatch.setattr(Registry, "open_run", open_run)
    with pytest.raises((LineageError, OSError), match="artifacts"):
        world.retrain("run-4", [1, 2, 5], 0.3, incumbent=world.candidates["2"])
    assert len(world.store.versions()) == versions
    assert set(world.home.open("tests").state.versions[MODEL]) == {"1", "2", "3"}


def gone(world: World) -> None:
    weights = world.weights("1")
    weights.rename(weights.with_name("elsewhere"))


def unreadable(world: World) -> None:
    weights = world.weights("1")
    gone(world)
    weights.write_text("a file where a folder should be")


@pytest.mark.parametrize("trouble", [gone, unreadable])
def test_a_move_to_weights_that_the_store_does_not_give(world: World, trouble: Callable[[World], None]) -> None:
    size = world.home.open("tests").state.size
    trouble(world)
    with pytest.raises(LineageError, match=r"portraits/1|artifacts/weights"):
        world.mover().move("rollback", "1", "because")
    assert world.home.open("tests").state.size == size
    if world.weights("1").is_file():
        world.weights("1").unlink()


def test_promote_follows_the_verdict_and_no_other(world: World) -> None:
    """Version 3 was rejected; version 1 was champion before, and going back needs a person's reason."""
    context = world.home.context("run-9", str(world.records), world.store.tracking_uri)
    assert promote_version(context, RegistrySettings(model_name=MODEL), "3") == {"alias": ""}
    with pytest.raises(LedgerError, match="was champion before; going back needs a reason"):
        promote_version(context, RegistrySettings(model_name=MODEL), "1")
    champion = world.home.open("tests").state.champion(MODEL)
    assert champion and champion.version == "2"


def test_rows_written_all_or_none(home: Embedded, tmp_path: Path) -> None:
    say(home, "run", Recorded(run="r1", step="plan", status="complete", record=BASE))
    entries = home.open().entries()
    store = DatabaseStore(f"sqlite:///{tmp_path / 'copy.db'}")
    store.create()
    with pytest.raises(LedgerError, match="took this one's place"):
        store.write([*entries, entries[0]])
    assert store.entries(0) == []
