"""Tables of scores to judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from components.gate.scores import Scores
from components.gate.settings import AXES, GateSettings, Slice
from lineage.scores import COLUMNS, MODELS, REFERENCES, Features, Kernel, SetMeasure, Sets

PROMPTS = 160
ATTRIBUTES: dict[str, dict[str, str | bool]] = {
    f"p{i:03d}": {"glasses": i % 2 == 0, "skin": ("light", "brown", "dark")[i % 3]} for i in range(PROMPTS)
}
SEEDS = {prompt: [7] for prompt in ATTRIBUTES}
RULES = GateSettings(
    margins=dict.fromkeys(AXES, 0.1),
    slices={"no glasses asked": Slice(measure="alignment/glasses", where={"glasses": False}, margin=0.2)},
    ranges=dict.fromkeys(AXES, (0.0, 1.0)),
    alpha=0.2,
    resamples=4000,
)
SET_RULES = RULES.model_copy(update={"margins": {"alignment": 0.1, "realism/kid": 0.05, "aesthetics": 0.1}})
MEASURES = (*AXES, "alignment/glasses")


def table(noise: float = 0.02, seed: int = 0, models: tuple[str, ...] = MODELS[:2], **shifts: float) -> pd.DataFrame:
    """Scores on every prompt; ``shifts`` move the candidate's mean on a measure."""
    generator = np.random.default_rng(seed)
    rows = []
    for measure in MEASURES:
        level = generator.normal(0.8, 0.1, PROMPTS)
        values = {model: level + generator.normal(0, noise, PROMPTS) for model in models}
        values["candidate"] += shifts.get(measure.replace("/", "_"), 0.0)
        rows += [
            (prompt, 7, model, measure, float(value))
            for model in models
            for prompt, value in zip(ATTRIBUTES, values[model], strict=True)
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def scores(noise: float = 0.02, seed: int = 0, **shifts: float) -> Scores:
    """`table`, as evaluate would leave it."""
    return Scores(table(noise, seed, MODELS[:2], **shifts), ATTRIBUTES, SEEDS)


def with_anchor(**shifts: float) -> Scores:
    """As `scores`, the anchor scored too, on each measure ``shifts`` better than the incumbent."""
    made = table(models=MODELS, alignment=0.1)
    for measure, shift in shifts.items():
        rows = (made["measure"] == measure.replace("_", "/")) & (made["model"] == "anchor")
        made.loc[rows, "value"] += shift
    return Scores(made, ATTRIBUTES, SEEDS, anchored=True)


def with_sets(scored: Scores, candidate: float, incumbent: float, seed: int = 0, dimensions: int = 8) -> Scores:
    """``scored``, with features that lie so far from the references."""
    draw = np.random.default_rng(seed)

    def features(count: int, away: float) -> Features:
        return (draw.normal(size=(count, dimensions)) + away).astype(np.float32)

    found = {
        "candidate": features(PROMPTS, candidate),
        "incumbent": features(PROMPTS, incumbent),
        REFERENCES: features(PROMPTS, 0.0),
    }
    rows = tuple((prompt, seed) for prompt, seeds in SEEDS.items() for seed in seeds)
    return replace(scored, sets=Sets(rows, (SetMeasure("realism/kid", Kernel(name="polynomial"), found),)))


def swapped(scored: Scores) -> Scores:
    """The same scores with the models' parts exchanged."""
    names = {"candidate": "incumbent", "incumbent": "candidate"}
    sets = scored.sets and replace(
        scored.sets,
        measures=tuple(
            replace(measure, features={names.get(who, who): features for who, features in measure.features.items()})
            for measure in scored.sets.measures
        ),
    )
    return replace(scored, table=scored.table.assign(model=scored.table["model"].map(names)), sets=sets)
