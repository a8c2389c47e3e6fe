"""Attacks on what names a run, and on what names a policy."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from components.close_run.close import close
from components.evaluate.evaluation_set import read_evaluation_set
from lineage.digests import digest_path
from lineage.policy import by_content, policy_digest
from lineage.records import recording
from lineage.signing import make_keys, open_signer
from tests.lineage.worlds import MODEL, World

PROMPT = '{"id": "p1", "text": "a portrait", "attributes": {}, "seeds": [1]}\n'


def test_a_folder_called_like_a_digest_is_not_taken_for_what_has_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's parameter `evaluation_set: tree-sha256:…` has the pinned policy's digest, and names another folder."""
    pinned, easy = tmp_path / "pinned", tmp_path / "cwd"
    pinned.mkdir()
    (pinned / "set.json").write_text("{}")
    (pinned / "prompts.jsonl").write_text(PROMPT)
    name = digest_path(pinned)
    (easy / name).mkdir(parents=True)
    (easy / name / "set.json").write_text('{"easy": 1}')
    monkeypatch.chdir(easy)
    honest = policy_digest(by_content({"evaluation_set": str(pinned)}), {})
    try:
        spoofed = policy_digest(by_content({"evaluation_set": name}), {})
    except Exception:
        return  # refused: fine
    assert spoofed != honest or digest_path(name) == name
    assert read_evaluation_set


def _tagged(world: World, run: str) -> str:
    """An MLflow run that somebody else made and tagged as that of ``run``; the newest one."""
    experiment = world.store.client.get_experiment_by_name(MODEL)
    assert experiment
    made = world.store.client.create_run(experiment.experiment_id, tags={"triptych.run": run})
    return str(made.info.run_id)


def test_an_mlflow_run_that_somebody_tagged_is_not_closed_in_place_of_a_runs_own(tmp_path: Path) -> None:
    """The plan's record, which the ledger names, says which MLflow run is the run's own."""
    world = World(tmp_path)
    world.home.open()
    context, own = world.context, world.store.open_run("run-1")
    with recording(context, "plan", {}) as record:
        record.facts["mlflow_run"] = own
    strangers = _tagged(world, context.id)
    close(context, MODEL)
    statuses = [world.store.client.get_run(run).info.status for run in (own, strangers)]
    assert statuses == ["FAILED", "RUNNING"]


def test_an_mlflow_run_that_a_changed_record_names_is_not_closed(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.home.open()
    context, own = world.context, world.store.open_run("run-1")
    with recording(context, "plan", {}) as record:
        record.facts["mlflow_run"] = own
    another = _tagged(world, "run-2")
    changed = Path(context.records) / context.id / "plan.json"
    changed.write_text(changed.read_text().replace(own, another))
    assert close(context, MODEL) == "failed"
    assert world.store.client.get_run(another).info.status == "RUNNING"


def _make(folder: Path, start: Any, told: Any) -> None:
    start.wait()
    try:
        make_keys(folder)
        told.put("")
    except BaseException as error:
        told.put(repr(error)[:300])


def test_processes_that_make_keys_at_once_make_pairs(tmp_path: Path) -> None:
    """Two first starts of a work folder: public halves of one, private halves of the other."""
    context = multiprocessing.get_context("fork")
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        start, told = context.Event(), context.Queue()
        processes = [context.Process(target=_make, args=(folder, start, told)) for _ in range(4)]
        for process in processes:
            process.start()
        start.set()
        trouble = [told.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
        assert not any(trouble), trouble
        for role in ("root", "run", "gate", "promotion", "witness"):
            open_signer(f"file2:{folder / role}.pem")
