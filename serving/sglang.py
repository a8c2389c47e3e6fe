"""SGLang as the backend: for models that need several GPUs or quantised weights.

A ``sglang serve`` process holds one model. A verified folder is handed to it by ``POST /update_weights_from_disk``, and
what ``POST /get_weights_checksum`` answers is compared with sums computed here of that folder. Pictures come from
``POST /v1/images/generations``. These routes know no authentication: servers belong into a private network. The
contract was read in SGLang 0.5's ``multimodal_gen/runtime/entrypoints``.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from lineage.digests import LineageError, digest_path
from serving.backend import BackendError, Drawing, Drawn, GoneError, LateError, Load, RefusedError, UnusableError
from serving.engine.picture import Plan
from serving.users import Users
from training.errors import TrainingError
from training.families import family_of
from training.families.drawing import BROKEN, PRECISION
from training.families.family import Family, check_weights

UPDATE, CHECKSUM, IMAGES = "/update_weights_from_disk", "/get_weights_checksum", "/v1/images/generations"
MODULE = "transformer"
"""The module whose sum is compared: what training changes. The server may have fused the parts of the others."""


@dataclass
class _Home:
    """A server and the model that it holds."""

    url: str
    model: str = ""
    family: Family | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    sum: str = ""
    """SGLang's, of the transformer."""
    users: Users = field(default_factory=Users)
    seconds: float = 0.0
    """Of the warm-up's picture."""


class SGLang:
    """One or more SGLang servers. With two, a new model is loaded while the old one draws.

    With one, `load` waits until the old model's pictures are done and replaces it; it is closed from then on.

    Args:
        urls: of the servers, which see the models' folders under the same paths as this process. They must hold the
            transformer in the precision that the model was judged in.
        timeout: seconds that a picture, or loading weights, may take.
    """

    def __init__(self, urls: Sequence[str], timeout: float = 300.0) -> None:
        if not urls:
            raise BackendError("urls must name a server")
        self._homes = [_Home(url.rstrip("/")) for url in urls]
        self._client = httpx2.AsyncClient(timeout=timeout, trust_env=False)
        self._tasks: dict[str, asyncio.Task[Drawn]] = {}

    async def load(self, model: str, folder: Path, sampling: Mapping[str, Any]) -> None:
        """See `Backend.load`. After a failure it is unknown what the server holds: it draws nothing then."""
        precision = sampling.get("precision", PRECISION)
        if any(home.model == model for home in self._homes):
            raise UnusableError(f"{model} is loaded already; unload it first")
        try:
            family = family_of(folder)
            expected = await asyncio.to_thread(checksum, family, precision)
            digest = await asyncio.to_thread(digest_path, folder)
        except (TrainingError, LineageError, *BROKEN) as error:
            raise UnusableError(f"the bundle at {folder} cannot be served: {error}") from error
        home = min(self._homes, key=lambda one: bool(one.model))
        home.model = ""
        await home.users.gone()
        try:
            answer = await self._post(home, UPDATE, {"model_path": str(folder), "flush_cache": True})
            if answer.get("success") is not True:
                raise BackendError(str(answer.get("message")))
            found = await self._sum(home)
        except BackendError as error:
            raise UnusableError(f"{home.url} does not load {folder}: {error}") from error
        if found != expected:
            raise UnusableError(
                f"{home.url} holds other weights than {folder}: {MODULE} has the sum {found}, not "
                f"{expected}; start it with --backend diffusers and in {precision}"
            )
        self._homes[self._homes.index(home)] = _Home(home.url, model, family, dict(sampling), digest, expected)

    async def _sum(self, home: _Home) -> str:
        return str((await self._post(home, CHECKSUM, {"module_names": [MODULE]})).get(MODULE))

    async def warm(self, model: str) -> None:
        """See `Backend.warm`: one picture, whose seconds tell the pace. Batches are SGLang's own affair."""
        home, began = self._find(model), time.monotonic()
        try:
            async for _ in self.generate(model, Drawing(f"warm-up of {model}", "", 0, home.sampling)):
                pass
        except BackendError as error:
            raise UnusableError(f"{model} fails while it is warmed up: {error}") from error
        home.seconds = time.monotonic() - began

    async def generate(self, model: str, drawing: Drawing) -> AsyncIterator[Drawn]:
        """See `Backend.generate`. There are no previews, and a picture that SGLang began is drawn to its end.

        Raises:
            RefusedError: also a deterministic drawing: SGLang does not promise it.
        """
        home = self._find(model)
        if drawing.deterministic:
            raise RefusedError(
                "SGLang does not promise pictures that neighbours cannot change; the built-in engine does"
            )
        if drawing.id in self._tasks:
            raise RefusedError(f"a drawing with the id {drawing.id} is in work")
        task = self._tasks[drawing.id] = asyncio.create_task(self._draw(home, drawing))
        with home.users:
            try:
                left = None if drawing.deadline is None else max(0.0, drawing.deadline - time.monotonic())
                done, _ = await asyncio.wait({task}, timeout=left)
                if not done:
                    raise LateError("the deadline passed before SGLang answered")
                if task.cancelled():
                    raise BackendError(f"drawing {drawing.id} was cancelled")
                yield task.result()
            finally:
                task.cancel()
                del self._tasks[drawing.id]

    async def _draw(self, home: _Home, drawing: Drawing) -> Drawn:
        from PIL import Image

        began = time.monotonic()
        answer = await self._post(home, IMAGES, _request(home.family, drawing))
        try:
            content = base64.b64decode(answer["data"][0]["b64_json"], validate=True)
            image = Image.open(io.BytesIO(content), formats=["PNG"]).convert("RGB")
        except (LookupError, TypeError, ValueError, OSError) as error:
            raise BackendError(f"{home.url} answered without a picture: {error!r}") from error
        steps = int(drawing.sampling["num_inference_steps"])
        return Drawn(image, steps, steps, {"steps": time.monotonic() - began})

    def cancel(self, drawing: str) -> None:
        """See `Backend.cancel`. The connection is closed; SGLang draws to the end."""
        if task := self._tasks.get(drawing):
            task.cancel()

    async def digest(self, model: str) -> str:
        """The folder's digest where the server still holds its transformer, else the sum of what it holds."""
        home = self._find(model)
        found = await self._sum(home)
        return home.digest if found == home.sum else f"sha256:{found}"

    def load_now(self) -> Load:
        """See `Backend.load_now`: each server draws one picture at a time."""
        homes = [home for home in self._homes if home.model]
        users = [home.users.count for home in homes]
        active = sum(map(bool, users))
        pace = sum(1 / home.seconds for home in homes if home.seconds)
        return Load(active, sum(users) - active, len(homes), pace, active / max(1, len(homes)))

    async def unload(self, model: str) -> None:
        """See `Backend.unload`; the server keeps the weights in memory until it gets others."""
        for home in self._homes:
            if home.model == model:
                home.model = ""
                await home.users.gone()

    async def close(self) -> None:
        """See `Backend.close`."""
        for home in self._homes:
            home.model = ""
        for task in self._tasks.values():
            task.cancel()
        await self._client.aclose()

    def _find(self, model: str) -> _Home:
        for home in self._homes:
            if home.model == model:
                return home
        raise GoneError(f"{model} is closed; ask for the one that is served now")

    async def _post(self, home: _Home, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that a route answers.

        Raises:
            BackendError: the server does not answer, answers an error, or no JSON object.
        """
        try:
            answer = await self._client.post(home.url + route, json=dict(body))
            content = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise BackendError(f"{home.url}{route} does not answer: {type(error).__name__}: {error}") from error
        if answer.status_code != 200 or not isinstance(content, dict):
            raise BackendError(f"{home.url}{route} answered {answer.status_code}: {answer.text[:300]}")
        return content


def _request(family: Family | None, drawing: Drawing) -> dict[str, Any]:
    """The body of an image request; ``generator_device`` has noise drawn as the judges drew it."""
    assert family is not None
    plan = Plan.of(family, drawing.sampling)
    guidance: dict[str, Any] = {"guidance_scale": plan.guidance}
    if "Qwen" in family.pipeline_class:
        guidance = {"true_cfg_scale": plan.guidance, "negative_prompt": family.unconditional}
    return guidance | {
        "prompt": drawing.prompt,
        "n": 1,
        "size": f"{plan.width}x{plan.height}",
        "response_format": "b64_json",
        "output_format": "png",
        "seed": drawing.seed,
        "generator_device": "cpu",
        "num_inference_steps": plan.steps,
        "max_sequence_length": plan.longest,
        "diffusers_kwargs": {"max_sequence_length": plan.longest},
    }


def checksum(family: Family, precision: str) -> str:
    """SGLang's sum of a transformer's weights: SHA-256 over name and bytes of each parameter, sorted by name.

    Parameters only, as the server counts them, in the number format in which it holds them.
    """
    import torch
    from safetensors import safe_open

    folder, empty = family.path / MODULE, family.empty_transformer()
    check_weights(folder, {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()})
    places = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            places.update(dict.fromkeys(stream.keys(), path))
    hashed = hashlib.sha256()
    for name in sorted(dict(empty.named_parameters())):
        with safe_open(places[name], framework="pt") as stream:
            tensor = stream.get_tensor(name).to(getattr(torch, precision))
        hashed.update(name.encode())
        hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
