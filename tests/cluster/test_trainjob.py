"""Fine-tuning as a TrainJob: the real SDK against an API server in this process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from mlflow import MlflowClient

from components.fine_tune.settings import TrainJobSettings
from components.fine_tune.trainer_api import pod_patch
from lineage.digests import digest_path, hex_of
from tests.cluster.conftest import NAME, RUN, RealJob, Step, leave_results, train_for_real, use
from tests.cluster.kubernetes import CLOSED, SILENT, Cluster, Server
from training.encode.info import features_digest
from training.errors import StorageError, TrainingError
from training.launch.node import TrainingRequest, input_digests
from training.launch.watching import MlflowRun
from training.settings import SampleSettings, SelectionSettings


def finish(step: Step, real: RealJob, *lines: str) -> None:
    """The job runs, prints and ends well."""
    pod = step.cluster.start(NAME)
    for line in lines:
        step.cluster.write(pod, line)
    leave_results(real, step.place)
    step.cluster.end(NAME)


def on_create(step: Step, act: object) -> None:
    step.cluster.on_create = lambda name: threading.Thread(target=act).start()  # type: ignore[arg-type]


def put_job(step: Step, **status: str) -> None:
    """A job that an earlier attempt at this step has submitted."""
    step.cluster.create(
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": NAME},
            "spec": {"runtimeRef": {"name": "torch-distributed", "kind": "ClusterTrainingRuntime"}},
        },
        "portraits",
    )
    shared = step.root / "shared" / "features" / hex_of(features_digest(step.world.features)) / "files"
    settings, features = step.world.settings(), step.world.features
    request = TrainingRequest(settings=settings, features=str(shared), digests=input_digests(settings, features))
    step.place.mkdir(parents=True)
    (step.place / "request.json").write_text(request.model_dump_json(), "utf-8")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail where the block takes longer."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def created(cluster: Cluster) -> int:
    return cluster.asked.count("POST trainjobs")


def test_a_job_trains_on_two_nodes_and_its_candidate_comes_back(real: RealJob) -> None:
    assert digest_path(real.candidate) == real.record.candidate
    assert (real.record.processes, real.record.steps) == (2, 5)
    assert real.candidate.with_name("training.json").read_bytes() == (real.place / "training.json").read_bytes()
    points = (real.candidate.parent / "curves.jsonl").read_text().splitlines()
    assert json.loads(points[-1])["step"] == 5


def test_the_request_names_image_nodes_command_and_queue(real: RealJob) -> None:
    spec = real.body["spec"]
    assert spec["runtimeRef"] == {"name": "torch-distributed", "kind": "ClusterTrainingRuntime"}
    assert spec["trainer"]["command"] == ["python", "-m", "training.launch.node", "--place", str(real.place)]
    assert (spec["trainer"]["image"], spec["trainer"]["numNodes"]) == ("registry.example/triptych@sha256:1", 2)
    assert real.body["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "portraits"}
    assert real.body["metadata"]["namespace"] == "portraits"


def test_the_same_training_on_one_machine_gives_the_same_weights(real: RealJob, step: Step) -> None:
    from training.launch.launch import fine_tune

    here = fine_tune(step.world.settings(), step.world.features, step.candidate, step.root / "curves.jsonl")
    assert here.candidate == real.record.candidate


def test_a_retry_attaches_to_a_job_that_runs(step: Step, real: RealJob) -> None:
    put_job(step)
    threading.Thread(target=finish, args=(step, real)).start()
    assert step.run().candidate == real.record.candidate
    assert created(step.cluster) == 0


def test_a_retry_attaches_to_a_job_that_is_complete(step: Step, real: RealJob) -> None:
    put_job(step)
    finish(step, real, "a line of a job that ended before the step looked")
    assert step.run().candidate == real.record.candidate
    assert created(step.cluster) == 0


def test_a_failed_job_is_deleted_and_made_anew(step: Step, real: RealJob) -> None:
    put_job(step)
    step.cluster.end(NAME, "Failed")
    on_create(step, lambda: finish(step, real))
    step.run()
    assert step.cluster.asked.index("DELETE trainjobs") < step.cluster.asked.index("POST trainjobs")


def test_a_job_is_made_anew_only_when_no_pod_of_the_one_before_can_write_any_more(step: Step, real: RealJob) -> None:
    put_job(step)
    step.cluster.start(NAME)
    step.cluster.end(NAME, "Failed")
    step.cluster.pods_outlive = True
    threading.Timer(0.5, step.cluster.vanish).start()
    left: list[str] = []

    def begin(name: str) -> None:
        left.extend(step.cluster.pods)
        threading.Thread(target=finish, args=(step, real)).start()

    step.cluster.on_create = begin
    step.run()
    assert (created(step.cluster), left) == (1, [])


def test_a_job_made_anew_goes_on_from_the_checkpoint_of_the_one_that_failed(step: Step, real: RealJob) -> None:
    """Both train for real; what they end with together is what a job ends with that nothing happened to."""
    step.changes["nodes"], step.training["checkpoint_every"] = 1, 2
    step.training["samples"] = SampleSettings(every=2, prompts=("a portrait",), steps=1)
    margins = {"alignment": 0.1, "realism": 0.1, "aesthetics": 0.1}
    step.training["selection"] = SelectionSettings(selection_set=Path("/none"), margins=margins)
    step.cluster.on_create = lambda name: threading.Thread(target=train_for_real, args=(step.cluster, name)).start()
    in_the_way = step.place / "checkpoints" / "step-00000004"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the second checkpoint goes")
    with pytest.raises(TrainingError, match=r"train anew, from the last checkpoint(?s:.*)step-00000004 cannot be wr"):
        step.run()
    assert [path.name for path in in_the_way.parent.glob("*2")] == ["step-00000002"]
    in_the_way.unlink()
    record = step.run()
    assert created(step.cluster) == 2
    assert (record.resumed_from, record.candidate) == (2, real.record.candidate)
    assert not in_the_way.parent.exists(), "a candidate needs no checkpoints"
    pictures = sorted(path.name for path in (step.root / "curves-samples").iterdir())
    assert pictures == ["step-00000004.png", "step-00000005.png"]
    names = [f"step-0000000{number}.safetensors" for number in (1, 2, 5)]
    assert {path.name: digest_path(path) for path in (step.root / "marks").iterdir()} == record.marks
    assert sorted(record.marks) == names, "the first two are older than the checkpoint that was taken up"
    shutil.rmtree(step.candidate)
    (step.place / "marks" / names[0]).write_bytes((step.place / "marks" / names[1]).read_bytes())
    with pytest.raises(TrainingError, match=f"weights to choose among at .* record says: .*{names[0]}.*; train again"):
        step.run()


def test_a_job_that_is_being_deleted_is_not_attached_to(step: Step, real: RealJob) -> None:
    put_job(step)
    step.cluster.keeps.add(NAME)
    step.cluster.jobs[NAME]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    on_create(step, lambda: finish(step, real))
    threading.Timer(0.3, lambda: (step.cluster.keeps.clear(), step.cluster.jobs.pop(NAME))).start()
    step.run()
    assert created(step.cluster) == 1


def test_two_attempts_at_once_share_one_job(step: Step, real: RealJob) -> None:
    step.cluster.trouble.append(("GET trainjobs", 404))  # the job comes between the look and the creation
    put_job(step)

    def finish_later() -> None:
        while not created(step.cluster):
            time.sleep(0.01)
        finish(step, real)

    threading.Thread(target=finish_later).start()
    step.run()
    assert len(step.cluster.jobs) == 1


def test_a_job_of_another_request_is_refused(step: Step) -> None:
    put_job(step)
    written = step.place / "request.json"
    written.write_text(written.read_text().replace('"steps":5', '"steps":7'))
    with pytest.raises(TrainingError, match="asks for something else than this step; delete the job"):
        step.run()


def test_a_job_that_fails_says_why_with_its_last_lines(step: Step) -> None:
    def fail() -> None:
        step.cluster.write(step.cluster.start(NAME), "training failed: the total loss is nan at step 3")
        step.cluster.end(NAME, "Failed", "PodFailed", "node-0 exited with 1")

    on_create(step, fail)
    with pytest.raises(TrainingError, match=r"PodFailed: node-0 exited with 1.*\n.*loss is nan at step 3"):
        step.run()
    assert NAME in step.cluster.jobs  # kept to be looked at; the next attempt replaces it


def test_a_queued_job_is_waited_for(step: Step, real: RealJob) -> None:
    def queue_then_run() -> None:
        step.cluster.suspend(NAME)
        looks = step.cluster.asked.count("GET trainjobs")
        while step.cluster.asked.count("GET trainjobs") < looks + 6:
            time.sleep(0.01)
        finish(step, real)

    on_create(step, queue_then_run)
    assert step.run().candidate == real.record.candidate


def test_a_job_that_takes_too_long_is_deleted(step: Step) -> None:
    step.changes["timeout_seconds"] = 0.3
    with pytest.raises(TrainingError, match=r"raise trainjob\.timeout_seconds"):
        step.run()
    assert step.cluster.jobs == {}


def test_a_job_that_somebody_deletes_is_not_waited_for(step: Step) -> None:
    on_create(step, lambda: step.cluster.jobs.pop(NAME))
    with pytest.raises(TrainingError, match="was deleted while this step waited"):
        step.run()


@pytest.mark.parametrize("status", [429, 500, 503, CLOSED])
def test_a_lost_request_is_asked_again(step: Step, real: RealJob, status: int) -> None:
    for what in ("GET trainjobs", "GET trainingruntimes", "POST trainjobs", "GET trainjobs"):
        step.cluster.trouble.append((what, status))
    on_create(step, lambda: finish(step, real))
    assert step.run().candidate == real.record.candidate
    assert len(step.cluster.jobs) == 1


@pytest.mark.parametrize(
    "what",
    ["GET trainjobs", "GET trainingruntimes", "POST trainjobs", "DELETE trainjobs"],
)
def test_a_request_that_nobody_answers_is_asked_again(
    step: Step, real: RealJob, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("components.fine_tune.trainer_api.REQUEST_TIMEOUT", (5, 0.3))
    put_job(step)
    step.cluster.end(NAME, "Failed")
    step.cluster.trouble.append((what, SILENT))
    on_create(step, lambda: finish(step, real))
    with within(60):
        assert step.run().candidate == real.record.candidate
    assert step.cluster.trouble == []


def test_an_api_that_never_answers_ends_the_step_and_not_the_job(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.fine_tune.trainer_api.REQUEST_TIMEOUT", (5, 0.1))
    step.changes["patience_seconds"] = 0.2
    put_job(step)
    step.cluster.trouble += [("GET trainjobs", SILENT)] * 1000
    with within(60), pytest.raises(TrainingError, match=r"timed out.*goes on: run the step again to attach"):
        step.run()
    assert NAME in step.cluster.jobs


def test_an_api_that_stays_away_ends_the_step_and_not_the_job(step: Step) -> None:
    step.changes["patience_seconds"] = 0.2

    def break_down() -> None:
        step.cluster.trouble += [("GET trainjobs", 503)] * 1000

    on_create(step, break_down)
    with pytest.raises(TrainingError, match="goes on: run the step again to attach"):
        step.run()
    assert NAME in step.cluster.jobs


def test_forbidden_names_the_permissions(step: Step) -> None:
    step.cluster.trouble.append(("POST trainjobs", 403))
    with pytest.raises(
        TrainingError, match=r"create TrainJob .* not allowed: .*; the step's service account needs get"
    ):
        step.run()


def test_a_missing_runtime_is_named(step: Step) -> None:
    step.changes["runtime"] = "torch-distribute"
    with pytest.raises(TrainingError, match=r"no training runtime torch-distribute.* set trainjob\.runtime"):
        step.run()
    assert created(step.cluster) == 0


def test_without_a_cluster_the_section_is_to_blame(step: Step, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(tmp_path / "none", monkeypatch)
    with pytest.raises(TrainingError, match="leave out the trainjob section"):
        step.run()


def test_processes_that_do_not_spread_evenly_are_refused(step: Step) -> None:
    step.changes["nodes"] = 3
    with pytest.raises(TrainingError, match=r"training.processes 2 cannot be spread evenly over trainjob.nodes 3"):
        step.run()


def test_the_last_lines_are_those_of_the_first_node_s_newest_pod(step: Step) -> None:
    def fail() -> None:
        for pod, index in (("older", 0), ("another-node", 1), ("newest", 0)):
            step.cluster.write(step.cluster.start(NAME, index=index, pod=pod), f"printed by {pod}")
            time.sleep(0.01)
        step.cluster.end(NAME, "Failed")

    on_create(step, fail)
    with pytest.raises(TrainingError) as raised:
        step.run()
    assert "printed by newest" in str(raised.value)
    assert "printed by older" not in str(raised.value) and "printed by another-node" not in str(raised.value)


def test_a_log_that_may_not_be_read_costs_only_the_lines(step: Step) -> None:
    step.cluster.trouble += [("GET log", 403)] * 1000
    on_create(step, lambda: (step.cluster.start(NAME), step.cluster.end(NAME, "Failed", "PodFailed", "exit 1")))
    with pytest.raises(TrainingError, match=r"PodFailed: exit 1(?s:.*)its log cannot be read: "):
        step.run()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda place: (place / "training.json").unlink(), "left no training.json"),
        (lambda place: (place / "training.json").write_bytes(b"\xff"), "training.json at .* is no text in UTF-8"),
        (lambda place: (place / "candidate" / "model_index.json").write_text("{}"), "and its record says"),
        (lambda place: shutil.rmtree(place / "candidate"), "is nothing, and its record says"),
        (
            lambda place: (place / "training.json").write_text(
                (place / "training.json").read_text().replace('"steps": 5', '"steps": 6')
            ),
            "is of another training: settings.steps",
        ),
    ],
)
def test_a_candidate_that_is_not_what_was_asked_for_is_refused(
    step: Step, real: RealJob, damage: object, reason: str
) -> None:
    put_job(step)
    leave_results(real, step.place)
    damage(step.place)  # type: ignore[operator]
    step.cluster.start(NAME)
    step.cluster.end(NAME)
    with pytest.raises(TrainingError, match=reason):
        step.run()
    assert step.cluster.jobs == {}  # or each retry would attach to it


def test_curves_and_pictures_come_here_and_to_mlflow(step: Step, real: RealJob, tmp_path: Path) -> None:
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking)
    experiment = client.create_experiment("pictures", (tmp_path / "artifacts").as_uri())
    step.mlflow = MlflowRun(tracking, client.create_run(experiment).info.run_id)
    put_job(step)
    (step.place / "curves-samples").mkdir()
    (step.place / "curves-samples" / "step-00000005.png").write_bytes(b"a picture")
    finish(step, real)
    step.run()
    assert (tmp_path / "curves-samples" / "step-00000005.png").read_bytes() == b"a picture"
    assert [m.step for m in client.get_metric_history(step.mlflow.run_id, "training/loss")] == [2, 4, 5]
    assert client.get_metric_history(step.mlflow.run_id, "training/target_null_share")
    logged = client.list_artifacts(step.mlflow.run_id, "samples")
    assert [file.path for file in logged] == ["samples/step-00000005.png"]


def test_a_candidate_that_cannot_be_copied_here_is_kept_and_collected_by_the_retry(step: Step, real: RealJob) -> None:
    put_job(step)
    finish(step, real)
    step.candidate.write_text("a file where the folder goes, as a full disk leaves no room for one")
    with pytest.raises(StorageError, match=r"candidate cannot be copied to .*/candidate: .*that no disk is full"):
        step.run()
    assert NAME in step.cluster.jobs
    step.candidate.unlink()
    assert step.run().candidate == real.record.candidate
    assert created(step.cluster) == 0


def test_checkpoints_that_cannot_be_removed_cost_only_their_room(
    step: Step, real: RealJob, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(storage: object, path: str, recursive: bool) -> None:
        raise PermissionError(path)

    put_job(step)
    finish(step, real)
    (step.place / "checkpoints").mkdir()
    monkeypatch.setattr(LocalFileSystem, "rm", refuse)
    assert step.run().candidate == real.record.candidate
    assert NAME in step.cluster.jobs
    assert "the candidate is here, and its checkpoints are left over" in capfd.readouterr().out


STEP = """
import sys
from pathlib import Path
from components.fine_tune.settings import TrainJobSettings
from components.fine_tune.trainjob import train_on_cluster
from training.settings import TrainingSettings
trainjob, run, settings, *paths = sys.argv[1:]
train_on_cluster(
    TrainJobSettings.model_validate_json(trainjob), run, TrainingSettings.model_validate_json(settings),
    *map(Path, paths), None,
)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_step_deletes_its_job(step: Step, server: Server, how: signal.Signals) -> None:
    submitted = threading.Event()
    step.cluster.on_create = lambda name: submitted.set()
    arguments = [step.trainjob.model_dump_json(), RUN, step.world.settings().model_dump_json()]
    paths = [str(step.world.features), str(step.candidate), str(step.root / "curves.jsonl")]
    process = subprocess.Popen(
        [sys.executable, "-c", STEP, *arguments, *paths], env=os.environ | {"KUBECONFIG": str(server.kubeconfig)}
    )
    assert submitted.wait(120)
    process.send_signal(how)
    assert process.wait(60) != 0
    assert step.cluster.jobs == {}


def test_what_a_trainjob_cannot_patch_is_refused() -> None:
    with pytest.raises(TrainingError, match="parts that a TrainJob cannot patch"):
        pod_patch({"volumes": [{"name": "shared", "persistentVolumeClaim": {"claimname": "x", "claimName": "y"}}]})
    with pytest.raises(TrainingError, match="is no patch of a pod"):
        pod_patch({"volumes": "shared"})


def test_volumes_reach_the_request(step: Step, real: RealJob) -> None:
    # As a KFP parameter brings it: integers come as floats.
    volume = {"name": "shared", "secret": {"secretName": "s", "defaultMode": 420.0}}
    mount = {"name": "node", "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    step.changes |= {"pod": {"volumes": [volume], "containers": [mount]}, "resources": {"gpu": 4.0, "memory": "64Gi"}}
    on_create(step, lambda: finish(step, real))
    step.run()
    spec = step.cluster.jobs[NAME]["spec"]
    patch = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    assert patch["template"]["spec"]["template"]["spec"]["volumes"] == [
        {"name": "shared", "secret": {"secretName": "s", "defaultMode": 420}}
    ]
    assert spec["trainer"]["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": "4", "memory": "64Gi"}


def test_storage_is_a_uri_or_an_absolute_path() -> None:
    with pytest.raises(ValueError, match="is relative"):
        TrainJobSettings(storage="shared", image="any")
