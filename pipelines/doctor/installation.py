"""What the manifests and the operator's secrets must have made."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any
from zoneinfo import available_timezones

import yaml

from pipelines.doctor.cluster import Cluster, Fault
from pipelines.doctor.platform import stale

SECRETS = {
    "triptych-run-key": ("run.pem", "run.pub"),
    "triptych-gate-key": ("gate.pem", "gate.pub"),
    "triptych-promotion-key": ("promotion.pem", "promotion.pub"),
    "triptych-witness-key": ("witness.pem", "witness.pub"),
    "triptych-database": ("mlflow", "ledger"),
    "triptych-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "triptych-serve-key": ("api-key",),
}
MAPS = {
    "triptych-trust": ("root-id", "channel-root.json"),
    "triptych-places": ("artifacts", "witness", "channel"),
    "triptych-configuration": ("retrain.yaml",),
}
PULLING = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull")
HEARTBEAT, SCHEDULE = 2.0, 36.0
"""Hours without a reconciler, and without a submission, that went well."""
APPLY = "kubectl apply -k infra/kubernetes/overlays/…"
PLACEHOLDER = "sha256:" + "0" * 64
ADMISSION = "admissionregistration.k8s.io/v1"


def namespace(cluster: Cluster) -> Iterator[Fault]:
    """The namespace and its Pod Security."""
    found = cluster.get(f"/api/v1/namespaces/{cluster.namespace}")
    if found is None:
        yield Fault(f"there is no namespace {cluster.namespace}", APPLY)
        return
    labels = found["metadata"].get("labels", {})
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield Fault(f"{cluster.namespace} does not enforce Pod Security restricted", f"{APPLY} sets the label")
    if labels.get("triptych.dev/governed") != "true":
        yield Fault(f"{cluster.namespace} has no label triptych.dev/governed: the gate key is free", APPLY)


def contents(cluster: Cluster) -> Iterator[Fault]:
    """Secrets and ConfigMaps with what must be in them."""
    for kind, wanted in (("secrets", SECRETS), ("configmaps", MAPS)):
        for name, keys in wanted.items():
            found = cluster.mine(kind, name)
            if found is None:
                yield Fault(f"there is no {kind[:-1]} {name}", "docs/operate.md, Secrets, says how it is made")
            elif missing := [key for key in keys if not (found.get("data") or {}).get(key)]:
                yield Fault(f"{kind[:-1]} {name} has no {', '.join(missing)}", "make it anew: docs/operate.md, Secrets")


def buckets(cluster: Cluster) -> Iterator[Fault]:
    """The buckets that the places name, asked with the secret's own credentials (HEAD: nothing is written)."""
    secret, places = cluster.mine("secrets", "triptych-s3"), cluster.mine("configmaps", "triptych-places")
    wanted = sorted({place.split("/")[2] for place in _data(places).values() if place.startswith("s3://")})
    if not secret or not wanted:
        return
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    told = {key: base64.b64decode(value).decode() for key, value in _data(secret).items()}
    s3 = boto3.client(
        "s3",
        aws_access_key_id=told.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=told.get("AWS_SECRET_ACCESS_KEY"),
        endpoint_url=told.get("AWS_ENDPOINT_URL_S3") or None,
        region_name=told.get("AWS_DEFAULT_REGION") or "us-east-1",
        config=Config(connect_timeout=2, read_timeout=3, retries={"max_attempts": 0}),
    )
    for bucket in wanted:
        try:
            s3.head_bucket(Bucket=bucket)
        except ClientError as error:
            why = {"404": "is not there: make it", "403": "refuses the credentials of secret triptych-s3"}
            code = str(error.response["Error"]["Code"])
            yield Fault(f"bucket {bucket} {why.get(code, f'answers {code}')}", "docs/operate.md, Buckets")
        except BotoCoreError as error:
            yield Fault(
                f"bucket {bucket} could not be asked from here: {type(error).__name__}",
                "check AWS_ENDPOINT_URL_S3; an address inside the cluster is reached from inside only",
            )
            return


def _data(found: Any) -> Mapping[str, str]:
    return (found or {}).get("data") or {}


def images(cluster: Cluster) -> Iterator[Fault]:
    """The images: named by digest, and pulled."""
    named = cluster.mine("podtemplates", "triptych-images")
    for one in named["template"]["spec"]["containers"] if named else ():
        if PLACEHOLDER in one["image"] or "@sha256:" not in one["image"]:
            yield Fault(f"image {one['image']} is a placeholder or names no digest", "kustomize edit set image, apply")
    for pod in cluster.mine("pods"):
        status = pod.get("status", {})
        for one in [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]:
            waiting = one.get("state", {}).get("waiting", {})
            if waiting.get("reason") in PULLING:
                told = f"image {one['image']} cannot be pulled ({pod['metadata']['name']}): {waiting['reason']}"
                yield Fault(told, "push it, or give the namespace's service accounts imagePullSecrets")


def storage(cluster: Cluster) -> Iterator[Fault]:
    """Volumes and the classes that make them."""
    classes = cluster.items("/apis/storage.k8s.io/v1/storageclasses")
    known, default = {one["metadata"]["name"] for one in classes}, "storageclass.kubernetes.io/is-default-class"
    for claim in ("triptych-shared", "triptych-mlflow"):
        found = cluster.mine("persistentvolumeclaims", claim)
        if found is None:
            yield Fault(f"there is no volume claim {claim}", APPLY)
            continue
        name = found["spec"].get("storageClassName")
        if name and name not in known:
            yield Fault(f"{claim} asks for storage class {name}, which is not there", "set another one in the overlay")
        elif not name and not any(one["metadata"].get("annotations", {}).get(default) == "true" for one in classes):
            yield Fault(
                f"{claim} names no storage class, and none is the default", "set storageClassName in the overlay"
            )
        if found.get("status", {}).get("phase") == "Lost":
            yield Fault(f"{claim} has lost its volume", "restore it: docs/operate.md, Back up and restore")


def server(cluster: Cluster) -> Iterator[Fault]:
    """The governed server, its migration, and the channel that it serves."""
    job = cluster.mine("jobs", "triptych-migrate", "batch/v1")
    ended = {c["type"] for c in (job or {}).get("status", {}).get("conditions", []) if c["status"] == "True"}
    if job is None or "Complete" not in ended:
        told = "failed" if "Failed" in ended else "has not run to its end"
        yield Fault(f"the migration {told}", f"kubectl -n {cluster.namespace} logs job/triptych-migrate")
    found = cluster.mine("deployments", "triptych-mlflow", "apps/v1")
    if not (found or {}).get("status", {}).get("availableReplicas"):
        yield Fault("MLflow is not up", f"kubectl -n {cluster.namespace} logs deploy/triptych-mlflow")
        return
    latest = cluster.through("triptych-mlflow:5000", "/api/2.0/triptych/channel/metadata/timestamp.json")
    try:
        late = stale(
            yaml.safe_load(latest)["signed"]["expires"] if isinstance(latest, str) else latest["signed"]["expires"], 0
        )
    except (TypeError, KeyError, ValueError):
        yield Fault("MLflow does not answer, or has no channel", "triptych channel init; then look at its log")
        return
    if late:
        yield Fault(
            f"the channel ran out {late:.1f} h ago: servers stop drawing", "triptych reconcile; look at its CronJob"
        )


def schedules(cluster: Cluster) -> Iterator[Fault]:
    """The two CronJobs: there, in a time zone that exists, going well."""
    for name, hours, told in (
        ("triptych-retrain", SCHEDULE, "nothing was submitted or found unchanged"),
        ("triptych-reconcile", HEARTBEAT, "ledger and channel are stale: nothing reconciled them"),
    ):
        found = cluster.mine("cronjobs", name, "batch/v1")
        if found is None:
            yield Fault(f"there is no CronJob {name}", APPLY)
            continue
        spec, last = found["spec"], found.get("status", {}).get("lastSuccessfulTime")
        if spec.get("suspend"):
            yield Fault(
                f"CronJob {name} is suspended", f'kubectl patch cronjob {name} -p \'{{"spec":{{"suspend":false}}}}\''
            )
        if (zone := spec.get("timeZone")) and zone not in available_timezones():
            yield Fault(f"CronJob {name}: time zone {zone} is not known here", "set one of the IANA database")
        since = last or found["metadata"]["creationTimestamp"]
        if (late := stale(since, hours)) and not spec.get("suspend"):
            yield Fault(f"{told} for {late:.0f} h", f"kubectl -n {cluster.namespace} get jobs; read the last one's log")


def policies(cluster: Cluster) -> Iterator[Fault]:
    """Admission and network policies."""
    for kind, name in (
        ("mutatingadmissionpolicies", "triptych-gate-account"),
        ("mutatingadmissionpolicybindings", "triptych-gate-account"),
        ("validatingadmissionpolicies", "triptych-gate-key"),
        ("validatingadmissionpolicybindings", "triptych-gate-key"),
    ):
        if cluster.get(f"/apis/{ADMISSION}/{kind}/{name}") is None:
            yield Fault(f"there is no {kind} {name}: any pod may mount the gate key", APPLY)
    if not any(
        p["metadata"]["name"] == "default-deny" for p in cluster.mine("networkpolicies", "", "networking.k8s.io/v1")
    ):
        yield Fault("no network policy denies by default", APPLY)


def resources(cluster: Cluster) -> Iterator[Fault]:
    """What the steps' table asks for: accelerators, nodes, queues, quota, runtimes."""
    from pydantic import ValidationError

    from pipelines.cluster import NETWORKS, ClusterSettings

    content = yaml.safe_load(
        _data(cluster.mine("configmaps", "triptych-configuration")).get("retrain.yaml", "") or "{}"
    )
    root, named = _data(cluster.mine("configmaps", "triptych-trust")).get("root-id", "-"), {"data": "-", "torch": "-"}
    try:
        table = ClusterSettings.model_validate({"root": root, "images": named, **content.get("cluster", {})})
    except (ValidationError, AttributeError) as error:
        yield Fault(
            f"the configuration's section cluster is wrong: {str(error).splitlines()[0]}", "correct retrain.yaml"
        )
        return
    rows = [table.needs(step) for step in NETWORKS]
    nodes = cluster.items("/api/v1/nodes")
    for row in {
        (row.accelerator, tuple(sorted(row.node_selector.items()))): row for row in rows if row.accelerators
    }.values():
        fitting = [n for n in nodes if row.node_selector.items() <= n["metadata"].get("labels", {}).items()]
        if not fitting:
            yield Fault(f"no node has the labels {dict(row.node_selector)}", "label one, or change cluster.steps")
        elif not any(
            int(n["status"].get("allocatable", {}).get(row.accelerator, 0)) >= row.accelerators for n in fitting
        ):
            yield Fault(f"no node has {row.accelerators} {row.accelerator} to give", "add one, or its device plug-in")
    job = content.get("trainjob") or {}
    runtime = job.get("runtime", "")
    if runtime and not cluster.get(f"/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/{runtime}"):
        yield Fault(f"there is no ClusterTrainingRuntime {runtime}", "use the component distributed of the overlay")
    label = "kueue.x-k8s.io/queue-name"
    for queue in sorted(
        {row.labels[label] for row in rows if label in row.labels} | {*filter(None, [job.get("labels", {}).get(label)])}
    ):
        found = cluster.mine("localqueues", queue, "kueue.x-k8s.io/v1beta2")
        if found is None:
            yield Fault(f"there is no LocalQueue {queue}: whatever names it waits for ever", APPLY)
            continue
        name = found["spec"]["clusterQueue"]
        behind = cluster.get(f"/apis/kueue.x-k8s.io/v1beta2/clusterqueues/{name}")
        groups = ((behind or {}).get("spec", {})).get("resourceGroups", [])
        covered = {resource for group in groups for resource in group["coveredResources"]}
        if behind is None:
            yield Fault(
                f"LocalQueue {queue} leads to ClusterQueue {name}, which is not there", "have it made, with a quota"
            )
        elif missing := sorted({row.accelerator for row in rows if row.accelerators} - covered):
            yield Fault(f"ClusterQueue {name} has no quota of {', '.join(missing)}", "have it added to resourceGroups")
    for quota in cluster.mine("resourcequotas"):
        hard, used = (quota.get("status", {}).get(which, {}) for which in ("hard", "used"))
        if full := [name for name in hard if hard[name] == used.get(name)]:
            yield Fault(
                f"the quota {quota['metadata']['name']} is used up: {', '.join(full)}", "raise it, or free some"
            )


CHECKS = (namespace, contents, buckets, images, storage, server, schedules, policies, resources)
