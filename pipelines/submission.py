"""Runs on a Kubeflow cluster: whether one is due, having it start, and what it came to.

KFP runs the steps; the ledger says how a run ended. So what is waited for is KFP's, and what is told is the ledger's.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import urllib3
from kfp_server_api import ApiException

from lineage.digests import LineageError
from lineage.ledger import Ledger
from lineage.records import RunContext
from pipelines.cluster import ClusterSettings
from pipelines.configuration import Configuration, raw_section
from pipelines.errors import RequestError

Ending = Literal["promoted", "held", "rejected", "stale", "nothing-new", "busy", "failed"]
TOKEN = "TRIPTYCH_KFP_TOKEN"
"""Environment variable with a bearer token for KFP, where no file has one."""
TIMEOUT = (5.0, 60.0)
"""Seconds to wait for KFP: to connect, and for its answer."""
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
TRANSIENT = (401, 408, 429, 500, 502, 503, 504)
"""Answers of KFP's that may be better a little later; 401, because the kubelet may be late with a new token."""
POLL, PATIENCE = 10.0, 600.0
"""Seconds between two looks at a run, and for how long KFP may be away meanwhile."""


class Kfp:
    """The KFP API, by its own client, which reads the token anew for each request."""

    def __init__(self, settings: ClusterSettings, token_file: Path | None = None) -> None:
        """Make the client; nothing is asked yet, and nothing is written into the home folder.

        Raises:
            RequestError: there is no token where one was named, or KFP does not answer.
        """
        import warnings

        from kfp import Client

        self.settings = settings
        with warnings.catch_warnings(), _told(settings):
            warnings.simplefilter("ignore", FutureWarning)
            # With a namespace that is not "kubeflow" the client neither asks KFP for one nor keeps it in the home
            # folder; requests name the right one themselves.
            self.client = Client(
                host=settings.endpoint,
                namespace="unused",
                credentials=credentials(token_file),
                ssl_ca_cert=settings.ca or None,
                ui_host=settings.pages or None,
            )
        rest = self.client._run_api.api_client.rest_client
        ask = rest.request

        def patient(*given: Any, **named: Any) -> Any:
            return ask(*given, **{**named, "_request_timeout": named.get("_request_timeout") or TIMEOUT})

        rest.request = patient  # the client itself waits for ever

    def page(self, run: str) -> str:
        """Where people look at a run."""
        return f"{(self.settings.pages or self.settings.endpoint).rstrip('/')}/#/runs/details/{run}"

    def start(self, configuration: Configuration, name: str, trigger: str, force: bool) -> str:
        """Compile today's pipeline and have KFP run it; gives the run's id.

        Raises:
            RequestError: KFP refuses, or does not answer.
        """
        from kfp.compiler import Compiler

        from infra.checkout import checkout_commit
        from pipelines.retraining import build_pipeline

        told = self.settings
        context = told.context(submitter(), trigger, checkout_commit())
        parameters = {"run": context.model_dump(exclude={"id"}), "force": force, **configuration.arguments()}
        if job := parameters.get("trainjob"):
            job["image"] = told.images.get(job["image"], job["image"])  # its digest stands in one place
        image = told.images["data"]
        made = build_pipeline(
            image, cluster=True, retries=told.retries, sample_shards=told.sample_shards, equip=told.equip
        )
        with tempfile.TemporaryDirectory() as folder, _told(told):
            package = str(Path(folder) / "retraining.yaml")
            Compiler().compile(made, package)
            experiment = self.client.create_experiment(told.experiment, namespace=told.namespace)
            run = self.client.run_pipeline(
                experiment.experiment_id, name, package, parameters, service_account=told.service_account
            )
        return str(run.run_id)

    def wait(self, run: str, poll: float = POLL, patience: float = PATIENCE) -> str:
        """Wait until a run ended, whatever comes between; gives KFP's word for how.

        Raises:
            RequestError: there is no such run, the caller may not see it, or KFP was away for ``patience`` seconds.
        """
        heard = time.monotonic()
        while True:
            try:
                state = str(self.client.get_run(run).state)
                heard = time.monotonic()
            except (ApiException, urllib3.exceptions.HTTPError) as error:
                passing = not isinstance(error, ApiException) or error.status in TRANSIENT
                if not passing or time.monotonic() - heard > patience:
                    raise _refused(self.settings, error) from error
                state = ""
            if state in ENDED:
                return state
            time.sleep(poll)


@contextmanager
def _told(settings: ClusterSettings) -> Iterator[None]:
    try:
        yield
    except (ApiException, urllib3.exceptions.HTTPError) as error:
        raise _refused(settings, error) from error
    except OSError as error:
        raise RequestError(f"the token for KFP cannot be read: {error.strerror} ({error.filename})") from error


def _refused(settings: ClusterSettings, error: Any) -> RequestError:
    status, where = getattr(error, "status", None), f"KFP at {settings.endpoint}"
    if status in (401, 403):
        need = "a token that is valid now" if status == 401 else f"the right to run pipelines in {settings.namespace}"
        return RequestError(f"{where} answers {status}: it wants {need}; triptych doctor shows the service accounts")
    if status is None:
        told = f"{where} does not answer: {type(error).__name__}; check cluster.endpoint and the network"
        return RequestError(f"{told}. From outside the cluster, forward its port and name that by --kfp")
    return RequestError(f"{where} answers {status} {error.reason}: {str(error.body or '')[:300]}")


def credentials(token_file: Path | None = None) -> Any:
    """Where KFP's client takes its token from; None: there is none.

    Raises:
        RequestError: a file was named, and is not there.
    """
    from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH, ServiceAccountTokenVolumeCredentials
    from kfp.client.token_credentials_base import TokenCredentialsBase

    named = token_file or os.environ.get(KF_PIPELINES_SA_TOKEN_ENV)
    if named or Path(KF_PIPELINES_SA_TOKEN_PATH).exists():
        path = Path(named or KF_PIPELINES_SA_TOKEN_PATH)
        if not path.is_file():
            raise RequestError(f"there is no token for KFP at {path}")
        return ServiceAccountTokenVolumeCredentials(str(path))
    if not os.environ.get(TOKEN):
        return None  # a KFP without authentication

    class FromEnvironment(TokenCredentialsBase):  # type: ignore[misc]
        def refresh_api_key_hook(self, config: Any) -> None:
            config.api_key["authorization"] = os.environ[TOKEN]

    return FromEnvironment()


def submitter() -> str:
    """Who submits: the pod's service account, or the user of this machine, whom nobody checked."""
    from lineage.embedded import local_user
    from lineage.whereabouts import PREFIX

    account, namespace = (os.environ.get(PREFIX + name, "") for name in ("SERVICE_ACCOUNT", "NAMESPACE"))
    return f"{namespace}/{account}" if account else local_user()


def news(configuration: Configuration, context: RunContext) -> tuple[Configuration | Ending, str]:
    """Whether a run is due, by the snapshot of now and the ledger.

    Where none is, a signed record of it and the closing entry of a run of its own are left.

    Args:
        context: one that this process can use: its keys and state are here.

    Returns:
        The configuration of the run that is due, which takes just that snapshot, else what it would come to; and why,
        in words.

    Raises:
        LineageError: the data cannot be read, the ledger cannot be read or written, or pins another policy.
    """
    from components.close_run.close import close
    from components.plan.plan import check_policy, make_plan
    from components.snapshot_data.snapshot import pin, take_snapshot
    from lineage.records import recording

    told, model = configuration.arguments(), configuration.registry.model_name
    with tempfile.TemporaryDirectory() as folder:
        state, snapshot = Path(context.state) if context.state else None, Path(folder) / "snapshot"
        taken = take_snapshot(configuration.data, snapshot, state)
        pinned = configuration.model_copy(update={"data": pin(configuration.data, taken.digest, snapshot, state)})
    known = context.open_ledger().refresh()
    check_policy(known, model, told["evaluation"], told["gate"])
    held = known.leases.get(model)
    if held and held.expires > datetime.now(UTC).isoformat() and configuration.registry.busy == "end":
        return "busy", f"run {held.run} has {model} until {held.expires}"
    sections = {**told, "training": configuration.training.deciding()}
    automatic = configuration.registry.mode == "auto"
    plan = make_plan(known, model, taken.digest, sections, force=False, leakage=False, automatic=automatic)
    if plan.needed:
        return pinned, plan.reason
    with recording(context, "nothing-new", {"reason": plan.reason}) as record:
        record.input("snapshot", taken.digest)
        record.facts |= {"training_key": plan.training_key, "evaluation_terms": plan.evaluation_terms}
    close(context, model)
    return "nothing-new", plan.reason


def ending(settings: ClusterSettings, run: str, server: str = "") -> tuple[Ending, str]:
    """What a run came to, as the ledger has it, and why in words.

    Args:
        server: the governed server that has the ledger, where it is reached from here by another name.

    Raises:
        LineageError: the ledger cannot be read.
    """
    state = Ledger.open(server or settings.ledger or settings.tracking_uri, settings.root).state
    outcome = state.outcomes.get(run)
    if outcome is None:
        return "failed", "nobody closed the run: its exit step was lost; a retry of the run closes it"
    if outcome != "judged":
        return outcome, ""  # type: ignore[return-value]
    judged = [verdict for verdict in state.verdicts.values() if verdict.run == run]
    decision = judged[-1].decision if judged else "hold"
    if decision == "promote":
        return "held", "the gate promotes it, and a person decides"
    return "held" if decision == "hold" else "rejected", f"the gate's decision: {decision}"


def installed(context: str, config: Path) -> dict[str, Any]:
    """Root key and images of the section ``cluster``, as the manifests in a cluster name them.

    Args:
        context: of the kubeconfig.
        config: the configuration, which names the namespace.

    Raises:
        RequestError: they cannot be read there.
    """
    from pipelines.doctor.checks import at
    from pipelines.doctor.cluster import Cluster

    namespace = raw_section(config, "cluster").get("namespace", "triptych")
    cluster = Cluster.of(context, namespace)
    cluster.greet()
    root = at(cluster.mine("configmaps", "triptych-trust"), "data/root-id")
    containers = at(cluster.mine("podtemplates", "triptych-images"), "template/spec/containers")
    if not root or not containers:
        raise RequestError(
            f"ConfigMap triptych-trust or PodTemplate triptych-images is not in namespace {namespace}, or you may not "
            f"read it: triptych doctor --context {context} says what is missing"
        )
    return {"root": root, "images": {one["name"]: one["image"] for one in containers}}


def local_context(settings: ClusterSettings, trigger: str) -> RunContext:
    """The context of what this process itself records, under an id of its own.

    Raises:
        LineageError: this process has not the run key.
    """
    from lineage.signing import open_signer

    name = f"submit-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    context = settings.context(submitter(), trigger, "").model_copy(update={"id": name})
    if key := os.environ.get("TRIPTYCH_RUN_KEY"):
        context = context.model_copy(update={"keys": {"run": key}})
    try:
        open_signer(context.keys["run"])
    except LineageError as error:
        raise LineageError(f"{error}; name the run key by TRIPTYCH_RUN_KEY=file2:/path/run.pem") from error
    return context
