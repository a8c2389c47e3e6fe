"""Another champion comes while a run is under way: its verdict is stale, and the run judges its candidate anew."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from lineage.digests import digest_bytes, digest_path
from lineage.embedded import Embedded
from lineage.entries import Judged, Registered
from lineage.registry import Registry
from lineage.signing import open_signer
from tests.runs import AVATARS, TRIPTYCH, cut_down, some_portraits

MODEL = "portrait-avatars"


def crown_another(work: Path) -> str:
    """Make weights that draw as the base does champion of the run's registry; gives their digest."""
    weights = work.parent / "another"
    shutil.copytree(AVATARS / "models" / "base", weights)
    (weights / "note.txt").write_text("trained elsewhere")
    home, store = Embedded(work / "lineage"), Registry(f"sqlite:///{work / 'mlflow.db'}", MODEL)
    ledger, digest, verdict = home.open("another"), digest_path(weights), digest_bytes(b"another verdict")
    base = digest_path(AVATARS / "models" / "base")
    judged = Judged(run="another", candidate=digest, incumbent=base, decision="promote", verdict=verdict)
    ledger.append(judged, open_signer(home.uri("gate")))
    mlflow_run = store.open_run("another")
    (work.parent / "empty").mkdir()
    version = store.register(mlflow_run, weights, work.parent / "empty", {}, {}, "")
    registered = Registered(
        run="another",
        model=MODEL,
        version=version.number,
        candidate=digest,
        verdict=verdict,
        training_key="another",
        evaluation_key="another",
        mlflow_run=mlflow_run,
        evidence={},
    )
    ledger.append(registered, open_signer(home.uri("run")))
    home.promotions(store, "another").promote(version.number, "another pipeline")
    return digest


def test_a_run_whose_incumbent_was_replaced_judges_its_candidate_again(tmp_path: Path) -> None:
    work = tmp_path / "work"
    path = cut_down(tmp_path, some_portraits("new", tmp_path / "portraits"))
    command = [str(TRIPTYCH), "retrain", "--config", str(path), "--work-dir", str(work)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        until = time.monotonic() + 600
        while not list(work.glob("pipeline/records/*/fine-tune.json")) and time.monotonic() < until:
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.2)
        another = crown_another(work)
        said = run.communicate(timeout=600)[0]
    assert run.returncode == 0, said
    assert "stale: the verdict on version" in said and "run again to judge it anew" in said
    state = Embedded(work / "lineage").open().state
    assert sorted(state.outcomes.values()) == ["promoted", "stale"]
    trained = [path for path in work.glob("pipeline/records/*/fine-tune.json") if '"reused"' not in path.read_text()]
    assert len(trained) == 1, "it is judged anew, not trained anew"
    last = list(state.moves.values())[-1]
    assert (last.previous, last.candidate != another) == (another, True)
    champion = state.champion(MODEL)
    assert champion and champion.candidate == last.candidate
