"""The networks inside the scorers: small convolutional nets on 64 x 64 pictures, read from safetensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from examples.avatars.portraits import SIZE, VALUES


class Body(nn.Module):
    """Pictures (B, channels, 64, 64) to features (B, features): strided convolutions down to 4 x 4."""

    def __init__(self, widths: tuple[int, ...], kernel: int, features: int, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Conv2d(channels, width, kernel, stride=2, padding=(kernel - 1) // 2)]
            layers += [nn.GroupNorm(4, width), nn.SiLU()]
            channels = width
        edge = SIZE // 2 ** len(widths)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * edge**2, features), nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layers(x))


class AttributeNet(nn.Module):
    """Logits for every value of every attribute: a dict of (B, values)."""

    def __init__(self, widths: tuple[int, ...], kernel: int, features: int = 128) -> None:
        super().__init__()
        self.settings = {"widths": list(widths), "kernel": kernel, "features": features}
        self.body = Body(widths, kernel, features)
        self.heads = nn.ModuleDict({name: nn.Linear(features, len(values)) for name, values in VALUES.items()})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(x)
        return {name: head(features) for name, head in self.heads.items()}


class TasteNet(nn.Module):
    """One number a picture, (B,): higher is preferred (Bradley-Terry).

    Looks at a picture beside its mirror image, and at texture as a whole: on average, and where it is strongest.
    """

    def __init__(self, widths: tuple[int, ...], kernel: int, features: int = 128) -> None:
        super().__init__()
        self.settings = {"widths": list(widths), "kernel": kernel, "features": features}
        self.body = Body(widths, kernel, features, channels=6)
        self.head = nn.Linear(features, 1)
        self.texture = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 1), nn.SiLU())
        self.texture_head = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        texture = self.texture(x)
        pooled = torch.cat([texture.mean(dim=(2, 3)), texture.amax(dim=(2, 3))], dim=1)
        shapes = self.body(torch.cat([x, x - x.flip(3)], dim=1))
        return torch.as_tensor((self.head(shapes) + self.texture_head(pooled)).squeeze(1))


def write(network: AttributeNet | TasteNet, place: Path, facts: dict[str, object]) -> None:
    """Writes weights, settings and facts about their training into one safetensors file."""
    header = {"settings": json.dumps(network.settings), "facts": json.dumps(facts), "format": "pt"}
    place.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, place, metadata=header)


def read(kind: type[AttributeNet] | type[TasteNet], place: str | Path) -> tuple[AttributeNet | TasteNet, str]:
    """The network in evaluation mode, and the digest of its file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file holds another kind of network.
    """
    place = Path(place)
    if not place.is_file():
        raise FileNotFoundError(f"there is no scorer at {place}; `make tiny-models` makes the scorers")
    with safe_open(place, framework="pt") as file:
        header = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "settings" not in header:
        raise ValueError(f"{place} is no scorer of avatars: its header has no settings")
    settings = json.loads(header["settings"])
    network = kind(tuple(settings["widths"]), settings["kernel"], settings["features"])
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{place} does not hold a {kind.__name__}: {error}") from error
    digest = hashlib.sha256(place.read_bytes()).hexdigest()
    return network.eval().requires_grad_(False), f"sha256:{digest}"


def as_tensor(images: list[Image.Image]) -> torch.Tensor:
    """Pictures as (B, 3, 64, 64) float32 in [-1, 1]; other sizes are resampled."""
    small = [i if i.size == (SIZE, SIZE) else i.resize((SIZE, SIZE), Image.Resampling.BOX) for i in images]
    array = np.stack([np.asarray(image.convert("RGB")) for image in small])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1
