"""``triptych submit``: KFP's own client against a server of its API, and a real ledger that says how runs ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import Result

from components.snapshot_data.component import snapshot_data
from components.snapshot_data.folder import SnapshotError
from components.snapshot_data.snapshot import take_snapshot
from lineage.entries import Closed, Leased
from lineage.records import read_records
from pipelines.commands.submit import STATUS, trigger_of
from pipelines.errors import RequestError
from pipelines.submission import Kfp
from tests.cluster.desk import MODEL, Desk
from tests.cluster.desk import desk as desk
from tests.cluster.desk import portraits as portraits
from tests.cluster.kfp import KfpServer
from tests.runs import TRIPTYCH
from tests.servers.governed import free_port


def test_a_run_is_submitted_as_todays_pipeline_with_what_each_step_needs(desk: Desk) -> None:
    done = desk.submit("--trigger", "drift: faces")
    assert done.exit_code == 0, done.output
    (run,) = desk.kfp.pipelines.runs.values()
    (experiment,) = desk.kfp.pipelines.experiments.values()
    assert experiment["namespace"] == "kubeflow" and run["experiment_id"] == experiment["experiment_id"]
    assert run["service_account"] == "triptych-run"
    told = run["runtime_config"]["parameters"]
    assert told["run"]["trigger"] == "drift faces" and "local, unauthenticated" in told["run"]["user"]
    assert told["trainjob"]["image"] == f"r.example/torch@sha256:{'2' * 64}"
    assert "id" not in told["run"] and "cluster" not in told
    assert told["data"]["source"] == str(desk.portraits)
    executors = run["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    images = {name.removeprefix("exec-"): one["container"]["image"] for name, one in executors.items()}
    assert images["gate"].startswith("r.example/data@") and images["fine-tune"].startswith("r.example/torch@")
    assert run["run_id"] in done.output


@pytest.mark.parametrize(
    ("outcome", "decision", "status", "said"),
    [
        ("promoted", "promote", 0, "promoted"),
        ("judged", "hold", STATUS["held"], "held"),
        ("judged", "promote", STATUS["held"], "a person decides"),
        ("judged", "reject", STATUS["rejected"], "rejected"),
        ("judged", "invalid", STATUS["rejected"], "rejected"),
        ("nothing-new", "", STATUS["nothing-new"], "nothing-new"),
        ("stale", "promote", STATUS["stale"], "stale"),
        ("busy", "", STATUS["busy"], "busy"),
        ("failed", "", 1, "failed"),
    ],
)
def test_what_a_run_came_to_is_the_exit_status(desk: Desk, outcome: str, decision: str, status: int, said: str) -> None:
    desk.kfp.pipelines.ends["*"] = ["PENDING", "RUNNING", "SUCCEEDED"]

    def end(pipelines: Any) -> None:
        if pipelines.looks == 2:
            (run,) = pipelines.runs
            if decision:
                desk.judge(run, decision)
            desk.append(Closed(run=run, outcome=outcome))

    desk.kfp.pipelines.on_look = end
    done = desk.submit("--wait")
    assert done.exit_code == status and said in done.output, done.output


def test_statuses_are_distinct() -> None:
    assert len(set(STATUS.values())) == len(STATUS) and not set(STATUS.values()) & {2, 130}


def test_a_run_that_succeeded_and_was_not_closed_has_failed(desk: Desk) -> None:
    desk.kfp.pipelines.ends["*"] = ["SUCCEEDED"]
    done = desk.submit("--wait")
    assert done.exit_code == 1 and "nobody closed the run" in done.output


def test_a_cancelled_run_ends_the_waiting(desk: Desk) -> None:
    desk.kfp.pipelines.ends["*"] = ["RUNNING", "CANCELED"]
    assert desk.submit("--wait").exit_code == 1


def test_nothing_new_costs_no_run_and_leaves_a_signed_record(desk: Desk) -> None:
    desk.settle()
    done = desk.submit("--if-new", "--trigger", "new-data")
    assert done.exit_code == STATUS["nothing-new"] and "judged on the same terms: reject" in done.output, done.output
    assert desk.kfp.pipelines.asked == []
    state = desk.home.open().state
    (run,) = [name for name in state.outcomes if name.startswith("submit-")]
    assert state.outcomes[run] == "nothing-new"
    records = read_records(str(desk.folder / "records"), run)
    assert set(records) == {"nothing-new", "close-run"}
    assert records["nothing-new"].trigger == "new-data" and records["nothing-new"].inputs["snapshot"]
    assert {step: record.digest() for step, record in records.items()} == state.records[run]
    again = desk.submit("--if-new", "--accept", "nothing-new")
    assert again.exit_code == 0, again.output


def test_what_is_new_is_submitted(desk: Desk) -> None:
    done = desk.submit("--if-new")
    assert done.exit_code == 0 and len(desk.kfp.pipelines.runs) == 1, done.output
    assert [run for run in desk.home.open().state.outcomes if run.startswith("submit-")] == []


def test_the_run_takes_the_snapshot_that_was_asked_about(desk: Desk, tmp_path: Path) -> None:
    desk.portraits = Path(shutil.copytree(desk.portraits, tmp_path / "portraits"))
    assert desk.submit("--if-new").exit_code == 0
    (run,) = desk.kfp.pipelines.runs.values()
    told = run["runtime_config"]["parameters"]
    asked = take_snapshot(desk.configuration.data, tmp_path / "asked")
    assert told["data"]["snapshot"] == asked.digest

    metadata = desk.portraits / "metadata.jsonl"
    metadata.write_text("".join(metadata.read_text().splitlines(keepends=True)[1:]))  # before the run gets to it

    def step(context: dict[str, Any], name: str) -> Any:
        return snapshot_data.python_func(context, name, told["data"], SimpleNamespace(path=str(tmp_path / name)))

    context = told["run"] | {"keys": {"run": desk.home.uri("run")}}
    assert step(context, "pinned")[0] == asked.digest
    assert (tmp_path / "pinned" / "manifest.parquet").read_bytes() == (tmp_path / "asked/manifest.parquet").read_bytes()
    with pytest.raises(SnapshotError, match=f"has changed: {asked.digest} was asked for, and sha256:.* submit again"):
        step(context | {"state": ""}, "lost")
    assert not (tmp_path / "lost").exists()


TOLD = ("run ", "Run details: ", "Experiment details: ")


def lines(done: Result) -> list[str]:
    """The lines of an error; tracebacks would be many."""
    return [line for line in done.output.splitlines() if not line.startswith(TOLD)]


def test_a_ledger_that_is_away_is_one_error_and_leaves_nothing(desk: Desk) -> None:
    desk.cluster["ledger"] = f"http://127.0.0.1:{free_port()}"
    done = desk.submit("--if-new")
    (said,) = lines(done)
    assert done.exit_code == 2 and said.startswith("error: nothing was submitted: the ledger at http://127"), said
    assert "does not answer" in said and desk.kfp.pipelines.asked == []
    assert not (desk.folder / "records").exists()


def test_a_ledger_that_is_away_when_the_run_ended_does_not_make_it_fail(desk: Desk) -> None:
    desk.kfp.pipelines.ends["*"] = ["SUCCEEDED"]
    desk.cluster["ledger"] = f"http://127.0.0.1:{free_port()}"
    done = desk.submit("--wait")
    (run,), (said,) = desk.kfp.pipelines.runs, lines(done)
    assert done.exit_code == 2 and "does not answer" in said and f"follow it with --follow {run}" in said
    del desk.cluster["ledger"]
    desk.append(Closed(run=run, outcome="promoted"))
    assert desk.submit("--follow", run).exit_code == 0


def test_a_data_store_that_is_away_is_one_error_and_leaves_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary of a bucket")
    desk.data["source"] = "s3://portraits/new"
    done = desk.submit("--if-new")
    (said,) = lines(done)
    assert done.exit_code == 2 and "s3://portraits/new" in said and "canary" not in said, said
    assert desk.kfp.pipelines.asked == [] and not (desk.folder / "records").exists()
    assert desk.home.open().state.outcomes == {}


def test_a_store_for_records_that_is_away_is_one_error_and_leaves_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary of a bucket")
    desk.settle()
    before = desk.home.open().state.size
    desk.cluster["records"] = "s3://models/records"
    done = desk.submit("--if-new")
    said = lines(done)[-1]
    assert done.exit_code == 2 and "the record of step 'nothing-new' cannot be written to models/records" in said, said
    assert len(lines(done)) == 1 and "canary" not in done.output and desk.kfp.pipelines.asked == []
    assert desk.home.open().state.size == before


def test_a_token_that_stays_expired_while_waiting_is_one_error(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kfp.wait, "__defaults__", (0.05, 1.0))
    monkeypatch.setenv("TRIPTYCH_KFP_TOKEN", "good for now")
    pipelines = desk.kfp.pipelines
    pipelines.tokens = {"good for now"}
    pipelines.ends["*"], pipelines.on_look = ["RUNNING"], lambda now: setattr(now, "tokens", {"another one"})
    done = desk.submit("--wait")
    (run,), (said,) = pipelines.runs, lines(done)
    assert done.exit_code == 2 and "answers 401: it wants a token that is valid now" in said, said
    assert f"The run may go on; follow it with --follow {run}" in said and "good for now" not in done.output


def test_another_policy_is_refused_before_a_run_is_paid_for(desk: Desk) -> None:
    desk.home.set_policy(MODEL, {"set": "another"}, {"alpha": 0.5}, "a change")
    done = desk.submit("--if-new")
    assert done.exit_code == 2 and "policy" in done.output and desk.kfp.pipelines.asked == []


def test_a_model_that_another_run_has_is_not_submitted_twice(desk: Desk) -> None:
    desk.registry = {"model_name": MODEL, "busy": "end"}
    expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="milliseconds")
    desk.append(Leased(model=MODEL, run="other", expires=expires))
    done = desk.submit("--if-new")
    assert done.exit_code == STATUS["busy"] and "run other has" in done.output and desk.kfp.pipelines.asked == []


def test_the_lease_of_a_dead_run_keeps_nobody(desk: Desk) -> None:
    desk.registry = {"model_name": MODEL, "busy": "end"}
    expires = (datetime.now(UTC) + timedelta(seconds=0.3)).isoformat(timespec="milliseconds")
    desk.append(Leased(model=MODEL, run="other", expires=expires))
    time.sleep(0.4)
    assert desk.submit("--if-new").exit_code == 0 and len(desk.kfp.pipelines.runs) == 1


def test_two_submits_at_once_are_two_runs_that_the_lease_keeps_apart(desk: Desk) -> None:
    processes = [subprocess.Popen([TRIPTYCH, "submit", "--config", desk.path]) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert len(desk.kfp.pipelines.runs) == 2  # the plan step takes the model's lease, see tests/lineage


def test_tokens_are_read_anew_and_may_come_late(desk: Desk) -> None:
    token = desk.folder / "token"
    token.write_text("first")
    pipelines = desk.kfp.pipelines
    pipelines.tokens, pipelines.ends["*"] = {"first"}, ["RUNNING", "RUNNING", "RUNNING", "SUCCEEDED"]

    def rotate(now: Any) -> None:
        if now.looks == 1:
            pipelines.tokens = {"second"}  # before the kubelet writes it
            threading.Timer(1, token.write_text, ["second"]).start()
        if now.looks == 2:
            desk.append(Closed(run=next(iter(now.runs)), outcome="promoted"))

    pipelines.on_look = rotate
    done = desk.submit("--wait", "--token-file", str(token))
    assert done.exit_code == 0, done.output
    used = [given for _, given in pipelines.asked]
    assert used[0] == "Bearer first" and used[-1] == "Bearer second"


def test_a_token_from_the_environment(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.kfp.pipelines.tokens = {"by variable"}
    monkeypatch.setenv("TRIPTYCH_KFP_TOKEN", "by variable")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary of a bucket")
    done = desk.submit()
    assert done.exit_code == 0
    sent = json.dumps([desk.kfp.pipelines.runs, desk.kfp.pipelines.experiments])
    assert "by variable" not in sent + done.output and "canary of a bucket" not in sent + done.output


@pytest.mark.parametrize(("status", "said"), [(401, "a token that is valid now"), (403, "the right to run pipelines")])
def test_who_may_not_is_told(desk: Desk, status: int, said: str) -> None:
    desk.kfp.pipelines.trouble.append(("GET experiments", status))
    done = desk.submit()
    assert done.exit_code == 2 and said in done.output and not desk.kfp.pipelines.runs


def test_a_token_that_is_not_there_is_named(desk: Desk) -> None:
    done = desk.submit("--token-file", str(desk.folder / "nothing"))
    assert done.exit_code == 2 and "there is no token for KFP at" in done.output


def test_a_kfp_that_is_away_is_named_in_time(desk: Desk) -> None:
    desk.kfp.stop()
    began = time.monotonic()
    done = desk.submit()
    assert done.exit_code == 2 and "does not answer" in done.output, done.output
    assert time.monotonic() - began < 60
    desk.kfp = KfpServer()


def test_short_outages_while_waiting_are_borne(desk: Desk) -> None:
    pipelines = desk.kfp.pipelines
    pipelines.trouble += [("GET runs", 503), ("GET runs", 429), ("GET runs", 500)]
    pipelines.ends["*"] = ["SUCCEEDED"]
    pipelines.on_look = lambda now: desk.append(Closed(run=next(iter(now.runs)), outcome="promoted"))
    assert desk.submit("--wait").exit_code == 0


def test_an_unknown_run_is_told(desk: Desk) -> None:
    done = desk.submit("--follow", "no-such-run")
    assert done.exit_code == 2 and "404" in done.output


def test_ctrl_c_leaves_the_run_and_says_how_to_follow_it(desk: Desk) -> None:
    command = [TRIPTYCH, "submit", "--config", desk.path, "--wait"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("run "):
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    (run,) = desk.kfp.pipelines.runs
    assert process.returncode == 130 and f"--follow {run}" in err, (out, err)
    desk.kfp.pipelines.ends["*"] = ["SUCCEEDED"]
    desk.append(Closed(run=run, outcome="promoted"))
    assert desk.submit("--follow", run).exit_code == 0


def test_it_works_on_a_home_that_cannot_be_written(desk: Desk) -> None:
    home = desk.folder / "home"
    home.mkdir(mode=0o500)
    environment = {**os.environ, "HOME": str(home), "MPLCONFIGDIR": str(desk.folder)}
    command = [TRIPTYCH, "submit", "--config", str(desk.path)]
    if os.getuid() == 0:  # whom no permission keeps out
        command = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f"mount --bind -o ro {home} {home} && exec {' '.join(map(str, command))}",
        ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("job", "cron", "said", "trigger"),
    [
        ("", "", "", "by-hand"),
        ("retrain-29720340", "retrain", "", "schedule retrain 2026-07-05T03:00Z"),
        ("now-please", "retrain", "", "by-hand job now-please"),
        ("by-hand-anna", "retrain", "", "by-hand job by-hand-anna"),
        ("new-data-portraits-7", "retrain", "", "new-data job new-data-portraits-7"),
        ("drift-faces", "retrain", "", "drift job drift-faces"),
        ("drifting", "retrain", "", "by-hand job drifting"),
        ("retrain-29720340", "retrain", "drift: faces", "drift faces"),
        ("retrain-29720340", "", "", "by-hand job retrain-29720340"),
    ],
)
def test_triggers(monkeypatch: pytest.MonkeyPatch, job: str, cron: str, said: str, trigger: str) -> None:
    monkeypatch.setenv("TRIPTYCH_JOB", job)
    monkeypatch.setenv("TRIPTYCH_CRONJOB", cron)
    assert trigger_of(said) == trigger


def test_an_unknown_trigger_is_refused() -> None:
    with pytest.raises(RequestError, match="is none of new-data"):
        trigger_of("whim")


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--if-new", "--force"], "give one of them"), (["--accept", "anything"], "is none of promoted")],
)
def test_bad_requests(desk: Desk, options: list[str], said: str) -> None:
    done = desk.submit(*options)
    assert done.exit_code == 2 and said in done.output and desk.kfp.pipelines.asked == []
