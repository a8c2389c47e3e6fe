"""Settings of training on a cluster: the ``trainjob`` section of the configuration. Without it, training runs here."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from lineage.frozen import Section


class TrainJobSettings(Section):
    """Where and how a Kubeflow TrainJob runs the training. What is trained, and by how many processes, is not said
    here but under ``training``: it decides the weights, this does not."""

    storage: str = Field(min_length=1)
    """URI, or absolute path of a mounted volume, that the step and all nodes can read and write."""
    image: str = Field(min_length=1)
    """Image of the nodes: the one of the steps, best by digest; ``triptych submit`` takes ``torch`` for its table's."""
    runtime: str = "torch-distributed"
    """A TrainingRuntime of the namespace, or else a ClusterTrainingRuntime, whose mlPolicy is torch."""
    namespace: str | None = None
    """None: the step's own."""
    nodes: int = Field(default=1, ge=1)
    """Machines that ``training.processes`` are spread over, evenly."""
    resources: dict[str, str | int] = Field(default={})
    """Of each node, requested and limited alike, as ``{cpu: 8, memory: 64Gi, gpu: 4}``."""
    labels: dict[str, str] = Field(default={})
    """Of the job; Kueue takes its queue from ``kueue.x-k8s.io/queue-name``."""
    environment: dict[str, str] = Field(default={})
    """Variables of each node; no secrets: those belong into ``pod``, as references."""
    pod: dict[str, Any] = Field(default={})
    """What is patched into each node's pod, as Kubernetes spells it: ``volumes``, ``containers`` (the node's is called
    ``node``), ``serviceAccountName``, ``tolerations``."""
    timeout_seconds: float | None = Field(default=None, gt=0)
    """From the job's creation, its time in a queue included; the job is deleted then. None: wait for its end."""
    poll_seconds: float = Field(default=10, gt=0)
    """Between two looks at the job."""
    patience_seconds: float = Field(default=900, ge=0)
    """How long a request is tried again where the cluster's API does not answer: the sum of the pauses between tries.
    Then the step gives up; the job goes on."""

    @field_validator("storage")
    @classmethod
    def _the_same_everywhere(cls, storage: str) -> str:
        if "://" not in storage and not storage.startswith("/"):
            raise ValueError(f"{storage} is relative; name a URI or the absolute path where the volume is mounted")
        return storage

    @field_validator("resources", mode="after")
    @classmethod
    def _whole_numbers(cls, resources: dict[str, str | int]) -> dict[str, str | int]:
        return {name: str(amount) for name, amount in resources.items()}

    @field_validator("pod", mode="before")
    @classmethod
    def _integers(cls, value: Any) -> Any:
        """KFP turns integers inside a parameter into floats; Kubernetes tells them apart."""
        if isinstance(value, dict):
            return {name: cls._integers(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [cls._integers(inner) for inner in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value
