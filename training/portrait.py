"""The registered model, as MLflow loads it: prompts in, pictures out.

    model = mlflow.pyfunc.load_model("models:/portrait-avatars@champion")
    model.predict(pandas.DataFrame({"prompt": ["a portrait, glasses"], "seed": [7]}))["image"][0]  # PNG

A model folder holds no code: its ``MLmodel`` names this module, so what runs is the Triptych that is installed, and it
draws with the function that drew for the judges. Whoever has the digest from the ledger has it checked too:

    mlflow.pyfunc.load_model(uri, model_config={"digest": "tree-sha256:…"})
"""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineage.artifacts import digest_of, listing
from lineage.digests import LineageError
from training.families.drawing import PRECISION, Drawer

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> PortraitModel:
    """Load the weights in the folder ``path``; MLflow calls this.

    Args:
        model_config: ``model_name``, ``digest`` of the weights, ``sampling`` and ``precision``, from ``MLmodel`` or
            from whoever loads.
    """
    name, digest, sampling = (model_config[key] for key in ("model_name", "digest", "sampling"))
    return PortraitModel(Path(path), name, digest, sampling, model_config.get("precision", PRECISION))


class PortraitModel:
    """Draws a picture for each row; every PNG says which model drew it from which prompt and seed.

    Args:
        sampling: how it was judged; a call may ask otherwise.
        precision: the number format of the weights that it was judged in.

    Raises:
        LineageError: the weights are not those with ``digest``.
        TrainingError: they do not load.
    """

    def __init__(
        self, weights: Path, model_name: str, digest: str, sampling: Mapping[str, Any], precision: str = PRECISION
    ) -> None:
        if (found := digest_of(listing(weights))) != digest:
            raise LineageError(f"the weights at {weights} have digest {found}, not {digest}: do not use them")
        self._claims = {"model": model_name, "model-digest": digest}
        self._sampling = dict(sampling)
        self._drawer = Drawer(weights, precision)

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Draw one picture a row.

        Args:
            model_input: column ``prompt``, and optionally ``seed``; a row without one gets a random seed.
            params: sampling settings that differ from those the model was judged with.

        Returns:
            Columns ``prompt``, ``seed`` and ``image`` (PNG).
        """
        import pandas as pd

        sampling = {**self._sampling, **(params or {})}
        prompts = [str(prompt) for prompt in model_input["prompt"]]
        given = model_input["seed"] if "seed" in model_input else [None] * len(prompts)
        seeds = [secrets.randbits(32) if pd.isna(seed) else int(seed) for seed in given]
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            (picture,) = self._drawer.draw([prompt], [seed], sampling)
            told = {"prompt": prompt, "seed": str(seed), "sampling": json.dumps(sampling, sort_keys=True)}
            images.append(_png(picture, self._claims | told))
        return pd.DataFrame({"prompt": prompts, "seed": seeds, "image": images})


def _png(picture: Image.Image, claims: Mapping[str, str]) -> bytes:
    """A PNG with ``claims`` as text chunks."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for name, value in claims.items():
        text.add_itxt(name, value)
    stream = io.BytesIO()
    picture.save(stream, "PNG", pnginfo=text)
    return stream.getvalue()
