"""The registered model: prompts in, pictures out. MLflow keeps this file beside the weights and runs it to load them.

    model = mlflow.pyfunc.load_model("models:/portrait-avatars@champion")
    model.predict(pandas.DataFrame({"prompt": ["a portrait, glasses"], "seed": [7]}))["image"][0]  # PNG

It imports nothing of Triptych, so that the model loads wherever MLflow and diffusers are installed.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


class PortraitModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Draws a picture for each row; every PNG says which model drew it from which prompt and seed."""

    def load_context(self, context: Any) -> None:
        """Load the weights, after checking that they are the ones this version is about."""
        import torch
        from diffusers import DiffusionPipeline

        weights = Path(context.artifacts["weights"])
        self.facts: dict[str, Any] = context.model_config
        if (found := _digest(weights)) != self.facts["digest"]:
            raise ValueError(
                f"the weights at {weights} have digest {found}, not {self.facts['digest']}: do not use them"
            )
        index = json.loads((weights / "model_index.json").read_text("utf-8"))
        absent = {name: None for name, kind in index.items() if kind == [None, None]}
        # float32 is what was judged.
        self.pipeline = DiffusionPipeline.from_pretrained(weights, dtype=torch.float32, local_files_only=True, **absent)
        self.pipeline.to("cuda" if torch.cuda.is_available() else "cpu").set_progress_bar_config(disable=True)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Draw one picture a row.

        Args:
            model_input: column ``prompt``, and optionally ``seed``; a row without one gets a random seed.
            params: sampling settings that differ from those the model was judged with.

        Returns:
            Columns ``prompt``, ``seed`` and ``image`` (PNG).
        """
        sampling = {**self.facts["sampling"], **(params or {})}
        prompts = [str(prompt) for prompt in model_input["prompt"]]
        given = model_input["seed"] if "seed" in model_input else [None] * len(prompts)
        seeds = [secrets.randbits(32) if pd.isna(seed) else int(seed) for seed in given]
        images = [self._draw(prompt, seed, sampling) for prompt, seed in zip(prompts, seeds, strict=True)]
        return pd.DataFrame({"prompt": prompts, "seed": seeds, "image": images})

    def _draw(self, prompt: str, seed: int, sampling: dict[str, Any]) -> bytes:
        import torch
        from PIL.PngImagePlugin import PngInfo

        generator = torch.Generator("cpu").manual_seed(seed)
        image = self.pipeline(prompt=prompt, generator=generator, **sampling).images[0]
        text = PngInfo()
        facts = {"model": self.facts["model_name"], "model-digest": self.facts["digest"], "prompt": prompt}
        for name, value in {**facts, "seed": str(seed), "sampling": json.dumps(sampling, sort_keys=True)}.items():
            text.add_itxt(name, value)
        stream = io.BytesIO()
        image.save(stream, "PNG", pnginfo=text)
        return stream.getvalue()


def _digest(folder: Path) -> str:
    """Of the sorted list of (relative path, file digest), as Triptych takes it."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = [[name, f"sha256:{_hex(folder / name)}"] for name in names]
    text = json.dumps(files, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _hex(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


mlflow.models.set_model(PortraitModel())
