"""The whole pipeline through KFP's real local runner, with a real DeepSpeed launch and a real MLflow store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.close_run.close import outcome
from lineage.artifacts import WEIGHTS_FOLDER
from lineage.channel.client import champion
from lineage.digests import digest_path
from lineage.embedded import Embedded
from lineage.entries import Judged, Moved, PolicySet
from lineage.records import StepRecord, read_records
from lineage.registry import Registry, Version
from lineage.statements import VERDICT, VERDICT_FILE, open_statement
from lineage.witness import hear
from tests.pipelines.conftest import Stranger
from tests.runs import AVATARS, cut_down, some_portraits, triptych

Run = subprocess.CompletedProcess[str]
STEPS = [
    *("snapshot-data", "plan", "validate-data", "encode-features", "fine-tune"),
    *("evaluate", "gate", "register", "promote", "close-run"),
]


def records(work: Path, number: int) -> dict[str, StepRecord]:
    """The records of the ``number``-th run in a work folder."""
    folder = work / "pipeline" / "records"
    run = sorted(path.name for path in folder.iterdir())[number]
    return read_records(str(folder), run)


@pytest.fixture
def store(work: Path) -> Registry:
    return Registry(f"sqlite:///{work / 'mlflow.db'}", "portrait-avatars")


@pytest.fixture
def first(promoted: Run, store: Registry) -> Version:
    """The version that the first run registered."""
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    return store.versions()[0]


def weights_of(version: Version) -> str:
    """The weights of a version where they are stored."""
    return f"{version.source.removeprefix('file://')}/{WEIGHTS_FOLDER}"


def moves(home: Embedded) -> list[Moved]:
    return [entry.body for entry in home.open("tests").entries() if isinstance(entry.body, Moved)]


def test_good_data_is_promoted(promoted: Run, work: Path, store: Registry) -> None:
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    assert "verdict: promote" in promoted.stdout
    assert list(records(work, 0)) == STEPS
    first = store.versions()[0]
    assert first.tags["decision"] == "promote"
    assert first.tags["standing"] == "champion"
    home = Embedded(work / "lineage")
    state = home.open("tests").state
    (move,) = moves(home)
    assert (move.action, move.version, move.previous_version) == ("promote", "1", "")
    assert move.previous == digest_path(AVATARS / "models" / "base")
    left = records(work, 0)
    run = left["plan"].run
    assert state.records[run] == {step: left[step].digest() for step in left}
    assert state.outcomes[run] == "promoted"
    seen = hear(home.witness, state).latest
    assert seen is not None and seen.size >= len(left), "the witness saw the run's end"


def test_a_strangers_mlflow_run_in_the_environment_changes_nothing(
    promoted: Run, store: Registry, stranger: Stranger
) -> None:
    stranger.check()
    (version,) = store.versions()[:1]
    own = store.client.get_run(version.mlflow_run)
    assert own.info.run_id != stranger.run and own.info.status == "FINISHED"
    assert store.client.get_experiment(own.info.experiment_id).name == store.model_name


def test_the_run_entered_its_policy_and_said_so(promoted: Run, work: Path) -> None:
    assert "policy: first policy of the model" in promoted.stdout
    entries = [entry.body for entry in Embedded(work / "lineage").open("tests").entries()]
    pinned = next(body for body in entries if isinstance(body, PolicySet))
    judged = next(body for body in entries if isinstance(body, Judged))
    assert (judged.decision, judged.policy) == ("promote", pinned.digest)


def test_a_stranger_with_the_root_of_trust_reads_who_is_champion(first: Version, work: Path, tmp_path: Path) -> None:
    home = Embedded(work / "lineage")
    found = champion(home.channel_root.read_bytes(), str(home.channel), "portrait-avatars", tmp_path)
    assert (found.version, found.weights) == ("1", digest_path(weights_of(first)))


def test_what_passes_between_steps_is_what_was_recorded(promoted: Run, work: Path) -> None:
    run = records(work, 0)
    assert run["plan"].inputs["snapshot"] == run["snapshot-data"].outputs["snapshot"]
    assert run["encode-features"].inputs["validated"] == run["validate-data"].outputs["validated"]
    assert run["fine-tune"].inputs["features"] == run["encode-features"].outputs["features"]
    assert run["evaluate"].inputs["candidate"] == run["fine-tune"].outputs["candidate"]
    assert run["gate"].inputs["scores"] == run["evaluate"].outputs["scores"]
    assert run["promote"].inputs["verdict"] == run["gate"].outputs["verdict"]


def test_mlflow_has_the_run_with_its_evidence(promoted: Run, work: Path, store: Registry) -> None:
    version = store.versions()[0]
    run = store.client.get_run(version.mlflow_run)
    assert run.info.status == "FINISHED"
    assert {"gate/alignment/difference", "gate/realism/candidate"} <= set(run.data.metrics)
    curve = store.client.get_metric_history(version.mlflow_run, "training/loss_flow")
    assert len(curve) >= 5
    files = {path.relative_to(work / "artifacts").name for path in (work / "artifacts").rglob("*") if path.is_file()}
    assert {
        "model_index.json",
        "MLmodel",
        "model.sig",
        "verdict.dsse.json",
        "provenance.dsse.json",
        "pareto.png",
        "grid.png",
        "scores.parquet",
        "report.html",
        "quarantine.parquet",
        "expectations.html",
    } <= files


def test_every_step_told_openlineage(promoted: Run, work: Path) -> None:
    lines = (work / "pipeline" / "openlineage.jsonl").read_text().splitlines()
    told = {(event["job"]["name"], event["eventType"]) for event in map(json.loads, lines)}
    for step in STEPS:
        for state in ("START", "COMPLETE"):
            assert any(name.endswith(step) and said == state for name, said in told), (step, state, told)


def test_the_verdict_binds_the_weights_that_were_registered(first: Version, work: Path) -> None:
    stored = Path(f"{first.evidence.removeprefix('file://')}/verdict/{VERDICT_FILE}").read_bytes()
    statement = open_statement(stored, VERDICT, Embedded(work / "lineage").open("tests").state.keys_of("gate"))
    assert statement.subject_digest("candidate") == digest_path(weights_of(first))
    assert statement.predicate["evaluation"]["incumbent"]["digest"] == digest_path(AVATARS / "models" / "base")


def test_the_candidate_loads_with_plain_diffusers(first: Version, tmp_path: Path) -> None:
    weights = weights_of(first)
    program = (
        "import importlib.util, sys; assert importlib.util.find_spec('training') is None\n"
        "from diffusers import StableDiffusion3Pipeline\n"
        "pipeline = StableDiffusion3Pipeline.from_pretrained(\n"
        "    sys.argv[1], local_files_only=True, text_encoder_3=None, tokenizer_3=None)\n"
        "image = pipeline('a portrait', num_inference_steps=2, height=64, width=64).images[0]\n"
        "assert image.size == (64, 64)\n"
    )
    # -S leaves out site-packages and with it our editable install; the libraries are named one by one.
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    plain = tmp_path / "plain"
    plain.mkdir()
    for entry in Path(libraries).iterdir():
        if "triptych" not in entry.name:
            (plain / entry.name).symlink_to(entry)
    command = [sys.executable, "-E", "-S", "-c", f"import sys; sys.path.append({str(plain)!r})\n{program}", weights]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_shuffled_captions_are_rejected_and_the_champion_stays(rejected: Run, work: Path, store: Registry) -> None:
    assert rejected.returncode == 0, rejected.stdout + rejected.stderr
    assert "verdict: reject" in rejected.stdout
    assert records(work, 1)["plan"].facts["incumbent_name"] == "champion (version 1)"
    assert store.versions()[1].tags["decision"] == "reject"
    assert [version.number for version in store.versions() if "champion" in version.aliases] == ["1"]


def test_the_same_again_is_nothing_new(repeated: Run, work: Path) -> None:
    assert repeated.returncode == 0, repeated.stdout + repeated.stderr
    assert "nothing is new: this candidate already is the champion (version 1)" in repeated.stdout
    left = list(records(work, 2))
    assert left == ["snapshot-data", "plan", "nothing-new", "close-run"] and len(left) <= 5, "a task executor each"


def test_models_lists_versions_aliases_and_verdicts(repeated: Run, work: Path, good_configuration: Path) -> None:
    listed = triptych("models", "--config", good_configuration, "--work-dir", work)
    assert listed.returncode == 0, listed.stderr
    rows = [line for line in listed.stdout.splitlines() if "promote" in line or "reject" in line]
    assert len(rows) == 2, listed.stdout
    assert "champion" in rows[0] and "base model" in rows[0]
    assert "version 1" in rows[1]


def test_the_champion_can_be_audited(repeated: Run, work: Path, good_configuration: Path) -> None:
    asked = triptych("audit", "champion", "--config", good_configuration, "--work-dir", work)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "Everything that was checked holds" in asked.stdout
    assert "107 images" in asked.stdout and "GATE: promote" in asked.stdout


def test_the_champion_can_be_trained_again(repeated: Run, work: Path, good_configuration: Path) -> None:
    made = triptych("reproduce", "champion", "--config", good_configuration, "--work-dir", work)
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.splitlines()[-1] == "reproduced"


def test_a_failing_step_fails_the_run_and_the_next_run_works(tmp_path: Path) -> None:
    data = some_portraits("new", tmp_path / "portraits", 200)
    listed = sorted(data.rglob("*.png"))
    for picture in listed[: len(listed) // 2]:
        picture.write_bytes(b"not a picture")
    (tmp_path / "work").mkdir()
    path = cut_down(tmp_path, data)
    failed = triptych("retrain", "--config", path, "--work-dir", tmp_path / "work")
    assert failed.returncode == 1, failed.stdout
    assert "step validate-data failed" in failed.stdout
    run = records(tmp_path / "work", 0)
    assert outcome({name: run[name] for name in run if name != "close-run"}) == "failed"
    assert "register" not in run
    store = Registry(f"sqlite:///{tmp_path / 'work' / 'mlflow.db'}", "portrait-avatars")
    assert store.versions() == []
    assert store.client.get_run(run["plan"].facts["mlflow_run"]).info.status == "FAILED"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "portraits"),
        (lambda folder: folder.mkdir(), "metadata"),
    ],
)
def test_bad_data_is_refused_before_anything_starts(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "portraits")  # type: ignore[operator]
    path = cut_down(tmp_path, tmp_path / "portraits")
    refused = triptych("retrain", "--config", path, "--work-dir", tmp_path / "work")
    assert refused.returncode == 2, refused.stdout
    assert message in refused.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "row 1: the line is not JSON"),
        (json.dumps({"file_name": "../x.png", "text": "a"}), "row 1: file_name '../x.png' leaves the folder"),
        (json.dumps({"file_name": "gone.png", "text": "a"}), "row 1: file_name 'gone.png' is not a file"),
    ],
)
def test_data_of_which_nothing_is_left_fails_the_snapshot(tmp_path: Path, line: str, message: str) -> None:
    _write(tmp_path / "portraits", line)
    path = cut_down(tmp_path, tmp_path / "portraits")
    failed = triptych("retrain", "--config", path, "--work-dir", tmp_path / "work")
    assert failed.returncode == 1, failed.stdout
    assert "step snapshot-data failed" in failed.stdout and message in failed.stdout
    assert "plan" not in records(tmp_path / "work", 0)


def _write(folder: Path, line: str) -> None:
    folder.mkdir()
    (folder / "metadata.jsonl").write_text(line + "\n")
