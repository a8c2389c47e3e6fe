"""Any single bit of what a run leaves, turned over: detected, or shown to carry nothing."""

from __future__ import annotations

import pytest

from benchmarks.bit_flips import main
from tests.audit.world import World


@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_flipped_bit_is_detected_or_carries_nothing(
    world: World, seed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    world.mover().reconcile()
    assert main(["--work-dir", str(world.folder), "--flips", "300", "--seed", seed]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("detected ") and last.endswith(" of 300, undetected 0")
