"""Old runs are cleaned out of a work folder, and nothing that the ledger names goes with them."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lineage.digests import digest_path
from lineage.signing import open_signer
from lineage.statements import VERDICT_FILE
from pipelines.cli import app
from tests.lineage.worlds import World


@pytest.fixture
def world(tmp_path: Path, migrated: bytes) -> World:
    """Four runs left their folders and logs; the ledger knows two versions."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(migrated)
    made = World(folder)
    made.candidate("one", made.base)
    made.candidate("two", made.digest("one"), "reject")
    for age, number in enumerate("4321"):
        passed, log = folder / "pipeline" / f"retraining-{number}", folder / "logs" / f"retraining-{number}.log"
        (passed / "gate" / "verdict").mkdir(parents=True)
        (passed / "gate" / "verdict" / VERDICT_FILE).write_text(f"run {number}")
        log.parent.mkdir(exist_ok=True)
        log.write_text("all that was said")
        for path in (passed, log):
            os.utime(path, (1e9 - age, 1e9 - age))
    for name in ("records", "state"):
        (folder / "pipeline" / name / "run-1").mkdir(parents=True, exist_ok=True)
    return made


def prune(world: World, keep: int) -> Result:
    return CliRunner().invoke(app, ["prune", "--keep", str(keep), "--work-dir", str(world.folder)])


def left(world: World) -> tuple[list[str], list[str]]:
    folders = [path.name for path in (world.folder / "pipeline").iterdir() if path.is_dir()]
    return sorted(folders), sorted(path.stem for path in (world.folder / "logs").iterdir())


def everything(world: World) -> dict[str, bytes]:
    kept = [path for name in ("lineage", "artifacts") for path in (world.folder / name).rglob("*.*")]
    return {str(path): path.read_bytes() for path in kept if path.is_file() and "marks" not in path.parts}


@pytest.mark.parametrize(
    ("keep", "runs"), [(9, "1234"), (2, "34"), (0, "")], ids=["more than there are", "the last two", "none"]
)
def test_the_last_runs_stay_and_what_the_ledger_names(world: World, keep: int, runs: str) -> None:
    before, names = everything(world), [f"retraining-{number}" for number in runs]
    found = prune(world, keep)
    assert found.exit_code == 0, found.output
    assert left(world) == (sorted([*names, "records", "state"]), names)
    assert everything(world) == before
    assert f"deleted {2 * (4 - len(runs))} folders and logs" in found.output


def test_a_verdict_that_is_nowhere_else_stays(world: World) -> None:
    """A run whose gate gave a verdict and that registered nothing: only its folder has what the ledger names."""
    verdict = world.folder / "pipeline" / "retraining-1" / "gate" / "verdict" / VERDICT_FILE
    judged = next(iter(world.state.verdicts.values())).model_copy(update={"verdict": digest_path(verdict)})
    world.home.open().append(judged, open_signer(world.home.uri("gate")))
    assert prune(world, 1).exit_code == 0
    assert left(world)[0] == ["records", "retraining-1", "retraining-4", "state"]


def test_not_while_a_run_uses_the_folder(world: World) -> None:
    with (world.folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = prune(world, 0)
    assert found.exit_code == 2 and "another run uses" in found.output
    assert len(left(world)[1]) == 4


def test_there_has_to_be_a_ledger(world: World) -> None:
    shutil.rmtree(world.folder / "lineage")
    assert prune(world, 0).exit_code == 2
    assert len(left(world)[1]) == 4
