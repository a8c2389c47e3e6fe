"""The registry on a real MLflow store (SQLite and local files)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.plan.plan import Plan, make_plan
from components.promote.promote import promote_version
from components.register.register import register_candidate
from lineage.closing import close, unclosed
from lineage.digests import LineageError, digest_path
from lineage.records import RunContext, recording
from lineage.registry import Registry, RegistrySettings
from lineage.statements import VERDICT, make_statement, write_statement

SETTINGS = RegistrySettings(model_name="portraits")
TERMS = {"evaluation": {"evaluation_set": "none"}, "gate": {"alpha": 0.025}}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database to copy: creating one takes long."""
    folder = tmp_path_factory.mktemp("mlflow")
    Registry(f"sqlite:///{folder / 'mlflow.db'}", "portraits").versions()
    return folder / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Registry:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", "portraits")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return weights(tmp_path, "base")


def weights(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    (path / "weights.bin").write_text(name)
    return path


def verdict(folder: Path, candidate: Path, incumbent: str, decision: str) -> Path:
    path = folder / f"verdict-of-{candidate.name}"
    path.mkdir(exist_ok=True)
    predicate = {
        "decision": decision,
        "reasons": ["because"],
        "figures": [],
        "evaluation": {"incumbent": {"digest": incumbent}},
    }
    write_statement(make_statement(VERDICT, {"candidate": digest_path(candidate)}, predicate), path / "verdict.json")
    return path


def plan(store: Registry, base: Path, snapshot: str = "sha256:s1", **changes: Any) -> Plan:
    terms = {**TERMS, **changes}
    return make_plan(store, snapshot, {"base_model": str(base)}, terms["evaluation"], terms["gate"], force=False)


def run_once(
    store: Registry, folder: Path, planned: Plan, candidate: Path, decision: str, run: str
) -> tuple[str, Path]:
    """Register and promote as the pipeline does; returns the version and the verdict's folder."""
    keys = {
        "snapshot": "sha256:s1",
        "training_key": planned.training_key,
        "evaluation_terms": planned.evaluation_terms,
    }
    judged = verdict(folder, candidate, planned.incumbent_digest, decision)
    version = register_candidate(store, store.open_run(run), candidate, judged, {}, keys)
    promote_version(store, SETTINGS, version.number, judged, digest_path(judged), planned.base_digest)
    return version.number, judged


def test_a_first_candidate_is_trained_judged_against_the_base_and_promoted(
    store: Registry, tmp_path: Path, base: Path
) -> None:
    planned = plan(store, base)
    assert planned.needed and not planned.reuse_uri
    assert planned.incumbent_digest == digest_path(base)
    number, _ = run_once(store, tmp_path, planned, weights(tmp_path, "c1"), "promote", "run-1")
    champion = store.champion()
    assert champion is not None and champion.number == number
    assert champion.tags["replaced"] == "base model"


def test_a_champion_that_would_come_out_again_is_nothing_new(store: Registry, tmp_path: Path, base: Path) -> None:
    run_once(store, tmp_path, plan(store, base), weights(tmp_path, "c1"), "promote", "run-1")
    again = plan(store, base)
    assert not again.needed
    assert "already is the champion" in again.reason


def test_a_rejected_candidate_is_kept_and_not_judged_twice_on_the_same_terms(
    store: Registry, tmp_path: Path, base: Path
) -> None:
    run_once(store, tmp_path, plan(store, base), weights(tmp_path, "c1"), "reject", "run-1")
    assert store.champion() is None
    assert [version.tags["decision"] for version in store.versions()] == ["reject"]
    assert not plan(store, base).needed
    other_terms = plan(store, base, gate={"alpha": 0.05})
    assert other_terms.needed and other_terms.reuse_digest == digest_path(tmp_path / "c1")


def test_a_changed_incumbent_alone_judges_the_known_candidate_anew(store: Registry, tmp_path: Path, base: Path) -> None:
    run_once(store, tmp_path, plan(store, base), weights(tmp_path, "c1"), "hold", "run-1")
    run_once(store, tmp_path, plan(store, base, snapshot="sha256:s2"), weights(tmp_path, "c2"), "promote", "run-2")
    planned = plan(store, base)
    assert planned.needed
    assert planned.reuse_uri == "models:/portraits/1"
    assert planned.incumbent_digest == digest_path(tmp_path / "c2")


def test_a_stale_verdict_does_not_promote(store: Registry, tmp_path: Path, base: Path) -> None:
    early = plan(store, base, snapshot="sha256:s2")
    run_once(store, tmp_path, plan(store, base), weights(tmp_path, "c1"), "promote", "run-1")
    with pytest.raises(LineageError, match="stale"):
        run_once(store, tmp_path, early, weights(tmp_path, "c2"), "promote", "run-2")
    champion = store.champion()
    assert champion is not None and champion.number == "1"


def test_a_changed_verdict_does_not_promote(store: Registry, tmp_path: Path, base: Path) -> None:
    planned = plan(store, base)
    number, judged = run_once(store, tmp_path, planned, weights(tmp_path, "c1"), "reject", "run-1")
    given = digest_path(judged)
    file = judged / "verdict.json"
    file.write_text(file.read_text().replace('"reject"', '"promote"'))
    with pytest.raises(LineageError, match="not the one that the gate gave"):
        promote_version(store, SETTINGS, number, judged, given, planned.base_digest)
    assert store.champion() is None


def test_weights_changed_in_the_store_are_not_promoted(store: Registry, tmp_path: Path, base: Path) -> None:
    planned = plan(store, base)
    number, _ = run_once(store, tmp_path, planned, weights(tmp_path, "c1"), "hold", "run-1")
    judged = verdict(tmp_path, tmp_path / "c1", planned.incumbent_digest, "promote")
    stored = next((tmp_path / "artifacts").rglob("weights.bin"))
    stored.write_text("swapped")
    with pytest.raises(LineageError, match="they were changed after they were recorded"):
        promote_version(store, SETTINGS, number, judged, digest_path(judged), planned.base_digest)
    assert store.champion() is None


def test_a_verdict_about_other_weights_registers_nothing(store: Registry, tmp_path: Path, base: Path) -> None:
    judged = verdict(tmp_path, weights(tmp_path, "c1"), "sha256:0", "promote")
    keys = {"snapshot": "", "training_key": "", "evaluation_terms": ""}
    with pytest.raises(LineageError, match="the verdict is about"):
        register_candidate(store, store.open_run("run-1"), weights(tmp_path, "c2"), judged, {}, keys)
    assert store.versions() == []


def test_manual_mode_leaves_the_decision_to_a_person(store: Registry, tmp_path: Path, base: Path) -> None:
    planned = plan(store, base)
    number, _ = run_once(store, tmp_path, planned, weights(tmp_path, "c1"), "hold", "run-1")
    judged = verdict(tmp_path, tmp_path / "c1", planned.incumbent_digest, "promote")
    manual = SETTINGS.model_copy(update={"mode": "manual"})
    alias = promote_version(store, manual, number, judged, digest_path(judged), planned.base_digest)
    assert alias == "challenger"
    assert store.champion() is None


def test_registering_twice_in_one_run_makes_one_version(store: Registry, tmp_path: Path, base: Path) -> None:
    planned = plan(store, base)
    candidate = weights(tmp_path, "c1")
    assert run_once(store, tmp_path, planned, candidate, "hold", "run-1")[0] == "1"
    assert run_once(store, tmp_path, planned, candidate, "hold", "run-1")[0] == "1"
    assert len(store.versions()) == 1


def test_a_run_that_was_lost_is_found_and_closed(store: Registry, tmp_path: Path) -> None:
    context = RunContext(id="run-1", records=str(tmp_path / "records"), tracking_uri=store.tracking_uri)
    with recording(context, "plan", {}) as record:
        record.facts["mlflow_run"] = lost = store.open_run("run-1")
    assert unclosed(context.records) == ["run-1"]
    assert close(context, "portraits", killed=True) == "failed"
    assert unclosed(context.records) == []
    assert store.client.get_run(lost).info.status == "KILLED"


def test_the_description_shows_the_verdict(store: Registry, tmp_path: Path, base: Path) -> None:
    run_once(store, tmp_path, plan(store, base), weights(tmp_path, "c1"), "hold", "run-1")
    stored = store.client.get_model_version("portraits", "1")
    assert "**hold**" in stored.description and "because" in stored.description
    evidence = next((tmp_path / "artifacts").rglob("verdict.json"))
    assert json.loads(evidence.read_text())["predicate"]["decision"] == "hold"
