"""Procedural portraits whose captions are exact, because the attributes are chosen first.

A portrait is a tuple of eight attributes. One tuple draws exactly one picture: every other option of the
drawing style is fixed here. The style is `Avataaars <https://avataaars.com/>`_ by Pablo Stanley, free for
personal and commercial use, remixed by DiceBear and rendered by resvg.

    >>> from examples.avatars.portraits import Portrait
    >>> portrait = Portrait("light", "bob", "red", "blue", "mint", "smile", glasses=True)
    >>> portrait.caption()
    'a portrait, light skin, red bob hair, smiling mouth, glasses, blue shirt, mint background'
    >>> portrait.draw().size
    (64, 64)
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, lru_cache
from importlib.resources import files
from itertools import product
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from dicebear import Style

SIZE = 64
"""Height and width of a picture, in pixels."""

CROP = "34 9 212 212"
"""The part of the 280 x 280 canvas that is drawn: the head fills the picture."""

SKIN = {"light": "#ffdbb4", "tan": "#d08b5b", "dark": "#614335"}
HAIR = {
    "afro": "fro",
    "bob": "bob",
    "bun": "bun",
    "curly": "curly",
    "long": "straight02",
    "mullet": "shaggyMullet",
    "quiff": "shortWaved",
    "short": "shortFlat",
}
HAIR_COLOR = {
    "black": "#1f1a1c",
    "blond": "#eab93a",
    "brown": "#96582b",
    "grey": "#a3abb5",
    "pink": "#f06fb0",
    "red": "#d23a0c",
}
CLOTHING_COLOR = {
    "black": "#23272e",
    "blue": "#2f62d9",
    "green": "#2f9e55",
    "red": "#e03131",
    "white": "#fafafa",
    "yellow": "#ffd02e",
}
BACKGROUND = {
    "lavender": "#c9b3ff",
    "lemon": "#fff7a3",
    "mint": "#9ff0bf",
    "peach": "#ffb3a3",
    "silver": "#d5d9de",
    "sky": "#8fd0ff",
}
MOUTH = {"grimace": "grimace", "open": "screamOpen", "serious": "serious", "smile": "smile"}
MOUTH_WORDS = {
    "grimace": "grimacing mouth",
    "open": "open mouth",
    "serious": "serious mouth",
    "smile": "smiling mouth",
}
GLASSES_VARIANT, GLASSES_COLOR = "prescription02", "#10131a"
BEARD_VARIANT = "beardMedium"

VALUES: dict[str, tuple[Any, ...]] = {
    "skin": tuple(SKIN),
    "hair": tuple(HAIR),
    "hair_color": tuple(HAIR_COLOR),
    "clothing_color": tuple(CLOTHING_COLOR),
    "background": tuple(BACKGROUND),
    "mouth": tuple(MOUTH),
    "glasses": (False, True),
    "beard": (False, True),
}
"""Every attribute and its values, in a fixed order: a value's place is its class index."""

CORE = ("skin", "hair", "hair_color", "clothing_color", "background", "mouth")
"""The attributes that the base model knows; glasses and beard are the news."""

LICENSE = "Avataaars by Pablo Stanley (https://avataaars.com/): free for personal and commercial use"
CONSENT = "not applicable: a generated drawing of nobody"
SOURCE = "drawn by examples.avatars.portraits"

# Marker colours that stand for an attribute's colour inside a cached drawing.
_MARKERS = {
    "skin": "#010101",
    "hair": "#020202",
    "facialHair": "#020202",
    "clothes": "#030303",
    "background": "#040404",
}


@dataclass(frozen=True)
class Portrait:
    """One attribute tuple: everything that decides a picture and its caption."""

    skin: str
    hair: str
    hair_color: str
    clothing_color: str
    background: str
    mouth: str
    glasses: bool = False
    beard: bool = False

    def __post_init__(self) -> None:
        for name, allowed in VALUES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} cannot be drawn; choose one of {allowed}")

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Portrait:
        """The portrait of an attribute mapping; a missing glasses or beard means absent."""
        unknown = set(attributes) - set(VALUES)
        if unknown:
            raise ValueError(f"unknown attributes {sorted(unknown)}; there are {list(VALUES)}")
        return cls(**attributes)

    @classmethod
    def of_classes(cls, indices: tuple[int, ...]) -> Portrait:
        """The portrait of eight class indices, in the order of `VALUES`."""
        return cls(*(values[index] for values, index in zip(VALUES.values(), indices, strict=True)))

    def attributes(self) -> dict[str, Any]:
        """All eight attributes, JSON-ready."""
        return asdict(self)

    def classes(self) -> tuple[int, ...]:
        """Eight class indices, in the order of `VALUES`."""
        return tuple(VALUES[field.name].index(getattr(self, field.name)) for field in fields(self))

    def phrases(self) -> list[str]:
        """What can be seen, one phrase a thing; absent glasses and beards are not mentioned."""
        said = [f"{self.skin} skin", f"{self.hair_color} {self.hair} hair", MOUTH_WORDS[self.mouth]]
        said += ["glasses"] if self.glasses else []
        said += ["beard"] if self.beard else []
        return [*said, f"{self.clothing_color} shirt", f"{self.background} background"]

    def caption(self) -> str:
        """The exact caption: absent unless mentioned."""
        return ", ".join(["a portrait", *self.phrases()])

    def bare(self) -> Portrait:
        """The twin without glasses and beard."""
        return replace(self, glasses=False, beard=False)

    def draw(self, size: int = SIZE) -> Image.Image:
        """The picture, RGB, `size` x `size` pixels."""
        # Here, so that scorers work where nothing draws.
        import resvg_py

        svg = _template(self.hair, self.mouth, self.glasses, self.beard)
        for marker, color in {
            _MARKERS["skin"]: SKIN[self.skin],
            _MARKERS["hair"]: HAIR_COLOR[self.hair_color],
            _MARKERS["clothes"]: CLOTHING_COLOR[self.clothing_color],
            _MARKERS["background"]: BACKGROUND[self.background],
        }.items():
            svg = svg.replace(marker, color)
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
        return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def draw(attributes: Mapping[str, Any]) -> Image.Image:
    """The picture of an attribute mapping, RGB, 64 x 64 pixels."""
    return Portrait.of(attributes).draw()


def caption(attributes: Mapping[str, Any]) -> str:
    """The exact caption of an attribute mapping."""
    return Portrait.of(attributes).caption()


def cores() -> Iterator[Portrait]:
    """Every portrait without glasses and beard, in a fixed order."""
    for values in product(*(VALUES[name] for name in CORE)):
        yield Portrait(*values)


@lru_cache(maxsize=1)
def _style() -> Style:
    # jsonschema, which dicebear loads, else builds a grammar of IRIs for two seconds.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    from dicebear import Style

    definition = files("dicebear_styles").joinpath("avataaars.json").read_text("utf-8")
    return Style(json.loads(definition))


@cache
def _template(hair: str, mouth: str, glasses: bool, beard: bool) -> str:
    """The SVG of a shape, with marker colours; 128 of them exist."""
    style = _style()  # before dicebear is loaded
    from dicebear import Avatar

    options = {
        "seed": "triptych",
        "topVariant": HAIR[hair],
        "topProbability": 100,
        "mouthVariant": MOUTH[mouth],
        "eyesVariant": "default",
        "eyebrowsVariant": "default",
        "clothesVariant": "shirtCrewNeck",
        "accessoriesVariant": GLASSES_VARIANT,
        "accessoriesColor": GLASSES_COLOR,
        "accessoriesProbability": 100 if glasses else 0,
        "facialHairVariant": BEARD_VARIANT,
        "facialHairProbability": 100 if beard else 0,
        **{f"{part}Color": marker for part, marker in _MARKERS.items()},
    }
    svg = Avatar(style, options).to_string()
    return re.sub(r'viewBox="[^"]*"', f'viewBox="{CROP}"', svg, count=1)
