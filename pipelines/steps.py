"""What each step needs wherever it runs: its image, the keys it signs with, and whether it opens images where they lie.

Both runners read this table: `pipelines.cluster` for a step's pod, `pipelines.containers` for its container.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from lineage.signing import Role

Image = Literal["data", "torch"]
"""Short for the images ``triptych-data`` and ``triptych-torch``."""


class Step(NamedTuple):
    """What a step needs."""

    image: Image = "data"
    keys: tuple[Role, ...] = ("run",)
    """The private keys that it sees."""
    reads_images: bool = False
    """Where images lie in a bucket, it gets what opens the bucket."""


STEPS = {
    "snapshot-data": Step(reads_images=True),
    "plan": Step(),
    "validate-data": Step(reads_images=True),
    "encode-features": Step("torch", reads_images=True),
    "fine-tune": Step("torch", reads_images=True),
    "evaluate": Step("torch", reads_images=True),
    "draw-samples": Step("torch"),
    "gate": Step(keys=("run", "gate")),
    "register": Step(),
    "promote": Step(),
    "nothing-new": Step(),
    "close-run": Step(),
}
"""By the names of their components."""
