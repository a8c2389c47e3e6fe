"""The pipeline as a cluster gets it, cut down to its shape; ``python -m tests.cluster.golden`` writes it anew."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.runs import TRIPTYCH

GOLDEN = Path(__file__).parent / "golden" / "retraining.yaml"
CONFIGURATION = Path(__file__).parent / "golden" / "configuration.yaml"


def compiled(*options: str, seed: str = "0") -> bytes:
    """The IR, compiled by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "retraining.yaml"
        command = [str(TRIPTYCH), "compile", "--config", str(CONFIGURATION), "-o", str(target)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([*command, *options], check=True, capture_output=True, env=environment, timeout=300)
        return target.read_bytes()


def shape(content: bytes) -> list[dict[str, Any]]:
    """The IR without the code of the steps, which changes with every step."""
    pipeline, platform = yaml.safe_load_all(content)
    for executor in pipeline["deploymentSpec"]["executors"].values():
        del executor["container"]["command"]
    return [pipeline, platform]


if __name__ == "__main__":
    GOLDEN.write_text(yaml.safe_dump_all(shape(compiled()), sort_keys=True))
    print(f"wrote {GOLDEN}")
