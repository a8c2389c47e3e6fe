"""The work folder that the commit before left, gone on with by this one: its ledger, its runs, its champion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lineage.channel.client import champion
from lineage.embedded import Embedded
from lineage.records import read_records
from tests.runs import cut_down, some_portraits, triptych

CHECKOUT = Path(__file__).parents[2]
BEFORE = os.environ.get("TRIPTYCH_UPGRADE_FROM", "HEAD~1")
"""The commit to come from."""
MODEL = "portrait-avatars"


def served(home: Embedded, seen: Path) -> str:
    """The weights that a server would load which follows the channel."""
    return str(champion(home.channel_root.read_bytes(), str(home.channel), MODEL, seen).weights)


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A checkout of the commit before."""
    checkout = tmp_path / "before"
    checkout.mkdir()
    done = subprocess.run(["git", "archive", BEFORE], cwd=CHECKOUT, capture_output=True, check=False)
    assert done.returncode == 0, (
        f"needs the commit before ({BEFORE}), which this clone has not: git fetch --unshallow\n{done.stderr.decode()}"
    )
    packed = done.stdout
    subprocess.run(["tar", "-x"], cwd=checkout, input=packed, check=True)
    detector = Path("components/validate_data/face_detection_short_range.tflite")
    (checkout / detector).write_bytes((CHECKOUT / detector).read_bytes())  # `make install` puts it there
    return checkout


def as_before(checkout: Path, *arguments: str | Path) -> str:
    """Run the command line of another checkout in this environment; what it prints."""
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_this_commit_goes_on_with_what_the_one_before_left(before: Path, tmp_path: Path) -> None:
    work, config = tmp_path / "work", cut_down(tmp_path, some_portraits("new", tmp_path / "portraits"))
    now, old = config.read_text(), before / "examples" / "avatars"
    config.write_text(now.replace(str(CHECKOUT / "examples" / "avatars"), str(old)))
    assert "promote" in as_before(before, "retrain", "--config", config, "--work-dir", work)
    config.write_text(now)

    home = Embedded(work / "lineage")
    left = home.open().entries()
    (run,) = [path.name for path in (work / "pipeline" / "records").iterdir()]
    assert all(record.status == "complete" for record in read_records(str(work / "pipeline" / "records"), run).values())
    first = home.open().state.champion(MODEL)
    assert first is not None and served(home, tmp_path / "seen") == first.candidate

    audited = triptych("audit", "champion", "--work-dir", work)
    assert audited.returncode == 0, audited.stdout + audited.stderr
    # The code's digest is another one, so that what it decides is made anew; what the ledger holds stays.
    again = triptych("retrain", "--config", config, "--work-dir", work)
    assert again.returncode == 0, again.stdout + again.stderr
    entries = home.open().entries()
    assert entries[: len(left)] == left and len(entries) > len(left)
    standing = home.open().state.champion(MODEL)
    assert standing is not None
    if standing.version != first.version:
        back = triptych("rollback", MODEL, "1", "--reason", "upgrade drill", "--work-dir", work)
        assert back.returncode == 0, back.stdout + back.stderr
    assert served(home, tmp_path / "seen") == first.candidate
    audited = triptych("audit", "champion", "--work-dir", work)
    assert audited.returncode == 0, audited.stdout + audited.stderr
