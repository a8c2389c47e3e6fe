"""The arms of the experiment, the cells that they run in, and their order.

A *cell* is a world and a learning rate. In a cell, seed s gives every arm the same set, the same order of samples, the
same noise and timesteps, the same prompts and the same noise to draw them from, so that arms are compared in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SEEDS = tuple(range(8))
"""Reported."""
SPARE = 100
"""The seed whose set strengths are matched on; reported nowhere."""
RATES = ((2e-4, 200), (7e-4, 400))
"""Learning rate and steps."""
LOOKS = {200: (25, 50, 100, 150, 200), 400: (25, 50, 100, 200, 400)}
"""Checkpoints, as many at both rates."""
MIXES = (0.25, 0.5, 0.75)
"""WiSE-FT: shares of the last checkpoint, the rest base′."""
BATCH = 32
TAP, SHIPPED_TAP = 4, 1
REFERENCE_STRENGTH = 2.0
"""λ of `noise-stream`, whose drift the other arms are matched to."""
STRENGTHS = (0.125, 0.5, 2.0, 8.0, 32.0, 128.0)
"""λ that matching tries."""
LORA_RANK, LORA_SCALE, LORA_FASTER = 16, 1.0, 5.0


@dataclass(frozen=True)
class Arm:
    """How one fine-tuning differs from plain."""

    name: str
    replay: str | None = None
    """What half of each batch is: `noise`, captions with pure noise; `samples`, noised samples of base′."""
    held: str | None = None
    """What is held to base′'s on the replayed half: `stream`, `text`, `random`, `shuffled`, `velocity`; or `prior`, a
    velocity loss on replayed samples."""
    exposures: int = BATCH
    """Pictures of the set in a step."""
    lora: bool = False
    target: str | None = None
    """Text supervision of the set's own pictures: `shipped`, or `raw` for an assignment by raw cosines."""
    captions: int | None = None
    """Only so many captions are replayed."""
    draws: int | None = None
    """Only so many fixed draws of caption, noise and σ are replayed: what a cache of base′'s features would hold."""
    without: str | None = None
    """A word that no replayed caption has."""
    like: str | None = None
    """The arm whose matched λ it takes."""
    strength: float | None = None
    """λ; None: matched by drift where something is held."""

    @property
    def matched(self) -> bool:
        """Whether λ comes from matching drift."""
        return self.held not in (None, "prior") and self.strength is None


def _replays() -> list[Arm]:
    held = ("stream", "text", "random", "shuffled", "velocity")
    return [
        Arm(f"{replay}-{space}", replay, space, exposures=BATCH // 2)
        for space in held
        for replay in ("noise", "samples")
    ]


PLAIN = Arm("plain")
MAIN = (
    PLAIN,
    Arm("fewer-exposures", exposures=BATCH // 2),
    *_replays(),
    Arm("prior", "samples", "prior", exposures=BATCH // 2),
    Arm("lora", lora=True),
    Arm("shipped", target="shipped"),
    Arm("raw-cosines", target="raw"),
)
"""Trained in every cell. Early stopping and WiSE-FT need no training: they choose among a run's points."""

_STREAM = next(arm for arm in MAIN if arm.name == "noise-stream")
ABLATIONS = (
    *(replace(_STREAM, name=f"noise-stream-{n}-captions", captions=n, like=_STREAM.name) for n in (8, 32, 128)),
    *(replace(_STREAM, name=f"noise-stream-{n}-draws", draws=n, like=_STREAM.name) for n in (64, 256, 1024)),
    replace(_STREAM, name="noise-stream-without-glasses", without="glasses", like=_STREAM.name),
    *(
        replace(arm, name="samples-stream-without-glasses", without="glasses", like=arm.name)
        for arm in MAIN
        if arm.name == "samples-stream"
    ),
    *(replace(_STREAM, name=f"noise-stream-strength-{x:g}", strength=x) for x in (0.5, 8.0)),
)
ARMS = {arm.name: arm for arm in (*MAIN, *ABLATIONS)}


@dataclass(frozen=True)
class Job:
    """Runs that are made at once: all seeds of one arm in one cell, or the strengths that matching tries."""

    kind: str
    """`main` or `match`."""
    world: int
    rate: float
    steps: int
    arm: str
    seeds: tuple[int, ...]
    strengths: tuple[float, ...] | None = None

    def key(self, place: int) -> str:
        """Names one run: what makes a result file resumable."""
        tail = f"λ{self.strengths[place]:g}" if self.strengths else f"s{self.seeds[place]}"
        return f"{self.kind}/w{self.world}/{self.rate:g}/{self.arm}/{tail}"


def jobs() -> list[Job]:
    """All jobs by priority: world 1 at both rates, world 2, then the ablations, those of world 1 first.

    A matched arm's λ is found when it is first needed, in world 1, and taken over by world 2.
    """
    order = [matching(_STREAM.name, rate, steps) for rate, steps in reversed(RATES)]
    for arms in (MAIN, ABLATIONS):
        for world in (1, 2):
            for arm in arms:
                order += [Job("main", world, rate, steps, arm.name, SEEDS) for rate, steps in reversed(RATES)]
    return order


def matching(arm: str, rate: float, steps: int) -> Job:
    """The runs that find the λ at which ``arm`` drifts as far as `noise-stream` does; in world 1, on the spare seed."""
    strengths = (REFERENCE_STRENGTH,) if arm == _STREAM.name else STRENGTHS
    return Job("match", 1, rate, steps, arm, (SPARE,) * len(strengths), strengths)
