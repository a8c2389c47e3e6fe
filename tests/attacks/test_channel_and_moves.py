"""Attacks on what repeats the ledger: channel, registry, and moves of two processes."""

from __future__ import annotations

import fcntl
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from components.register.register import create
from lineage.channel.client import Channel
from lineage.digests import LineageError, digest_bytes, digest_path
from lineage.entries import Registered
from lineage.signing import open_signer
from lineage.version_files import VersionFiles
from tests.lineage.worlds import MODEL, World


def reader(world: World, name: str) -> Channel:
    root = (world.home.channel / "metadata" / "1.root.json").read_bytes()
    channel = Channel(root, str(world.home.channel), world.folder / name)
    channel.refresh()
    return channel


def test_a_slow_reconcile_does_not_announce_what_was_withdrawn_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`reconcile` reads the ledger, then gigabytes, then publishes; a withdrawal between the two is overwritten."""
    world = World(tmp_path)
    version = world.candidate("one", world.base)
    world.mover().move("promote", version)
    slow = world.mover()
    real = VersionFiles.documents

    def meanwhile(files: VersionFiles, registered: Registered, names: Sequence[str]) -> dict[str, bytes]:
        found = real(files, registered, names)
        if not done:
            done.append(True)
            said = world.mover().move("withdraw", version, "consent taken back")
            assert not [line for line in said if "did not follow" in line], said
            assert world.announced() == ""
        return found

    done: list[bool] = []
    monkeypatch.setattr(VersionFiles, "documents", meanwhile)
    slow.reconcile()
    assert done
    assert world.state.champion(MODEL) is None
    assert world.announced() == "", "the channel says again, freshly signed, that the withdrawn version is champion"


def test_a_slow_promotion_does_not_announce_an_older_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with two promotions: the channel ends with the champion before."""
    world = World(tmp_path)
    one = world.candidate("one", world.base)
    two = world.candidate("two", world.digest("one"))
    slow = world.mover()
    real = VersionFiles.documents

    def meanwhile(files: VersionFiles, registered: Registered, names: Sequence[str]) -> dict[str, bytes]:
        found = real(files, registered, names)
        if not done:
            done.append(True)
            world.mover().move("promote", two)
        return found

    done: list[bool] = []
    monkeypatch.setattr(VersionFiles, "documents", meanwhile)
    slow.move("promote", one)
    assert world.agrees() == two


def test_reconcile_repairs_a_damaged_document_of_the_channel(tmp_path: Path) -> None:
    """docs/channel.md: "it repairs what somebody changed". It compares champion.json alone."""
    world = World(tmp_path)
    world.mover().move("promote", world.candidate("one", world.base))
    for document in (world.home.channel / "targets" / MODEL).glob("*.verdict.dsse.json"):
        document.write_bytes(b"rubbish")
    world.mover().reconcile()
    reader(world, "a-client").document(MODEL, "verdict.dsse.json")


def test_the_channel_repeats_the_verdict_that_the_ledger_names_and_no_other(tmp_path: Path) -> None:
    """The run key alone: evidence of a rejected version holds another version's (true) verdict; figures follow it."""
    world = World(tmp_path)
    good = world.candidate("good", world.base)
    bad = world.candidate("bad", world.base, "reject")
    said, store = world.state.versions[MODEL], world.store
    stored = store.version(bad)
    assert stored
    evidence = Path(stored.evidence.removeprefix("file://")) / "verdict"
    other = store.version(good)
    assert other
    (evidence / "verdict.dsse.json").write_bytes(
        (Path(other.evidence.removeprefix("file://")) / "verdict" / "verdict.dsse.json").read_bytes()
    )
    made = create(store, stored.mlflow_run, stored.source, {}, "").number
    lied = said[bad].model_copy(update={"version": made, "evidence": {"verdict": digest_path(evidence)}})
    world.home.open().append(lied, open_signer(world.home.uri("run")))
    world.mover().move("override", made, "break-glass, by a person")
    if not world.announced():
        return  # nothing was announced: fine
    shown = reader(world, "a-client")
    champion = shown.champion(MODEL)
    assert champion.decision == "reject", "an overridden, rejected version is shown as promoted"
    assert digest_bytes(shown.document(MODEL, "verdict.dsse.json")) == champion.verdict


def test_a_version_whose_files_changed_after_an_earlier_look_is_not_moved_to(tmp_path: Path) -> None:
    """One mover, several moves: what it read once it takes for unchanged."""
    world = World(tmp_path)
    one = world.candidate("one", world.base)
    two = world.candidate("two", world.digest("one"))
    mover = world.mover()
    mover.move("promote", one)
    mover.move("promote", two)
    found = world.store.version(one)
    assert found
    (Path(found.source.removeprefix("file://")) / "MLmodel").write_text("loader_module: evil")
    with pytest.raises(LineageError, match="changed"):
        mover.move("rollback", one, "two draws no glasses")


def test_a_champions_row_that_is_no_place_is_told(tmp_path: Path) -> None:
    """A row of MLflow's database alone ends reconcile with a traceback."""
    import sqlite3

    world = World(tmp_path)
    world.mover().move("promote", world.candidate("one", world.base))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE model_versions SET source = 'file://[x/model', storage_location = 'file://[x/model'")
    said = world.mover().reconcile().said
    assert any("cannot be trusted" in line for line in said)


def _reconcile(folder: Path) -> None:
    World(folder).mover().reconcile()


def ends(target: Any, *given: Any, patience: float = 45) -> bool:
    """Whether a process of its own ends at all."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=given)
    process.start()
    process.join(patience)
    alive = process.is_alive()
    if alive:
        process.kill()
        process.join()
    return not alive


def test_who_may_only_read_the_channel_does_not_hold_its_publisher(tmp_path: Path) -> None:
    """flock needs no right to write: a reader of the channel's folder holds every publication, for ever."""
    world = World(tmp_path)
    world.mover().move("promote", world.candidate("one", world.base))
    lock = world.home.channel / ".lock"
    if not lock.stat().st_mode & 0o004:
        return  # nobody else can read it, and so not hold it
    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert ends(_reconcile, tmp_path)


def test_who_may_only_read_the_marks_does_not_hold_a_move(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.mover().move("promote", world.candidate("one", world.base))
    lock = world.home.marks / "pipeline.lock"
    if not lock.stat().st_mode & 0o004:
        return  # nobody else can read it, and so not hold it
    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert ends(_reconcile, tmp_path)


def _open(folder: Path, start: Any, told: Any) -> None:
    from lineage.embedded import Embedded

    start.wait()
    try:
        home = Embedded(folder)
        ledger = home.open()
        for role in ("root", "run", "gate", "promotion", "witness"):
            ledger.signer(role, home.uri(role))
        told.put("")
    except BaseException as error:
        told.put(repr(error)[:300])


def test_two_processes_that_begin_a_ledger_at_once_agree_on_its_keys(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(15):
        start, told = context.Event(), context.Queue()
        processes = [context.Process(target=_open, args=(tmp_path / str(attempt), start, told)) for _ in range(4)]
        for process in processes:
            process.start()
        start.set()
        trouble = [told.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
        assert not any(trouble), trouble
