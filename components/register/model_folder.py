"""What MLflow keeps around the weights, so that ``mlflow.pyfunc.load_model`` loads them: no code, only its name."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import yaml

from lineage.artifacts import LOADER, WEIGHTS_FOLDER
from training.families.drawing import PRECISION

NEEDS = ("diffusers", "mlflow", "numpy", "pandas", "pillow", "rfc8785", "safetensors", "torch", "transformers")
"""The packages that `training.portrait` needs, stored with their versions."""
REQUIREMENTS, ENVIRONMENT = "requirements.txt", "python_env.yaml"
WITHOUT_TRIPTYCH = (
    "# Beside these, triptych {version} as you build it yourself. It is not named below: an index may have another\n"
    "# package of that name, and whoever installs from here would run it.\n"
)


def write_model_folder(
    target: Path,
    model_name: str,
    digest: str,
    sampling: Mapping[str, Any],
    created: str,
    installed: Mapping[str, Mapping[str, str]],
    precision: str = PRECISION,
) -> None:
    """Write the folder without the weights, which `lineage.artifacts.WEIGHTS_FOLDER` then holds, untouched.

    Equal arguments give equal bytes.

    Args:
        digest: of the folder of weights.
        sampling: the settings that the model was judged with; the defaults when it draws.
        created: when the model was made, ISO 8601.
        installed: where it was trained, see `components.fine_tune.installed.installed`.
        precision: the number format of the weights that it was judged in.
    """
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    model = Model(
        model_uuid=uuid5(NAMESPACE_URL, f"urn:triptych:model:{model_name}:{digest}").hex,
        utc_time_created=datetime.fromisoformat(created).astimezone(UTC).replace(tzinfo=None),
        signature=ModelSignature(
            inputs=Schema([ColSpec("string", "prompt"), ColSpec("long", "seed", required=False)]),
            outputs=Schema([ColSpec("string", "prompt"), ColSpec("long", "seed"), ColSpec("binary", "image")]),
            params=ParamSchema(
                [ParamSpec(name, _type(name, value), value) for name, value in sorted(sampling.items())]
            ),
        ),
    )
    mlflow.pyfunc.add_to_model(
        model,
        loader_module=LOADER,
        data=WEIGHTS_FOLDER,
        python_env=ENVIRONMENT,
        model_config={"model_name": model_name, "digest": digest, "sampling": dict(sampling), "precision": precision},
    )
    target.mkdir(parents=True, exist_ok=True)
    model.save(target / "MLmodel")
    # A build's local version, such as 2.13.0+cpu, is on no index.
    needs = "".join(f"{name}=={installed[name]['version'].split('+')[0]}\n" for name in NEEDS)
    (target / REQUIREMENTS).write_text(WITHOUT_TRIPTYCH.format(version=version("triptych")) + needs, "utf-8")
    environment = {"python": platform.python_version(), "dependencies": [f"-r {REQUIREMENTS}"]}
    (target / ENVIRONMENT).write_text(yaml.safe_dump(environment), "utf-8")


def _type(name: str, value: Any) -> str:
    # The verdict's canonical JSON writes 3.0 as 3, and nobody could then ask for 3.5.
    return "double" if name == "guidance_scale" else _TYPES[type(value)]


_TYPES = {bool: "boolean", int: "long", float: "double", str: "string"}
