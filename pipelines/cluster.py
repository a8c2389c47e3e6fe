"""The ``cluster`` section of the configuration: where a Kubeflow cluster's runs go, and what each of their steps needs.

One table says for every step which image, resources, nodes, queue, volumes and secrets it gets; `needs` is a step's row
on top of the row ``default``. Secrets are named, never written down. The gate key is mounted into the gate step, and a
table that gives its secret to another step is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lineage.frozen import Frozen
from lineage.records import RunContext
from lineage.signing import SCHEME
from pipelines.steps import STEPS, Image, Step

ROWS = (*STEPS, "default")
"""Rows that the table may have."""
STEP_LABEL = "triptych.dev/step"
"""Label of a step's pod; the cluster's admission policies go by it."""
KEYS = "/var/run/triptych/keys"
"""Where steps see private keys: ``<role>/<role>.pem``, and ``.pub`` beside it."""
USER = 65532
"""Who steps run as, in both images."""
ROOT = "TRIPTYCH_ROOT"
"""Environment variable with the id of the ledger's root key."""
IMAGES: dict[Image, str] = {"data": "TRIPTYCH_DATA_IMAGE", "torch": "TRIPTYCH_TORCH_IMAGE"}
"""Image -> the environment variable by which manifests name it, so that its digest stands in one place."""


def _told(variables: Mapping[Image, str]) -> dict[Image, str]:
    return {name: told for name, variable in variables.items() if (told := os.environ.get(variable))}


class Toleration(Frozen):
    """As Kubernetes has it."""

    key: str
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None = None


class Needs(Frozen):
    """What a step needs; what a row leaves out is as in the row ``default``."""

    image: str = ""
    """An image, best by digest; empty: the one of ``images`` that the step belongs to."""
    cpu: str = "1"
    """Cores that are kept for it."""
    cpu_limit: str = ""
    """Most cores; empty: as many as are kept for it."""
    memory: str = "2Gi"
    """Kept for it, and the most it may take."""
    accelerators: int = Field(default=0, ge=0)
    accelerator: str = "nvidia.com/gpu"
    """The resource that is counted by ``accelerators``."""
    shared_memory: str = ""
    """Size of ``/dev/shm``, such as 8Gi; empty: the runtime's 64 MB."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Of the step's pod; Kueue takes its queue from ``kueue.x-k8s.io/queue-name``."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    volumes: dict[str, str] = Field(default_factory=dict)
    """PersistentVolumeClaim -> where it is mounted."""
    secrets: dict[str, str] = Field(default_factory=dict)
    """Secret -> where it is mounted."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variable -> value; no secrets."""
    secret_environment: dict[str, str] = Field(default_factory=dict)
    """Variable -> ``secret/key``."""


class ClusterSettings(Frozen):
    """A cluster with Kubeflow Pipelines, and the places that its steps share."""

    endpoint: str = Field(pattern=r"^https?://")
    """The KFP API, such as ``http://ml-pipeline.kubeflow:8888``."""
    pages: str = ""
    """Where people see KFP's pages, for the links that are printed; empty: at the endpoint."""
    ca: str = ""
    """File with the certificates that the endpoint's is checked by; empty: the system's."""
    namespace: str = "triptych"
    """Where runs go."""
    experiment: str = "retraining"
    service_account: str = "triptych-run"
    retries: int = Field(default=2, ge=0)
    """Of a step, with back-off, whatever the cluster's Argo policy makes of it; ``triptych doctor`` shows that."""
    sample_shards: int = Field(default=1, ge=1)
    images: dict[Image, str] = Field(default_factory=lambda: _told(IMAGES))
    """Best by digest; left out: as the environment says, see `IMAGES`."""
    tracking_uri: str = Field(pattern=r"^https?://")
    """The governed MLflow server."""
    ledger: str = ""
    """URL of the ledger; empty: the governed server has it."""
    root: str = Field(default_factory=lambda: os.environ.get(ROOT, ""))
    """Id of the ledger's root key; left out: as the environment says, see `ROOT`."""
    records: str
    """URI of the folder for step records."""
    state: str = ""
    """A folder on a volume of all steps, see `lineage.records.RunContext`."""
    run_key: str = "triptych-run-key"
    """Secret with ``run.pem`` and ``run.pub``."""
    gate_key: str = "triptych-gate-key"
    """Secret with ``gate.pem`` and ``gate.pub``."""
    steps: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Step, or ``default`` -> its row, see `Needs`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        missing = {} if self.root else {"root": ROOT}
        missing |= {f"images.{name}": variable for name, variable in IMAGES.items() if name not in self.images}
        if missing:
            named = ", ".join(f"{name} ({variable})" for name, variable in missing.items())
            raise ValueError(
                f"nothing says {named}: name them here or by these variables, or have `triptych submit` read them from "
                "the cluster: --context CLUSTER"
            )
        for step in self.steps:
            if step not in ROWS:
                raise ValueError(f"steps.{step} is no step; there are {', '.join(ROWS)}")
            row = self.needs(step)  # refuses what Needs does not have
            secrets = {*row.secrets, *(place.partition("/")[0] for place in row.secret_environment.values())}
            if self.gate_key in secrets:
                raise ValueError(f"steps.{step} names {self.gate_key}: the gate step gets it by itself, no other may")
        return self

    def needs(self, step: str) -> Needs:
        """The row of a step."""
        default, own = self.steps.get("default", {}), self.steps.get(step, {})
        merged = {**default, **own}
        for name in ("labels", "environment", "secret_environment", "volumes", "secrets"):
            merged[name] = {**default.get(name, {}), **own.get(name, {})}
        row = Needs.model_validate(merged)
        image = row.image or self.images[STEPS.get(step, Step()).image]
        return row.model_copy(update={"image": image})

    def context(self, user: str, trigger: str, commit: str) -> RunContext:
        """What every step is told, but for the run's id. Moves, witness and channel are the server's."""
        return RunContext(
            id="",
            records=self.records,
            tracking_uri=self.tracking_uri,
            ledger=self.ledger or self.tracking_uri,
            root=self.root,
            keys={role: f"{SCHEME}{KEYS}/{role}/{role}.pem" for role in ("run", "gate")},
            marks=f"{self.state}/ledger" if self.state else "",
            state=self.state,
            user=user,
            trigger=trigger,
            commit=commit,
        )

    def equip(self, task: Any, step: str) -> None:
        """Give a KFP task what its step needs."""
        from kfp import kubernetes

        row = self.needs(step)
        task.set_container_image(row.image)
        task.set_cpu_request(row.cpu).set_cpu_limit(row.cpu_limit or row.cpu)
        task.set_memory_request(row.memory).set_memory_limit(row.memory)
        if row.accelerators:
            task.set_accelerator_type(row.accelerator).set_accelerator_limit(row.accelerators)
        kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
        for label, value in {**row.labels, STEP_LABEL: step}.items():
            kubernetes.add_pod_label(task, label, value)
        for key, value in row.node_selector.items():
            kubernetes.add_node_selector(task, key, value)
        for one in row.tolerations:
            kubernetes.add_toleration(task, one.key, one.operator, one.value, one.effect)
        if row.shared_memory:
            kubernetes.empty_dir_mount(task, "shm", "/dev/shm", "Memory", row.shared_memory)
        for claim, path in row.volumes.items():
            kubernetes.mount_pvc(task, claim, path)
        held = {"run": self.run_key, "gate": self.gate_key}
        keys = {held[role]: f"{KEYS}/{role}" for role in STEPS[step].keys}
        for secret, path in {**row.secrets, **keys}.items():
            kubernetes.use_secret_as_volume(task, secret, path)
        for variable, value in row.environment.items():
            task.set_env_variable(variable, value)
        for variable, place in row.secret_environment.items():
            secret, _, key = place.partition("/")
            kubernetes.use_secret_as_env(task, secret, {key: variable})
