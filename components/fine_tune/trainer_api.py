"""The cluster's trainer API, asked through Kubeflow's SDK: requests are tried again where it is away, and refusals are
explained.

The SDK's own wait polls with a deadline; a job may wait in a queue for hours. So waiting is ours, every request and its
models are the SDK's, and trying again is the Kubernetes client's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from components.fine_tune.settings import TrainJobSettings
from training.errors import TrainingError

NODE_COMMAND = ("python", "-m", "training.launch.node", "--place")
COMPLETE, FAILED = "Complete", "Failed"
LONGEST_PAUSE = 30.0
"""Most seconds between two tries at a request: none before the first of them, then 2, then twice as many."""
AWAY = (408, 429, *range(500, 600))
"""HTTP statuses of an API that may answer later."""
LAST_LINES = 40
"""Lines of a failed job's log that are shown."""
REQUEST_TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and to wait for the next part of an answer; the client itself knows no end to either."""
NEEDED = (
    "the step's service account needs get, create and delete on trainjobs, get on trainingruntimes and "
    "clustertrainingruntimes, list on pods, get on pods/log"
)

Answer = TypeVar("Answer")


class Missing(Exception):
    """The API knows nothing of that name."""


class Taken(Exception):
    """There is something of that name already."""


@dataclass(frozen=True)
class JobState:
    """A TrainJob as the API shows it."""

    ended: str
    """`COMPLETE` or `FAILED`; empty while it is queued or runs."""
    reason: str
    """Why it ended so."""
    created: datetime
    leaving: bool
    """It is being deleted."""


class TrainerApi:
    """TrainJobs of one namespace."""

    def __init__(self, settings: TrainJobSettings) -> None:
        from kubeflow.trainer.constants import constants as api
        from kubernetes.config import ConfigException

        self._settings = settings
        try:
            self._backend: Any = _backend(settings)
        except ConfigException as error:
            raise TrainingError(
                f"no cluster can be reached from here: {error}; run the step in the cluster, set KUBECONFIG, or leave "
                "out the trainjob section to train on this machine"
            ) from error
        self.namespace: str = self._backend.namespace
        self._kind = (api.GROUP, api.VERSION, self.namespace, api.TRAINJOB_PLURAL)

    def find(self, name: str) -> JobState | None:
        """The job ``name``, or None."""
        from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

        def get() -> Any:
            found = self._backend.custom_api.get_namespaced_custom_object(*self._kind, name)
            return TrainerV1alpha1TrainJob.from_dict(found)

        try:
            found = self._ask(f"read TrainJob {name}", get)
        except Missing:
            return None
        conditions = (found.status and found.status.conditions) or []
        end = next((c for c in conditions if c.type in (COMPLETE, FAILED) and c.status == "True"), None)
        return JobState(
            ended=end.type if end else "",
            reason=f"{end.reason}: {end.message}" if end else "",
            created=found.metadata.creation_timestamp,
            leaving=found.metadata.deletion_timestamp is not None,
        )

    def submit(self, name: str, place: str) -> None:
        """Create the job ``name``, whose nodes run the request at ``place``.

        Raises:
            Taken: there is one.
            TrainingError: the runtime is missing, or the request is refused.
        """
        from kubeflow.trainer import CustomTrainerContainer
        from kubeflow.trainer.options import Labels, Name, TrainerCommand

        settings = self._settings
        try:
            runtime = self._ask("read the training runtime", lambda: self._backend.get_runtime(settings.runtime))
        except Missing as error:
            raise TrainingError(
                f"there is no training runtime {settings.runtime}, neither in namespace {self.namespace} nor in the "
                "cluster; list them with `kubectl get trainingruntimes,clustertrainingruntimes` and set "
                "trainjob.runtime; if kubectl knows neither, install Kubeflow Trainer 2"
            ) from error
        resources, environment = dict(settings.resources) or None, settings.environment or None
        trainer = CustomTrainerContainer(settings.image, settings.nodes, resources, environment)
        options = [Name(name), TrainerCommand([*NODE_COMMAND, place])]
        options += [Labels(settings.labels)] if settings.labels else []
        options += [pod_patch(settings.pod)] if settings.pod else []
        self._ask(f"create TrainJob {name}", lambda: self._backend.train(runtime, None, trainer, options))

    def delete(self, name: str, wait: bool = True) -> None:
        """Delete the job ``name`` and, if asked to, wait until it and its pods are gone: they write to its place."""

        def delete() -> None:
            # Not through the SDK's delete_job: that lets the job go first and its pods some time later.
            self._backend.custom_api.delete_namespaced_custom_object(*self._kind, name, propagation_policy="Foreground")

        try:
            self._ask(f"delete TrainJob {name}", delete)
        except Missing:
            return
        until = time.monotonic() + self._settings.patience_seconds
        while wait and self.find(name) is not None:
            if time.monotonic() > until:
                raise TrainingError(
                    f"TrainJob {self.namespace}/{name} was deleted and is still there; look at its finalizers and at "
                    "its pods"
                )
            time.sleep(min(1.0, self._settings.poll_seconds))

    def last_lines(self, name: str) -> str:
        """The last lines that the job's first node printed, or why they cannot be read."""
        from kubeflow.trainer.constants import constants as api
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        # Not through the SDK's get_job_logs: where a pod was restarted, that shows any of them.
        selector = api.POD_LABEL_SELECTOR.format(trainjob_name=name) + f",{api.JOB_INDEX_LABEL}=0"
        core = self._backend.core_api
        try:
            pods = core.list_namespaced_pod(self.namespace, label_selector=selector).items
            begun = [pod.metadata for pod in pods if pod.status.phase != api.POD_PENDING]
            if not begun:
                return "(none of its pods has begun to run)"
            pod = max(begun, key=lambda metadata: metadata.creation_timestamp).name
            lines = core.read_namespaced_pod_log(pod, self.namespace, container="node", tail_lines=LAST_LINES)
            return str(lines)
        except (ApiException, HTTPError) as error:
            return f"(its log cannot be read: {error})"

    def _ask(self, what: str, call: Callable[[], Answer]) -> Answer:
        """Ask, and put into words what goes wrong.

        Raises:
            Missing, Taken: the API's 404 and 409.
            TrainingError: it refuses, or is away for longer than ``patience_seconds``.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        tried = f"could not {what} in namespace {self.namespace}"
        try:
            return call()
        except Exception as raised:  # the SDK wraps whatever happened in a RuntimeError
            error: Any = _origin(raised)
            said = _message(error) if isinstance(error, ApiException) else str(error)
            status = error.status if isinstance(error, ApiException) else None
            if status == 404:
                raise Missing(said) from error
            if status == 409:
                raise Taken(said) from error
            if status in (401, 403):
                raise TrainingError(f"{tried}, not allowed: {said}; {NEEDED}") from error
            if status in AWAY or isinstance(error, HTTPError | OSError):
                raise TrainingError(
                    f"{tried}: {said}, for {self._settings.patience_seconds:g} s; a job that was submitted goes on: "
                    "run the step again to attach to it"
                ) from error
            raise TrainingError(f"{tried}, refused: {said}; see the trainjob section") from error


def _backend(settings: TrainJobSettings) -> Any:
    """The SDK's backend. Its requests end after `REQUEST_TIMEOUT`, and are tried again for ``patience_seconds``: all of
    them may be, because jobs have names."""
    from kubeflow.common.utils import is_running_in_k8s
    from kubeflow.trainer import KubernetesBackendConfig
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
    from kubernetes import client, config
    from urllib3 import Retry

    class Backend(KubernetesBackend):  # type: ignore[misc]
        def verify_backend(self) -> None:
            """Called when the client is there. Asks for no version of the trainer: the SDK would only warn."""
            rest = self.custom_api.api_client.rest_client
            request = rest.request

            def timed(*arguments: Any, _request_timeout: Any = None, **named: Any) -> Any:
                return request(*arguments, _request_timeout=_request_timeout or REQUEST_TIMEOUT, **named)

            rest.request = timed

    tries, patience = 1, settings.patience_seconds
    while (patience := patience - min(2.0**tries, LONGEST_PAUSE)) >= 0:
        tries += 1
    configuration = client.Configuration()
    configuration.retries = Retry(
        tries, status_forcelist=AWAY, allowed_methods=None, raise_on_status=False,
        backoff_factor=1.0, backoff_max=LONGEST_PAUSE,
    )  # fmt: skip
    if is_running_in_k8s():
        config.load_incluster_config(client_configuration=configuration)
    else:
        config.load_kube_config(client_configuration=configuration)
    return Backend(KubernetesBackendConfig(namespace=settings.namespace, client_configuration=configuration))


def pod_patch(pod: dict[str, Any]) -> Any:
    """The SDK's option that patches ``pod`` into the nodes' pods.

    Raises:
        TrainingError: the API's models do not know something in it, and would drop it without a word.
    """
    from kubeflow.trainer.options import RuntimePatch
    from kubeflow.trainer.options.kubernetes import (
        JobSetSpecPatch,
        JobSetTemplatePatch,
        ReplicatedJobPatch,
        TrainingRuntimeSpecPatch,
    )
    from kubeflow_trainer_api.models import TrainerV1alpha1PodSpecPatch
    from pydantic import ValidationError

    try:
        known = TrainerV1alpha1PodSpecPatch.from_dict(pod).to_dict()
    except (ValidationError, AttributeError, KeyError, TypeError) as error:
        raise TrainingError(f"trainjob.pod is no patch of a pod: {error}") from error
    if known != pod:
        raise TrainingError(
            f"trainjob.pod has parts that a TrainJob cannot patch: of {json.dumps(pod)} it would keep "
            f"{json.dumps(known)}; see PodSpecPatch in Kubeflow Trainer's API"
        )
    template: Any = {"spec": {"template": {"spec": pod}}}
    jobs = JobSetSpecPatch([ReplicatedJobPatch("node", template)])
    return RuntimePatch(TrainingRuntimeSpecPatch(JobSetTemplatePatch(spec=jobs)))


def _origin(error: BaseException) -> BaseException:
    """What an error of the SDK was made from."""
    while error.__cause__ is not None and type(error) is RuntimeError:
        error = error.__cause__
    return error


def _message(error: Any) -> str:
    """What the API server says in the body of an error."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
