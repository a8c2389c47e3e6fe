"""Another champion comes while a run is under way: its verdict is stale, and the run judges its candidate anew."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from components.register.register import create, new_attempt, upload
from lineage.artifacts import LOADER, WEIGHTS_FOLDER, folder_digest, listing
from lineage.digests import digest_path
from lineage.embedded import Embedded
from lineage.entries import Judged, Moved, Registered
from lineage.registry import Registry
from lineage.signing import open_signer
from lineage.statements import VERDICT, VERDICT_FILE, make_statement, write_statement
from tests.runs import AVATARS, TRIPTYCH, cut_down, some_portraits

MODEL = "portrait-avatars"


def crown_another(work: Path) -> str:
    """Make weights that draw as the base does champion of the run's registry; gives their digest."""
    around, verdict = work.parent / "around", work.parent / "verdict"
    weights = around / WEIGHTS_FOLDER
    shutil.copytree(AVATARS / "models" / "base", weights)
    (weights / "note.txt").write_text("trained elsewhere")
    (around / "MLmodel").write_text(f"flavors:\n  python_function:\n    loader_module: {LOADER}\n")
    home, store = Embedded(work / "lineage"), Registry(f"sqlite:///{work / 'mlflow.db'}", MODEL)
    ledger, digest, folder = home.open("another"), digest_path(weights), folder_digest(listing(around))
    gate, verdict_file = open_signer(home.uri("gate")), verdict / VERDICT_FILE
    verdict.mkdir()
    said = make_statement(VERDICT, {"candidate": digest}, {"decision": "promote", "figures": [], "run": "another"})
    judged = Judged(
        run="another",
        model=MODEL,
        candidate=digest,
        incumbent=digest_path(AVATARS / "models" / "base"),
        decision="promote",
        verdict=write_statement(said, verdict_file, gate),
        evaluation="",
        policy=ledger.state.policies[MODEL].digest,
    )
    ledger.append(judged, gate)
    mlflow_run, elsewhere = store.open_run("another"), work.parent / "weights"
    weights.rename(elsewhere)
    source = upload(store, mlflow_run, around, elsewhere, {"verdict": verdict}, new_attempt())
    version = create(store, mlflow_run, source, {}, "")
    registered = Registered(
        run="another",
        model=MODEL,
        version=version.number,
        candidate=digest,
        folder=folder,
        verdict=judged.verdict,
        training_key="another",
        evaluation_terms="another",
        mlflow_run=mlflow_run,
        evidence={"verdict": digest_path(verdict)},
    )
    ledger.append(registered, open_signer(home.uri("run")))
    home.mover(store, "another").move("promote", version.number)
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
    ledger = Embedded(work / "lineage").open("tests")
    state = ledger.state
    assert sorted(state.outcomes.values()) == ["promoted", "stale"]
    trained = [path for path in work.glob("pipeline/records/*/fine-tune.json") if '"reused"' not in path.read_text()]
    assert len(trained) == 1, "it is judged anew, not trained anew"
    last = [entry.body for entry in ledger.entries() if isinstance(entry.body, Moved)][-1]
    assert (last.previous, last.candidate != another) == (another, True)
    champion = state.champion(MODEL)
    assert champion and champion.candidate == last.candidate
