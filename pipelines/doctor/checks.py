"""What the cluster must offer, and what the manifests and the operator's secrets must have made."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import reduce
from math import inf
from types import SimpleNamespace
from typing import Any
from zoneinfo import available_timezones

import yaml

from pipelines.doctor.cluster import EXPECTED, Cluster, Fault, version_of

Found = Iterator[Fault]
SKEW = 30.0
"""Seconds by which clocks may differ."""
ENDED = ("Succeeded", "Failed", "Error")
"""Phases of an Argo workflow that is over."""
PULLING = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull")
S3 = 2.0, 3.0
"""Seconds to wait for a store: to connect, and for its answer."""
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


def at(found: Any, path: str) -> Any:
    """What lies under a path of keys, ``~`` standing for a slash in one; None where there is nothing."""
    return reduce(lambda inner, key: (inner or {}).get(key.replace("~", "/")), path.split("/"), found)


def age(text: str) -> float:
    """Hours since a time, ISO 8601."""
    return (datetime.now(UTC) - datetime.fromisoformat(text.replace("Z", "+00:00"))).total_seconds() / 3600


def objects(cluster: Cluster) -> Found:
    """Objects that must be there."""
    for one in EXPECTED["objects"]:
        path, fields = one["path"].format(**cluster.names), one.get("fields", {})
        found = cluster.get(path)
        if (found is None) is not bool(fields) and (found is None or any(at(found, f) != v for f, v in fields.items())):
            yield one["fault"], {"path": " ".join(path.split("/")[-2:])}


def contents(cluster: Cluster) -> Found:
    """Secrets and ConfigMaps with what must be in them."""
    for kind, wanted in EXPECTED["contents"].items():
        for name, keys in wanted.items():
            found, about = cluster.mine(kind, name), {"kind": kind[:-1], "name": name}
            missing = [key for key in keys if not (at(found, "data") or {}).get(key)]
            if missing:
                yield ("keys", {**about, "keys": ", ".join(missing)}) if found else ("content", about)


def kubernetes(cluster: Cluster) -> Found:
    """Its version, its clock, names and nodes."""
    version, least = cluster.get("/version")["gitVersion"], EXPECTED["kubernetes"]
    if version_of(version)[:2] < version_of(least):
        yield "kubernetes", {"found": version, "least": least}
    if abs(skew := cluster.skew()) > SKEW:
        yield "clock", {"skew": skew}
    slices = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices"
    if not any(
        s.get("endpoints") for s in cluster.items(f"{slices}?labelSelector=kubernetes.io/service-name%3Dkube-dns")
    ):
        yield "dns", {}
    ready = {"type": "Ready", "status": "True"}.items()
    conditions = [at(n, "status/conditions") or [] for n in cluster.nodes if not at(n, "spec/unschedulable")]
    if not any(ready <= condition.items() for those in conditions for condition in those):
        yield "nodes", {"count": len(cluster.nodes)}


def parts(cluster: Cluster) -> Found:
    """Kubeflow's parts: CRDs, controllers, versions."""
    for one in EXPECTED["parts"]:
        controller = cluster.deployments.get(one["deployment"])
        if cluster.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{one['crd']}") is None:
            yield "part" if one.get("always") else "part-unused", one
        elif controller is None:
            yield "controller", one
        else:
            images = [version_of(c["image"]) for c in at(controller, "spec/template/spec/containers")]
            found = next(filter(None, images), ())
            if found and found < version_of(one["least"]):
                yield "version", {**one, "found": ".".join(map(str, found))}
            if not at(controller, "status/availableReplicas"):
                yield "controller-down", one


def kfp(cluster: Cluster) -> Found:
    """Whether KFP answers, and whether Argo tries failed steps again: its default decides, whatever KFP's API says."""
    settings = cluster.get("/api/v1/namespaces/{kfp}/configmaps/workflow-controller-configmap".format(**cluster.names))
    defaults = yaml.safe_load(at(settings, "data/workflowDefaults") or "{}")
    policy = at(defaults, "spec/templateDefaults/retryStrategy/retryPolicy") or "OnFailure"
    if settings and policy == "OnError":
        yield "retries", {"policy": policy}
    health = cluster.through("ml-pipeline:8888", "/apis/v2beta1/healthz", cluster.kfp)
    if "ml-pipeline" in cluster.deployments and not health:
        yield "kfp", {}


def buckets(cluster: Cluster) -> Found:
    """The buckets that the places name, with the secret's own credentials (HEAD: nothing is written)."""
    secret, places = cluster.mine("secrets", "triptych-s3"), at(cluster.mine("configmaps", "triptych-places"), "data")
    wanted = sorted({place.split("/")[2] for place in (places or {}).values() if place.startswith("s3://")})
    told = {key: base64.b64decode(value).decode() for key, value in (at(secret, "data") or {}).items()}
    if not told or not wanted:
        return
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        aws_access_key_id=told.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=told.get("AWS_SECRET_ACCESS_KEY"),
        endpoint_url=told.get("AWS_ENDPOINT_URL_S3") or None,
        region_name=told.get("AWS_DEFAULT_REGION") or "us-east-1",
        config=Config(connect_timeout=S3[0], read_timeout=S3[1], retries={"max_attempts": 0}),
    )
    for name in wanted:
        cluster.left(sum(S3))
        try:
            client.head_bucket(Bucket=name)
        except ClientError as error:
            yield "bucket", {"name": name, "code": error.response["Error"]["Code"]}
        except BotoCoreError as error:
            yield "buckets-away", {"name": name, "error": type(error).__name__}
            return


def images(cluster: Cluster) -> Found:
    """The images: named by digest, and pulled."""
    named = at(cluster.mine("podtemplates", "triptych-images"), "template/spec/containers") or []
    for image in [one["image"] for one in named]:
        if "@sha256:" not in image or image.endswith("0" * 64):
            yield "image", {"image": image}
    for pod in cluster.mine("pods"):
        statuses = [*(at(pod, "status/containerStatuses") or []), *(at(pod, "status/initContainerStatuses") or [])]
        for one in statuses:
            if (reason := at(one, "state/waiting/reason")) in PULLING:
                yield "pull", {"image": one["image"], "pod": pod["metadata"]["name"], "reason": reason}


def storage(cluster: Cluster) -> Found:
    """Volumes and the classes that make them."""
    classes = [one["metadata"] for one in cluster.items("/apis/storage.k8s.io/v1/storageclasses")]
    default = any((one.get("annotations") or {}).get(DEFAULT_CLASS) == "true" for one in classes)
    for name in EXPECTED["claims"]:
        found = cluster.mine("persistentvolumeclaims", name)
        wanted = at(found, "spec/storageClassName")
        if found is None:
            yield "claim", {"name": name}
        elif wanted and wanted not in {one["name"] for one in classes}:
            yield "class", {"name": name, "wanted": wanted}
        elif not wanted and not default:
            yield "no-class", {"name": name}
        elif at(found, "status/phase") == "Lost":
            yield "lost", {"name": name}


def server(cluster: Cluster) -> Found:
    """The governed server, its migration, and the channel that it serves."""
    job = cluster.mine("jobs", "triptych-migrate", "batch/v1")
    if not any(c["type"] == "Complete" and c["status"] == "True" for c in at(job, "status/conditions") or []):
        yield "migration", {}
    if not at(cluster.mine("deployments", "triptych-mlflow", "apps/v1"), "status/availableReplicas"):
        yield "mlflow", {}
        return
    latest = cluster.through("triptych-mlflow:5000", "/api/2.0/triptych/channel/metadata/timestamp.json")
    expires = at(yaml.safe_load(latest) if isinstance(latest, str) else latest, "signed/expires")
    if expires is None:
        yield "channel", {}
    elif (hours := age(expires)) > 0:
        yield "channel-stale", {"hours": hours}


def leases(cluster: Cluster) -> Found:
    """Leases of models whose run is no more: they keep other runs waiting until they expire."""
    from lineage.clock import now
    from lineage.stores import ServerStore

    if not cluster.server:
        return
    known = json.loads(ServerStore(cluster.server).ask("GET", "/state", patience=3.0, retries=0))["leases"]
    workflows = f"/apis/argoproj.io/v1alpha1/namespaces/{cluster.namespace}/workflows?labelSelector=pipeline%2Frunid%3D"
    for model, held in known.items():
        found = cluster.get(f"{workflows}{held['run']}")
        running = [one for one in at(found, "items") or [] if at(one, "status/phase") not in ENDED]
        if found is not None and held["expires"] > now() and not running:
            yield "lease", {"model": model, "run": held["run"], "expires": held["expires"]}


def caller(cluster: Cluster) -> Found:
    """The token that `triptych submit` would show KFP from here: until when it is valid, where it says so."""
    from pipelines.submission import credentials

    given, shown = credentials(), SimpleNamespace(api_key={})
    if given is None:
        return
    given.refresh_api_key_hook(shown)
    _, _, claims = shown.api_key["authorization"].rpartition("Bearer ")[2].partition(".")
    with suppress(ValueError):  # a token of another kind
        expires = json.loads(base64.urlsafe_b64decode(claims.partition(".")[0] + "==")).get("exp", inf)
        if (hours := (time.time() - expires) / 3600) > 0:
            yield "token", {"hours": hours}


def schedules(cluster: Cluster) -> Found:
    """The CronJobs: there, in a time zone that exists, going well."""
    for name, wanted in EXPECTED["schedules"].items():
        found = cluster.mine("cronjobs", name, "batch/v1")
        if found is None:
            yield "schedule", {"name": name}
            continue
        if (zone := at(found, "spec/timeZone")) and zone not in available_timezones():
            yield "zone", {"name": name, "zone": zone}
        hours = age(at(found, "status/lastSuccessfulTime") or found["metadata"]["creationTimestamp"])
        if at(found, "spec/suspend"):
            yield "suspended", {"name": name}
        elif hours > wanted["hours"]:
            yield wanted["fault"], {"hours": hours}


def accounts(cluster: Cluster) -> Found:
    """The service accounts and their rights, by the API server's own word."""
    known = {one["metadata"]["name"] for one in cluster.mine("serviceaccounts")}
    for name, needed in EXPECTED["accounts"].items():
        if name not in known:
            yield "account", {"name": name}
            continue
        for what in (*needed, *EXPECTED["forbidden"]):
            may = cluster.may(name, what)
            if may is None:
                yield "unasked-right", {"name": name}
                break
            if may is not (what in needed):
                yield "broad" if may else "right", {"name": name, "what": what}


CHECKS = (
    *(objects, contents, kubernetes, parts, kfp, buckets, images, storage, server),
    *(leases, caller, schedules, accounts),
)
