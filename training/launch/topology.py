"""Which machines train together, and which of them this one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.errors import TrainingError
from training.launch.processes import free_port

LAUNCHER_VARIABLES = "PET_"
"""What torch's elastic launcher reads its defaults from; accelerate starts that launcher."""


@dataclass(frozen=True)
class Topology:
    """The machines of one training run. The default: this one alone."""

    machines: int = 1
    rank: int = 0
    """Of this machine; the machine of rank 0 writes the candidate."""
    address: str = "127.0.0.1"
    """Where the others find the machine of rank 0."""
    port: int = 0
    """On that machine; 0: a free one."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Topology:
        """As Kubeflow's trainer tells each node of a torch runtime.

        Raises:
            TrainingError: a variable is missing or is not a number.
        """
        try:
            return cls(
                machines=int(environment["PET_NNODES"]),
                rank=int(environment["PET_NODE_RANK"]),
                address=environment["PET_MASTER_ADDR"],
                port=int(environment["PET_MASTER_PORT"]),
            )
        except (KeyError, ValueError) as error:
            raise TrainingError(
                f"this is no node of a training job: {error}; PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and "
                "PET_MASTER_PORT come from a training runtime whose mlPolicy is torch"
            ) from error

    def accelerate(self, processes: int) -> dict[str, Any]:
        """The part of accelerate's configuration that says where ``processes``, over all machines, run.

        Raises:
            TrainingError: they cannot be spread evenly.
        """
        if processes % self.machines:
            raise TrainingError(f"{processes} training processes cannot be spread evenly over {self.machines} nodes")
        return {
            "machine_rank": self.rank,
            "num_machines": self.machines,
            "num_processes": processes,
            "main_process_ip": self.address,
            "main_process_port": self.port or free_port(),
            "same_network": True,
            "rdzv_backend": "static",
        }

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """``environment`` for the launcher on this machine, without what would override its configuration."""
        kept = {name: value for name, value in environment.items() if not name.startswith(LAUNCHER_VARIABLES)}
        return kept if self.machines > 1 else kept | {"GLOO_SOCKET_IFNAME": "lo"}


ALONE = Topology()
