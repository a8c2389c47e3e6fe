"""The anchor: the last version that a person made champion, whom no candidate may be worse than."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.plan.plan import Plan, Sections, make_plan
from lineage.entries import Closed
from lineage.signing import open_signer
from tests.lineage.worlds import MODEL, World


@pytest.fixture
def world(tmp_path: Path, migrated: bytes) -> World:
    (tmp_path / "mlflow.db").write_bytes(migrated)
    (tmp_path / "base").mkdir()
    return World(tmp_path)


def champion(world: World, name: str, incumbent: str, by_a_person: bool) -> str:
    """Register and promote weights: by their own run before it closes, or by a person afterwards."""
    number = world.candidate(name, incumbent)
    run = world.state.versions[MODEL][number].run
    world.mover("" if by_a_person else run).move("promote", number)
    world.home.open().append(Closed(run=run, outcome="registered"), open_signer(world.home.uri("run")))
    return world.digest(name)


def planned(world: World) -> Plan:
    sections: Sections = {
        **{name: {} for name in ("validation", "evaluation", "gate")},
        "training": {"base_model": str(world.folder / "base")},
    }
    return make_plan(world.state, MODEL, "sha256:1", sections, force=False)


def test_a_run_s_own_promotion_approves_nothing(world: World) -> None:
    champion(world, "one", world.base, by_a_person=False)
    assert world.state.anchor(MODEL) is None
    assert planned(world).anchor_uri == ""


def test_a_person_s_promotion_stays_the_anchor_of_later_runs(world: World) -> None:
    one = champion(world, "one", world.base, by_a_person=True)
    assert planned(world).anchor_uri == "", "the champion is the anchor, and compared with anyway"
    champion(world, "two", one, by_a_person=False)
    assert (planned(world).anchor_uri, planned(world).anchor_digest) == (f"models:/{MODEL}/1", one)


def test_a_rollback_approves(world: World) -> None:
    one = champion(world, "one", world.base, by_a_person=False)
    champion(world, "two", one, by_a_person=False)
    world.mover().move("rollback", "1", "two has six fingers")
    anchor = world.state.anchor(MODEL)
    assert anchor and anchor.version == "1"


def test_a_withdrawn_version_is_no_anchor(world: World) -> None:
    one = champion(world, "one", world.base, by_a_person=True)
    two = champion(world, "two", one, by_a_person=True)
    champion(world, "three", two, by_a_person=False)
    world.mover().move("withdraw", "2", "consent was taken back")
    anchor = world.state.anchor(MODEL)
    assert anchor and anchor.candidate == one
