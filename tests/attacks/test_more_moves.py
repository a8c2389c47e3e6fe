"""Going back without a reason, runs that die while they are closed, stores that change between two looks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from components.close_run.close import close, unclosed
from lineage import version_files
from lineage.channel.client import Channel
from lineage.embedded import Embedded
from lineage.entries import Body, Closed, Leased, LedgerError
from lineage.ledger import Ledger
from lineage.records import recording
from lineage.signing import open_signer
from tests.lineage.test_ledger import BASE, ONE, TWO, candidate, move, registration, say
from tests.lineage.worlds import MODEL, World


@pytest.fixture
def home(tmp_path: Path) -> Embedded:
    return Embedded(tmp_path)


def test_weights_that_a_person_rolled_back_do_not_come_back_under_another_number(home: Embedded) -> None:
    """The rule looks at version numbers; the same weights and the same verdict, registered once more, pass it."""
    candidate(home, "1", ONE, BASE)
    candidate(home, "2", TWO, ONE)
    say(home, "promotion", move("1", ONE, ("", BASE)))
    say(home, "promotion", move("2", TWO, ("1", ONE)))
    back = {"action": "rollback", "verdict": "", "reason": "2 draws no glasses"}
    say(home, "promotion", move("1", ONE, ("2", TWO), **back))
    with pytest.raises(LedgerError, match="needs a reason"):
        say(home, "promotion", move("2", TWO, ("1", ONE)))  # control
    with pytest.raises(LedgerError):
        say(home, "run", registration("3", TWO))
        say(home, "promotion", move("3", TWO, ("1", ONE)))


def test_a_run_that_died_while_it_was_closed_is_closed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the closing record and its entry: nobody closes the run, and its lease holds the model a day."""
    world = World(tmp_path)
    world.home.open()
    context = world.context
    ledger = context.open_ledger()
    expires = (datetime.now(UTC) + timedelta(hours=24)).isoformat(timespec="milliseconds")
    ledger.append(Leased(model=MODEL, run=context.id, expires=expires), open_signer(world.home.uri("run")))
    with recording(context, "nothing-new", {}):
        pass
    real = Ledger.append

    def killed(self: Ledger, body: Body, signer: object) -> object:
        if isinstance(body, Closed):
            raise KeyboardInterrupt
        return real(self, body, signer)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            close(context, MODEL)
    for run in unclosed(context):  # what the next run does first
        close(context.model_copy(update={"id": run}), MODEL)
    assert not world.state.leases


def test_evidence_that_changes_between_two_looks_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile store gives one verdict to whoever takes its digest, and another one to whoever reads it."""
    world = World(tmp_path)
    good = world.candidate("good", world.base)
    bad = world.candidate("bad", world.base, "reject")
    folders = {}
    for number in (good, bad):
        found = world.store.version(number)
        assert found
        folders[number] = Path(found.evidence.removeprefix("file://")) / "verdict"
    real = version_files.listing

    def swapped(place: Path) -> object:
        found = real(place)
        if place == folders[bad]:
            (place / "verdict.dsse.json").write_bytes((folders[good] / "verdict.dsse.json").read_bytes())
        return found

    monkeypatch.setattr(version_files, "listing", swapped)
    world.mover().move("override", bad, "by a person")
    if not world.announced():
        return
    root = (world.home.channel / "metadata" / "1.root.json").read_bytes()
    channel = Channel(root, str(world.home.channel), tmp_path / "a-client")
    channel.refresh()
    assert channel.champion(MODEL).decision == "reject"


def test_a_file_that_is_no_record_does_not_stop_every_later_run(tmp_path: Path) -> None:
    """Files only: one bad record in a folder of its own, and `retrain`, which closes lost runs first, never starts."""
    world = World(tmp_path)
    world.home.open()
    context = world.context
    planted = Path(context.records) / "zzz"
    planted.mkdir(parents=True)
    (planted / "plan.json").write_text("{")
    for run in unclosed(context):
        close(context.model_copy(update={"id": run}), MODEL, killed=True)


def test_a_run_that_the_ledger_never_heard_of_is_not_closed_in_it(tmp_path: Path) -> None:
    """Files only: the honest run key signs that a run of any name ended, which the rules of the anchor look at."""
    world = World(tmp_path)
    world.home.open()
    context = world.context
    planted = Path(context.records) / "a run of the cluster"
    with recording(context, "plan", {}):
        pass
    planted.mkdir()
    (planted / "plan.json").write_bytes((Path(context.records) / context.id / "plan.json").read_bytes())
    for run in unclosed(context):
        close(context.model_copy(update={"id": run}), MODEL, killed=True)
    assert "a run of the cluster" not in world.state.outcomes
