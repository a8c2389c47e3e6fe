"""Each step's container is killed once while it works, and removed once as it starts; nothing happens twice."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import docker
import pytest

from lineage.embedded import Embedded
from lineage.entries import Closed, Judged, Moved, Recorded, Registered
from lineage.registry import Registry
from pipelines.containers import ROOT_LABEL, step_of
from tests.runs import TRIPTYCH, cut_down, some_portraits, triptych

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]

STEPS = (
    *("snapshot-data", "plan", "validate-data", "encode-features", "fine-tune", "evaluate", "gate", "register"),
    *("promote", "close-run", "nothing-new"),
)
"""In the order in which a run that is begun again comes to them."""
WAYS = ("SIGKILL", "removal")


def lose(client: docker.DockerClient, work: Path, configuration: Path, step: str, way: str) -> str:
    """Begin a run, and kill or remove the container of one step; what the run printed."""
    command = [TRIPTYCH, "retrain", "--config", configuration, "--runner", "containers", "--work-dir", work]
    log = work.parent / f"{step}-{way}.log"
    with log.open("w") as stream:
        run = subprocess.Popen([str(part) for part in command], stdout=stream, stderr=stream, env=os.environ.copy())
    ours, until = {"label": f"{ROOT_LABEL}={work / 'pipeline'}"}, time.monotonic() + 600
    while True:
        found = [c for c in client.containers.list(filters=ours) if step_of(c.attrs["Config"]["Cmd"]) == step]
        if found:
            break
        assert run.poll() is None, f"the run ended before {step}:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < until, f"{step} never started"
        time.sleep(0.1)
    if way == "SIGKILL":
        said = next(found[0].logs(stream=True, follow=True), b"")
        assert said, f"{step} ended before it said anything"
        found[0].kill("SIGKILL")  # an error where it has ended: then nothing was lost, and nothing tried
    else:
        found[0].remove(force=True)
    assert run.wait(600) != 0, f"the run survived the loss of {step}:\n{log.read_text()[-3000:]}"
    return log.read_text()


@pytest.mark.drill
@pytest.mark.parametrize("first", WAYS)
def test_a_run_survives_the_loss_of_any_of_its_containers(
    image: str, client: docker.DockerClient, tmp_path: Path, first: str
) -> None:
    """Ways take turns; beginning with the other one, every step is lost in both.

    Two runs register: the one whose promote step is lost, and the next, which has the same candidate judged anew.
    """
    shorter = {"steps": 50, "selection": {"selection_set": None}}
    configuration = cut_down(tmp_path, some_portraits("new", tmp_path / "portraits"), training=shorter)
    work, turn = tmp_path / "work", WAYS.index(first)
    for number, step in enumerate(STEPS):
        told = lose(client, work, configuration, step, WAYS[(number + turn) % 2])
        assert step in told
    ended = triptych("retrain", "--config", configuration, "--runner", "containers", "--work-dir", work)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ledger = Embedded(work / "lineage").open()
    bodies = [entry.body for entry in ledger.entries()]
    registered = [body for body in bodies if isinstance(body, Registered)]
    judged = {body.verdict: body.run for body in bodies if isinstance(body, Judged)}
    moved = [(body.action, body.version, body.run) for body in bodies if isinstance(body, Moved)]
    assert len({body.candidate for body in registered}) == 1
    assert [body.version for body in registered] == ["1", "2"]
    assert [judged[body.verdict] for body in registered] == [body.run for body in registered]
    assert len({body.run for body in registered}) == 2
    judging = [body.run for body in bodies if isinstance(body, Judged)]
    assert sorted(judging) == sorted(set(judging)), "a run was judged twice"
    assert moved == [("promote", "2", registered[1].run)]
    assert ledger.state.leases == {}
    store = Registry(f"sqlite:///{work / 'mlflow.db'}", "portrait-avatars")
    assert [(version.number, version.aliases) for version in store.versions()] == [("1", ()), ("2", ("champion",))]
    experiment = store.client.get_experiment_by_name("portrait-avatars")
    assert experiment is not None
    shown = [run.info for run in store.client.search_runs([experiment.experiment_id])]
    assert len(shown) == len({info.run_name for info in shown}) and not any(info.status == "RUNNING" for info in shown)
    closed = [body.run for body in bodies if isinstance(body, Closed)]
    assert sorted(closed) == sorted({body.run for body in bodies if isinstance(body, Recorded)})
    assert client.containers.list(all=True, filters={"label": f"{ROOT_LABEL}={work / 'pipeline'}"}) == []
    audited = triptych("audit", "champion", "--work-dir", work)
    assert audited.returncode == 0, audited.stdout + audited.stderr
