"""Cut-down configurations of the avatars pipeline, and the command line as a user runs it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from lineage.embedded import Embedded
from lineage.records import RunContext

AVATARS = Path("examples/avatars").resolve()
TRIPTYCH = Path(sys.executable).with_name("triptych")


SECRETS = {
    "AWS_ACCESS_KEY_ID": "PlantedAccessKeyId000",
    "AWS_SECRET_ACCESS_KEY": "PlantedSecretAccessKey",
    "HF_TOKEN": "PlantedTokenOfTheHub00",
    "MLFLOW_TRACKING_PASSWORD": "PlantedTrackingPassword",
    "PGPASSWORD": "PlantedDatabasePassword",
    "KF_PIPELINES_TOKEN": "PlantedTokenOfPipelines",
}
"""Variables with planted secrets, to be looked for in what is left afterwards."""


def secrets_in(folder: Path) -> list[str]:
    """Files below ``folder`` that hold a planted secret, as it is or in base64, each with the secret's name."""
    found = []
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found += [f"{path}: {name}" for name, value in SECRETS.items() if any(form in content for form in forms(value))]
    return found


def forms(secret: str) -> list[bytes]:
    """A secret as it may lie in a file: in plain, and in base64 at each of the three places where it may begin."""
    shifted = [base64.b64encode(b"\0" * shift + secret.encode())[4 if shift else 0 : -4] for shift in range(3)]
    return [secret.encode(), *shifted]


def run_context(folder: Path, run: str = "run-1", tracking_uri: str = "unused") -> RunContext:
    """The context of a run with a ledger and keys of its own in ``folder``."""
    lineage = Embedded(folder / "lineage")
    lineage.open()
    return lineage.context(run, str(folder / "records"), tracking_uri)


def some_portraits(split: str, folder: Path, count: int = 107) -> Path:
    """A folder with the first ``count`` portraits of a drawn split (``new`` or ``shuffled``)."""
    source = AVATARS / "data" / split
    folder.mkdir(parents=True)
    lines = (source / "metadata.jsonl").read_text().splitlines()[:count]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    for line in lines:
        name = json.loads(line)["file_name"]
        shutil.copyfile(source / name, folder / name)
    return folder


def cut_down(folder: Path, source: Path, **changes: dict[str, Any]) -> Path:
    """A configuration that trains and judges in a minute or two; ``source`` is a folder of portraits."""
    content: dict[str, Any] = {
        "extends": str(AVATARS / "retrain.yaml"),
        "data": {"source": str(source)},
        "training": {"steps": 90, "log_every": 15, "learning_rate": 1.0e-3, "ema_decay": 0.9},
        "evaluation": {"limit": 96, "grid": 8},
        # Short training costs a little everywhere; these wide margins are for testing the machinery.
        "gate": {
            "margins": {"alignment": 0.1, "realism": 0.1, "aesthetics": 1.0},
            "constraints": {
                "copies of training pictures": {"margin": 0.5, "limit": 0.5},
                "one picture for all seeds": {"margin": 0.15},
            },
            "alpha": 0.4,
            "life": 10,
            "minimum_prompts": 20,
        },
    }
    for name in ("no glasses asked", "no beard asked"):
        content["gate"].setdefault("slices", {})[name] = {"margin": 0.3}
    for name in ("light skin", "tan skin", "dark skin"):
        content["gate"]["slices"][name] = {"margin": 0.2}
    for section, values in changes.items():
        content[section] = {**content.get(section, {}), **values}
    path = folder / "retrain.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def triptych(*arguments: str | Path, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [str(TRIPTYCH), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
