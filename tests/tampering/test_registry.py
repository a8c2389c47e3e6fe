"""MLflow's rows, moved behind the guard's back by the owner of its database."""

from __future__ import annotations

import pytest

from lineage.digests import LineageError
from tests.audit.world import MODEL, World
from tests.tampering.test_evidence import named

TAGS = ("candidate", "verdict", "standing", "decision", "incumbent")
"""They repeat what the ledger says."""


def test_no_tag_is_forgotten(world: World) -> None:
    assert set(world.store.versions()[1].tags) == set(TAGS)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("number", ["2", "3"])
def test_a_tag_that_says_something_else(world: World, number: str, tag: str) -> None:
    before = world.store.versions()[int(number) - 1].tags.get(tag, "candidate")
    world.store.client.set_model_version_tag(MODEL, number, f"triptych.{tag}", "sha256:0")
    named(world.audit(number), f"tag {tag} of version {number} of portraits")
    said = world.mover().reconcile().said
    assert f"version {number}: tag {tag} set to {before}" in said
    assert world.store.versions()[int(number) - 1].tags[tag] == before


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_taken_away(world: World, tag: str) -> None:
    world.store.client.delete_model_version_tag(MODEL, "2", f"triptych.{tag}")
    named(world.audit("2"), f"tag {tag} of version 2 of portraits")
    assert any(f"version 2: tag {tag} set to" in line for line in world.mover().reconcile().said)


@pytest.mark.parametrize("number", ["1", "3", ""])
def test_the_alias(world: World, number: str) -> None:
    if number:
        world.store.client.set_registered_model_alias(MODEL, "champion", number)
    else:
        world.store.client.delete_registered_model_alias(MODEL, "champion")
    named(world.audit("2"), "alias champion of portraits")
    was = f"version {number}" if number else "no version"
    assert f"alias champion was on {was}, is on version 2" in world.mover().reconcile().said


def test_a_version_deleted(world: World) -> None:
    world.store.client.delete_model_version(MODEL, "2")
    named(world.audit("2"), "version 2 of portraits in the registry")
    said = world.mover().reconcile().said
    assert "the champion, version 2, cannot be trusted: version 2 of portraits is not in the registry any more" in said


def test_a_version_added(world: World) -> None:
    source = world.store.client.get_model_version(MODEL, "2").source
    world.store.client.create_model_version(MODEL, source, run_id=world.store.open_run("smuggled"))
    assert "version 4 of portraits is in the registry but not in the ledger" in world.mover().reconcile().said
    with pytest.raises(LineageError, match="version 4 of portraits is not in the ledger"):
        world.mover().move("promote", "4")


@pytest.mark.parametrize(("column", "other"), [("storage_location", "1"), ("run_id", "1")])
def test_a_versions_row_that_points_elsewhere(world: World, column: str, other: str) -> None:
    """The weights, the run, or both are then another version's."""
    import sqlite3

    with sqlite3.connect(world.folder / "mlflow.db") as database:
        database.execute(
            f"UPDATE model_versions SET {column} = (SELECT {column} FROM model_versions WHERE version = ?) "
            "WHERE version = 2",
            (other,),
        )
    said = world.mover().reconcile().said
    report = world.audit("2")
    assert any("the champion, version 2, cannot be trusted" in line for line in said)
    named(report, "the place of version 2" if column == "storage_location" else "the MLflow run of version 2")
