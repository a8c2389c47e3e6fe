"""What a caller may ask of ``POST /v1/images/generations``, what becomes of it, and how it is answered.

Every field of OpenAI's client has one of three rules. *Used*: it decides the picture or the answer. *Without effect*:
any value that the client knows is taken, and changes nothing. *Refused*: it asks for what no model here does.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.credentials import Origin
from serving.errors import BadRequestError
from serving.settings import Settings
from serving.slot import Loaded

MOST_SEED = 2**53 - 1
"""The largest whole number that every JSON reader keeps."""
NO_USAGE = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
USAGE = NO_USAGE | {"input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}
"""OpenAI's client wants it in a stream's last event; nothing is counted in tokens here."""


class ImageRequest(BaseModel):
    """OpenAI's request for pictures, and what this server understands beyond it. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str = Field(min_length=1)
    model: str | None = Field(None, description="NAME, or NAME@VERSION; left out: the champion.")
    n: int | None = Field(1, ge=1)
    size: str | None = Field("auto", pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")
    response_format: Literal["b64_json", "url"] | None = Field("b64_json", description="url is refused.")
    output_format: Literal["png", "jpeg", "webp", "gif", "svg"] | None = Field("png", description="No gif, no svg.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Of jpeg and webp; 100 is best.")
    stream: bool | None = False
    partial_images: int | None = Field(None, ge=0, le=3, description="Of a stream.")
    background: Literal["transparent", "opaque", "auto"] | None = Field(None, description="transparent is refused.")
    # Without effect.
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = None
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["low", "auto"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    # Beyond OpenAI's.
    seed: int | None = Field(None, ge=0, le=MOST_SEED, description="Of the first picture; each next one adds 1.")
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    deterministic: bool | None = Field(False, description="Neighbours in a batch cannot change a bit.")


REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("response_format", ("url",), "pictures are not kept here, so there is no URL; ask for b64_json"),
    ("output_format", ("gif", "svg"), "pictures are png, jpeg or webp"),
    ("background", ("transparent",), "the models here draw no transparency"),
)


@dataclass(frozen=True)
class Job:
    """A request that can be drawn."""

    id: str
    loaded: Loaded
    prompt: str
    seeds: tuple[int, ...]
    sampling: Mapping[str, Any]
    format: str
    quality: int | None
    partial_images: int
    deterministic: bool

    @property
    def size(self) -> str:
        """As OpenAI writes it."""
        return f"{self.sampling['width']}x{self.sampling['height']}"

    def origin(self, seed: int, step: int) -> Origin:
        """What the credentials of a picture say."""
        how: dict[str, Any] = {"format": self.format, "quality": self.quality, "deterministic": self.deterministic}
        return Origin(**self.loaded.named | how, seed=seed, sampling=dict(self.sampling), step=step)

    def event(self, kind: str, picture: str, seed: int, **more: Any) -> dict[str, Any]:
        """An event of a stream, as OpenAI's client reads it."""
        told = {"type": f"image_generation.{kind}", "b64_json": picture, "created_at": int(time.time()), "seed": seed}
        told |= {"size": self.size, "quality": "auto", "background": "opaque", "output_format": self.format}
        return told | self.loaded.named | more

    def answer(self, pictures: list[str]) -> dict[str, Any]:
        """The answer without a stream."""
        data = [{"b64_json": picture, "seed": seed} for picture, seed in zip(pictures, self.seeds, strict=True)]
        told = {"created": int(time.time()), "data": data, "size": self.size, "background": "opaque"}
        return told | {"output_format": self.format} | self.loaded.named


def plan(asked: ImageRequest, loaded: Loaded, settings: Settings, request: str) -> Job:
    """What is to be drawn for a request: what the model was judged with, and what the caller asks otherwise.

    Raises:
        BadRequestError: it asks for more than the server's limits, or for what no model here does.
    """
    for name, values, why in REFUSED:
        if getattr(asked, name) in values:
            raise BadRequestError(f"{name}={getattr(asked, name)} is refused: {why}", name)
    count, format, partial = asked.n or 1, asked.output_format or "png", asked.partial_images or 0
    sampling = dict(loaded.sampling)
    if asked.size not in (None, "auto"):
        sampling["width"], sampling["height"] = map(int, str(asked.size).split("x"))
    for name in ("num_inference_steps", "guidance_scale"):
        if (value := getattr(asked, name)) is not None:
            sampling[name] = value
    for name, value, most in (
        ("prompt", len(asked.prompt), settings.most_prompt),
        ("n", count, settings.most_pictures),
        ("size", max(sampling["width"], sampling["height"]), settings.most_side),
        ("num_inference_steps", sampling["num_inference_steps"], settings.most_steps),
    ):
        if value > most:
            raise BadRequestError(f"{name} is {value}, this server takes at most {most}", name)
    if asked.stream and count > 1:
        raise BadRequestError("a stream has one picture: its events have no number; leave n at 1", "n")
    if partial and not asked.stream:
        raise BadRequestError("partial_images needs stream=true", "partial_images")
    if asked.output_compression is not None and format == "png":
        raise BadRequestError("output_compression is of jpeg and webp", "output_compression")
    first = secrets.randbits(32) if asked.seed is None else asked.seed
    seeds = tuple((first + number) % (MOST_SEED + 1) for number in range(count))
    quality = None if format == "png" else (100 if asked.output_compression is None else asked.output_compression)
    return Job(request, loaded, asked.prompt, seeds, sampling, format, quality, partial, bool(asked.deterministic))
