"""Draws and scores on the device: sampling, the VAE's decoder, and the three scorers without PIL, numpy or resvg.

`tests/trilemma/test_trilemma.py` holds each to the product's own: diffusers' scheduler and VAE, and
`examples.avatars.scorers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.trilemma.stack import CHANNELS, SIDE, Weights, predict
from benchmarks.trilemma.text import full_precision
from examples.avatars.networks import AttributeNet, TasteNet, read
from examples.avatars.portraits import BACKGROUND, CLOTHING_COLOR, HAIR_COLOR, SKIN, VALUES

SAMPLING_STEPS, GUIDANCE = 10, 3.0
SCALE, SHIFT = 0.43832570046298847, 0.1331932097673416
"""Of the shipped VAE's latents."""
CHUNK = 400
PANELS = ("alignment", "realism", "taste")
COUNTS = [len(values) for values in VALUES.values()]


@torch.no_grad()
def sample(
    weights: Weights,
    noise: Tensor,
    text: Tensor,
    pooled: Tensor,
    nothing: tuple[Tensor, Tensor],
    half: bool | None = None,
) -> Tensor:
    """Latents (K, N, 8, 16, 16) as the pipeline draws them: Euler, 10 steps, guidance 3, no time shift.

    Args:
        half: whether velocities are computed in fp16, whose mantissa is as long as TF32's; by default on a GPU. Latents
            are summed up in fp32. Where anything overflows, all is drawn again in fp32.
        noise: (K, N, 8, 16, 16).
        text: (N, L, 128); pooled: (N, 128).
        nothing: text (1, L, 128) and pooled (1, 128) of the empty caption.
    """
    k, n = noise.shape[:2]
    half = noise.is_cuda if half is None else half
    used = {name: value.half() for name, value in weights.items()} if half else weights
    both = torch.cat([nothing[0].expand(n, -1, -1), text]).expand(k, -1, -1, -1)
    whole = torch.cat([nothing[1].expand(n, -1), pooled]).expand(k, -1, -1)
    sigmas = torch.cat([torch.linspace(1.0, 0.001, SAMPLING_STEPS), torch.zeros(1)]).tolist()
    x = noise
    for now, after in pairwise(sigmas):
        sigma = torch.full((k, 2 * n), now, device=x.device)
        free, asked = predict(used, torch.cat([x, x], 1), sigma, both, whole)[0].float().chunk(2, dim=1)
        x = x + (after - now) * (free + GUIDANCE * (asked - free))
    if half and not bool(x.isfinite().all()):
        return sample(weights, noise, text, pooled, nothing, half=False)
    return x


class Decoder:
    """The shipped VAE's decoder: latents (N, 8, 16, 16) to pictures (N, 3, 64, 64), whole levels 0 to 255 in fp32."""

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self.w = {n: v.float().to(device) for n, v in weights.items() if n.startswith("decoder.")}

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        return torch.cat([self._decode(part) for part in latents.split(CHUNK)])

    def _decode(self, z: Tensor) -> Tensor:
        x = self._conv("decoder.conv_in", z / SCALE + SHIFT)
        x = self._resnet("decoder.mid_block.resnets.1", self._resnet("decoder.mid_block.resnets.0", x))
        for block in range(3):
            for number in range(2):
                x = self._resnet(f"decoder.up_blocks.{block}.resnets.{number}", x)
            if block < 2:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
                x = self._conv(f"decoder.up_blocks.{block}.upsamplers.0.conv", x)
        x = self._conv("decoder.conv_out", functional.silu(self._group("decoder.conv_norm_out", x)))
        return ((x * 0.5 + 0.5).clamp(0, 1) * 255).round()

    def _conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return functional.conv2d(x, weight, self.w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def _group(self, name: str, x: Tensor) -> Tensor:
        return functional.group_norm(x, 4, self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps=1e-6)

    def _resnet(self, name: str, x: Tensor) -> Tensor:
        h = self._conv(f"{name}.conv1", functional.silu(self._group(f"{name}.norm1", x)))
        h = self._conv(f"{name}.conv2", functional.silu(self._group(f"{name}.norm2", h)))
        return (self._conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in self.w else x) + h


class Judge:
    """The three shipped scorers, and how a picture of any attributes is drawn again.

    Args:
        scorers: the folder of the shipped scorers.
        shapes: (128, 7, 64, 64) uint8, from `prepare.shapes`: for each shape what is always there (3 colours), and how
            much of skin, hair, clothes and background is seen at each pixel.
    """

    def __init__(self, scorers: Path, shapes: Tensor, device: torch.device) -> None:
        self.alignment, self.realism, self.taste = (
            read(kind, scorers / f"{name}.safetensors")[0].to(device)
            for kind, name in ((AttributeNet, "alignment"), (AttributeNet, "realism"), (TasteNet, "aesthetics"))
        )
        self.shapes, self.device = shapes.to(device), device
        self.colours = [
            torch.tensor([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in table.values()], device=device).float()
            for table in (SKIN, HAIR_COLOR, CLOTHING_COLOR, BACKGROUND)
        ]
        starts = torch.tensor([0, *COUNTS]).cumsum(0)[:-1]
        self.attribute_of = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS)).to(device)
        self.value_of = torch.cat([torch.arange(count) for count in COUNTS]).to(device)
        self.starts = starts.to(device)

    @torch.no_grad()
    def score(self, pictures: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Panels (N,), `attributes` (N, 8) and unit `features` (N, d) of pictures (N, 3, 64, 64) in 0 to 255.

        Args:
            wanted: (N, 8) class indices in the order of `VALUES`.
        """
        with full_precision():
            parts = [self._score(p, q) for p, q in zip(pictures.split(CHUNK), wanted.split(CHUNK), strict=True)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _score(self, pictures: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        x = pictures / 127.5 - 1
        given = [logits.double().softmax(1) for logits in self.alignment(x).values()]
        attributes = torch.stack([p.gather(1, wanted[:, i : i + 1])[:, 0] for i, p in enumerate(given)], dim=1)
        features = functional.normalize(self.realism.body(x), dim=1)
        return {
            "alignment": attributes.mean(1),
            "realism": -self._distance(x, pictures / 255),
            "taste": self.taste(x).double(),
            "attributes": attributes,
            "features": features,
        }

    def _distance(self, x: Tensor, pictures: Tensor) -> Tensor:
        """To the nearest of the three likeliest portraits, as `examples.avatars.scorers.Realism`."""
        given = [logits.double().softmax(1) for logits in self.realism(x).values()]
        best = torch.stack([p.argmax(1) for p in given], dim=1)
        top = torch.stack([p.max(1).values for p in given], dim=1)
        cost = -((torch.cat(given, 1) + 1e-12) / top[:, self.attribute_of]).log()
        cost.scatter_(1, self.starts + best, math.inf)
        changes, place = cost.topk(2, dim=1, largest=False)
        found = [self._difference(pictures, best)]
        for turn in range(2):
            other = best.scatter(1, self.attribute_of[place[:, turn, None]], self.value_of[place[:, turn, None]])
            distance = self._difference(pictures, other)
            found.append(distance.masked_fill(changes[:, turn] >= math.log(1000), math.inf))
        return torch.stack(found).min(0).values

    def _difference(self, pictures: Tensor, classes: Tensor) -> Tensor:
        off = pictures - self.draw(classes) / 255
        half = functional.avg_pool2d(off, 2)
        return (off.square().mean((1, 2, 3)).sqrt() + half.square().mean((1, 2, 3)).sqrt()).double() / 2

    def draw(self, classes: Tensor) -> Tensor:
        """Pictures (N, 3, 64, 64) in whole levels of attribute tuples (N, 8), within 2 levels of resvg's."""
        skin, hair, hair_colour, clothes, ground, mouth, glasses, beard = classes.unbind(1)
        maps = self.shapes[((hair * 4 + mouth) * 2 + glasses) * 2 + beard].float()
        picture = maps[:, :3]
        for place, value in enumerate((skin, hair_colour, clothes, ground)):
            picture = picture + maps[:, 3 + place, None] / 255 * self.colours[place][value][:, :, None, None]
        return picture.round().clamp(0, 255)


def noises(seeds: list[int]) -> Tensor:
    """Standard normal (N, 8, 16, 16), each from its seed alone, on the CPU: as the pipeline's."""
    return torch.cat(
        [torch.randn((1, CHANNELS, SIDE, SIDE), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
