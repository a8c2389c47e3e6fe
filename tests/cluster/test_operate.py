"""Every command of `docs/operate.md`: which test or workflow runs it, and those run here that need no cluster."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from boto3 import client

from lineage.embedded import Embedded
from lineage.ledger import Ledger
from pipelines.commands.submit import CRON_JOB, JOB, trigger_of
from pipelines.doctor.cluster import EXPECTED
from tests.apiserver.conftest import rendered
from tests.cluster.answers import AnswersServer
from tests.cluster.test_rendering import OPERATE, ROOT
from tests.cluster.test_rendering import pytestmark as pytestmark
from tests.runs import AVATARS
from tests.servers.engines import s3

DESK, HERE = "tests/cluster/test_desk.py", "tests/cluster/test_operate.py"
RESTORE, SERVER = "tests/servers/test_restore.py", "tests/servers/test_operate.py"
MANIFESTS, TOKENS = "tests/apiserver/test_manifests.py", "tests/apiserver/test_tokens.py"
WORKFLOW, UP = ".github/workflows/kind.yaml", "infra/kind/up.sh"
RUN_BY: dict[str, tuple[str, str]] = {
    "triptych doctor --context CLUSTER": ("tests/cluster/test_doctor.py", "test_a_cluster_that_lacks_nothing_has_no"),
    "kubectl apply -k infra/kubernetes/overlays/ours": (HERE, "test_an_overlay_of_ones_own_is_rendered"),
    "triptych submit --config retrain.yaml --context": (DESK, "test_the_first_run_as_documented"),
    "cp -r infra/kubernetes/overlays/production": (HERE, "test_an_overlay_of_ones_own_is_rendered"),
    "triptych ledger init": (HERE, "test_secrets_are_made_as_documented"),
    "triptych policy set --config policy.yaml": (HERE, "test_secrets_are_made_as_documented"),
    "triptych ledger export ledger.jsonl": (HERE, "test_secrets_are_made_as_documented"),
    "triptych ledger import ledger.jsonl ledger.root.pub --into": (HERE, "test_secrets_are_made_as_documented"),
    "triptych channel init --place": (HERE, "test_secrets_are_made_as_documented"),
    "kubectl apply -f infra/kubernetes/base/namespace.yaml": (MANIFESTS, "test_every_manifest_is_accepted_without"),
    "kubectl -n triptych create secret generic": (HERE, "test_secrets_are_made_as_documented"),
    "kubectl -n triptych create configmap": (HERE, "test_secrets_are_made_as_documented"),
    'sed "s|IMAGE|': (
        UP,
        'sed "s|IMAGE|localhost:5001/triptych-data@$data_digest|" infra/kind/load.yaml | k apply -f -',
    ),
    "kubectl -n triptych wait --for=condition=Ready pod/triptych-load": (
        UP,
        "k wait --for=condition=Ready pod/triptych",
    ),
    "tar -C FOLDER": (UP, "k exec -i triptych-load -- tar -C /shared -xf -"),
    "kubectl -n triptych delete pod triptych-load": (UP, "k delete pod triptych-load"),
    "kubectl -n kubeflow port-forward service/ml-pipeline": (WORKFLOW, "port-forward service/ml-pipeline 8888:8888 &"),
    "kubectl -n triptych port-forward service/triptych-mlflow": (WORKFLOW, "service/triptych-mlflow 5000:5000 &"),
    "kubectl -n triptych create token triptych-submit --audience": (TOKENS, 'audience="pipelines.kubeflow.org"'),
    "kubectl -n triptych create token triptych-submit": (WORKFLOW, "$(kubectl create token triptych-submit)"),
    "triptych policy set --server": (SERVER, "test_an_officer_sets_the_policy_as_documented"),
    "kubectl -n triptych create job --from=cronjob/triptych-retrain": (
        HERE,
        "test_a_job_made_from_the_schedule_says_why",
    ),
    "kubectl -n triptych patch cronjob triptych-retrain": (HERE, "test_the_schedule_is_changed_as_documented"),
    "kubectl -n triptych scale deployment triptych-mlflow": (HERE, "test_an_upgrade_begins_as_documented"),
    "kubectl -n triptych delete job triptych-migrate": (HERE, "test_an_upgrade_begins_as_documented"),
    "kubectl -n triptych get cronjob,jobs": (WORKFLOW, "kubectl get pods,jobs"),
    "kubectl -n triptych logs job/": (WORKFLOW, "kubectl logs job/"),
    "kubectl -n triptych logs POD": (WORKFLOW, "--tail=200 --all-containers"),
    "triptych doctor --server": ("tests/cluster/test_doctor.py", "test_a_lease_whose_run_is_no_more_is_told"),
    "triptych submit --if-new": ("tests/cluster/test_submit.py", "test_what_is_new_is_submitted"),
    "triptych rollback": ("tests/servers/test_command_line.py", 'call("rollback", "1", "--reason"'),
    "triptych ledger revoke": ("tests/pipelines/test_governance.py", '"ledger", "revoke", "gate", "--since"'),
    "triptych ledger export --server": (RESTORE, "test_what_is_backed_up_comes_back_whole"),
    "pg_dump --format=custom": (RESTORE, '"pg_dump", "--format=custom", "--no-owner", "--file"'),
    "pg_restore --no-owner": (RESTORE, '"pg_restore", "--no-owner", "--exit-on-error", "--dbname"'),
    "triptych reconcile --server": (RESTORE, 'call("reconcile", "--server"'),
    "triptych ledger verify": (RESTORE, '"ledger", "verify", exported, backup / "restored.root.pub", "--checkpoint"'),
}
"""Beginning of a command -> the file that has it run, and what stands there."""
SYNTAX = ("keys=", "for ", "done")


def blocks() -> list[str]:
    """The fenced blocks, without comments and with continued lines joined."""
    found = re.findall(r"^```\n(.*?)^```$", OPERATE.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(r"\\\n\s*", "", re.sub(r"\s{2,}#.*", "", block)) for block in found]


def commands(*containing: str) -> list[str]:
    """The commands of those blocks and those in the text, or those of them with one of the texts ``containing``."""
    lines = [line.strip() for block in blocks() for line in block.splitlines() if line.strip()]
    lines += re.findall(r"(?<!`)`((?:kubectl|triptych [a-z]+) [^`]+|triptych ledger [a-z]+)`", OPERATE.read_text())
    taken = [re.sub(r"^export \w+=\$\((.*)\)$", r"\1", line) for line in lines if not line.startswith(SYNTAX)]
    return [line for line in taken if not containing or any(text in line for text in containing)]


def test_every_command_is_run_by_a_test_or_the_workflow() -> None:
    known = {line: [start for start in RUN_BY if line.startswith(start)] for line in commands()}
    assert len(known) >= 25 and [line for line, starts in known.items() if not starts] == []
    assert RUN_BY.keys() == {max(starts, key=len) for starts in known.values()}, "some are documented no more"
    for file, text in RUN_BY.values():
        assert text in (ROOT / file).read_text(), (file, text)


def shell(
    script: str, folder: Path, kubectl: str = 'command kubectl "$@"', **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run commands as they stand in the document; ``kubectl`` says what becomes of that program's."""
    whole = f"set -euo pipefail\nkubectl() {{ {kubectl}; }}\n{script}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", whole],
        cwd=folder,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_an_overlay_of_ones_own_is_rendered(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infra", tmp_path / "infra", ignore=shutil.ignore_patterns("__pycache__"))
    shell(*commands("cp -r"), tmp_path)
    ours = tmp_path / "infra/kubernetes/overlays/ours/kustomization.yaml"
    text = ours.read_text().replace("registry.example.org", "r.example").replace("0" * 64, "1" * 64)
    ours.write_text(text)
    (apply,) = set(commands("apply -k"))
    made = yaml.safe_load_all(shell(apply.replace("apply -k", "kustomize"), tmp_path).stdout)
    images = {image for one in made for image in re.findall(r"r.example/\S+@sha256:1{64}", yaml.safe_dump(one))}
    assert {image.partition("@")[0] for image in images} == {"r.example/triptych-data", "r.example/triptych-torch"}


def test_secrets_are_made_as_documented(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(f"extends: {AVATARS / 'retrain.yaml'}\nevaluation: {{limit: 64}}\n")
    (tmp_path / "s3.env").write_text("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n")
    (tmp_path / "api-key").write_text("k")
    (block,) = [one for one in blocks() if "triptych ledger init" in one]
    database = f"sqlite:///{tmp_path / 'ledger.db'}"
    offline = 'case "$*" in apply*) ;; *) command kubectl "$@" --dry-run=client -o yaml; echo ---;; esac'
    with s3(**{"triptych-channel": False}):
        done = shell(block, tmp_path, offline, LEDGER=database, MLFLOW="postgresql://mlflow")
        home = Embedded(tmp_path / ".triptych" / "lineage")
        made_there = (
            client("s3").get_object(Bucket="triptych-channel", Key="triptych/metadata/1.root.json")["Body"].read()
        )
    assert made_there == (tmp_path / "channel-root.json").read_bytes()
    ledger = Ledger.open(database, home.root).state
    assert (
        list(ledger.policies) == ["portrait-avatars"] and ledger.policies["portrait-avatars"].reason == "first policy"
    )
    text = done.stdout[done.stdout.index("apiVersion:") :]
    made = {one["metadata"]["name"]: one for one in yaml.safe_load_all(text) if one}
    wanted = EXPECTED["contents"]["secrets"] | {"triptych-trust": EXPECTED["contents"]["configmaps"]["triptych-trust"]}
    assert [(name, key) for name, keys in wanted.items() for key in keys if key not in made[name]["data"]] == []
    assert made["triptych-trust"]["data"]["root-id"] == home.root
    assert not [one for one in made.values() if "root.pem" in one["data"]], "the root key stays at the desk"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[AnswersServer]:
    """The production overlay, applied, and as much discovery as kubectl asks for."""
    running = AnswersServer(tmp_path)
    running.known.apply(*rendered("production"))
    groups = [
        {
            "name": name,
            "versions": [found := {"groupVersion": f"{name}/v1", "version": "v1"}],
            "preferredVersion": found,
        }
        for name in ("apps", "batch")
    ]
    kinds = {"apps": ["Deployment"], "batch": ["CronJob", "Job"]}
    running.known.objects |= {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
    }
    for group, names in kinds.items():
        listed = [
            {
                "name": f"{k.lower()}s",
                "singularName": k.lower(),
                "namespaced": True,
                "kind": k,
                "verbs": ["get", "patch"],
            }
            for k in names
        ]
        answer = {"kind": "APIResourceList", "groupVersion": f"{group}/v1", "resources": listed}
        running.known.objects[f"/apis/{group}/v1"] = answer
    yield running
    running.stop()


def asked(cluster: AnswersServer, command: str, folder: Path) -> dict[str, object]:
    """What kubectl would send the API server."""
    options = f"--kubeconfig={cluster.kubeconfig} --cache-dir={folder}/cache --dry-run=client -o yaml"
    made: dict[str, object] = yaml.safe_load(
        shell(command, folder, f'command kubectl "$@" {options}', USER="anna").stdout
    )
    return made


def test_a_job_made_from_the_schedule_says_why(
    cluster: AnswersServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for command in commands("create job"):
        job = asked(cluster, command, tmp_path)
        (container,) = job["spec"]["template"]["spec"]["containers"]  # type: ignore[index]
        assert container["args"][:3] == ["triptych", "submit", "--if-new"]
        field = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}}
        assert {"name": JOB, "valueFrom": field} in container["env"]
        monkeypatch.setenv(CRON_JOB, next(one["value"] for one in container["env"] if one["name"] == CRON_JOB))
        monkeypatch.setenv(JOB, job["metadata"]["name"])  # type: ignore[index]
        said.append(trigger_of(""))
    assert said == [
        "by-hand job by-hand-anna",
        "new-data job new-data-portraits-7",
        "drift job drift-faces-2026-11",
    ]


def test_the_schedule_is_changed_as_documented(cluster: AnswersServer, tmp_path: Path) -> None:
    pause, zone, _ = commands("patch cronjob")
    assert asked(cluster, pause, tmp_path)["spec"]["suspend"] is True  # type: ignore[index]
    assert asked(cluster, zone, tmp_path)["spec"]["timeZone"] == "Asia/Tokyo"  # type: ignore[index]


def test_an_upgrade_begins_as_documented(cluster: AnswersServer, tmp_path: Path) -> None:
    (scale,), (delete,) = commands("scale deployment"), commands("delete job")
    options = f'command kubectl "$@" --kubeconfig={cluster.kubeconfig} --cache-dir={tmp_path}/cache --dry-run=client'
    assert shell(scale, tmp_path, options).stdout == "deployment.apps/triptych-mlflow scaled (dry run)\n"
    assert shell(delete, tmp_path, options).stdout == 'job.batch "triptych-migrate" deleted (dry run)\n'
