"""The verdict, as a specification: which scores give which decision, and why."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.gate.settings import AXES, GateSettings, Slice
from components.gate.verdict import COLUMNS, Ruling, decide, draw_counts

PROMPTS = 80
ATTRIBUTES: dict[str, dict[str, str | bool]] = {
    f"p{i:03d}": {"glasses": i % 2 == 0, "skin": ("light", "brown", "dark")[i % 3]} for i in range(PROMPTS)
}
RULES = GateSettings(
    margins=dict.fromkeys(AXES, 0.02),
    slices={"no glasses asked": Slice(measure="alignment/glasses", where={"glasses": False}, margin=0.05)},
    resamples=1000,
)
MEASURES = (*AXES, "alignment/glasses")


def scores(noise: float = 0.02, seed: int = 0, **shifts: float) -> pd.DataFrame:
    """Scores of both models on every prompt; ``shifts`` move the candidate's mean on a measure."""
    generator = np.random.default_rng(seed)
    rows = []
    for measure in MEASURES:
        incumbent = generator.normal(0.8, 0.1, PROMPTS)
        candidate = incumbent + shifts.get(measure.replace("/", "_"), 0.0) + generator.normal(0, noise, PROMPTS)
        for model, values in (("incumbent", incumbent), ("candidate", candidate)):
            rows += [
                (prompt, 7, model, measure, float(value)) for prompt, value in zip(ATTRIBUTES, values, strict=True)
            ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def swapped(table: pd.DataFrame) -> pd.DataFrame:
    """The same scores with the models' parts exchanged."""
    return table.assign(model=table["model"].map({"candidate": "incumbent", "incumbent": "candidate"}))


@pytest.mark.parametrize(
    ("shifts", "decision", "reason"),
    [
        ({"alignment": 0.1}, "promote", "gain: alignment"),
        ({}, "hold", "no gain"),
        ({"alignment": 0.1, "realism": -0.012}, "hold", "trade-off: realism"),
        ({"alignment": 0.1, "realism": -0.1}, "reject", "realism"),
        ({"alignment": 0.1, "alignment_glasses": -0.2}, "reject", "no glasses asked"),
        ({"alignment": -0.3, "realism": 0.3, "aesthetics": 0.3}, "reject", "alignment"),
    ],
)
def test_decisions(shifts: dict[str, float], decision: str, reason: str) -> None:
    ruling = decide(scores(**shifts), ATTRIBUTES, RULES)
    assert ruling.decision == decision
    assert reason in " ".join(ruling.reasons)


def test_too_little_evidence_is_inconclusive() -> None:
    ruling = decide(scores(noise=0.3, alignment=0.02), ATTRIBUTES, RULES)
    assert ruling.decision == "hold"
    assert "inconclusive" in ruling.reasons[0]


def test_an_average_cannot_hide_harm_to_a_slice() -> None:
    table = scores(alignment=0.05)
    harmed = [prompt for prompt, has in ATTRIBUTES.items() if not has["glasses"]]
    rows = (table["measure"] == "alignment/glasses") & (table["model"] == "candidate")
    table.loc[rows & table["prompt"].isin(harmed), "value"] -= 0.2
    table.loc[rows & ~table["prompt"].isin(harmed), "value"] += 0.3
    assert decide(table, ATTRIBUTES, RULES).decision == "reject"


def _drop_measure(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["measure"] != "realism"]


def _drop_prompt(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["prompt"] != "p003"]


def _drop_candidate_seed(table: pd.DataFrame) -> pd.DataFrame:
    return table[~((table["prompt"] == "p003") & (table["model"] == "candidate"))]


def _other_seed(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(seed=table["seed"] + (table["model"] == "candidate").astype(int))


def _repeat(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table.head(1)])


def _spoil(value: float) -> object:
    return lambda table: table.assign(value=[value, *table["value"].iloc[1:]])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_drop_measure, "realism"),
        (_drop_prompt, "p003"),
        (_drop_candidate_seed, "same prompts and seeds"),
        (_other_seed, "same prompts and seeds"),
        (_repeat, "two scores"),
        (_spoil(float("nan")), "nan"),
        (_spoil(float("inf")), "inf"),
        (lambda table: table.drop(columns="seed"), "seed"),
        (lambda table: table.iloc[:0], "no scores"),
        (lambda table: table.assign(model="candidate"), "two scores"),
    ],
)
def test_unusable_scores_are_invalid_and_say_why(spoil: object, reason: str) -> None:
    ruling = decide(spoil(scores(alignment=0.1)), ATTRIBUTES, RULES)  # type: ignore[operator]
    assert ruling.decision == "invalid"
    assert reason in ruling.reasons[0]


def test_missing_margin_is_invalid() -> None:
    rules = RULES.model_copy(update={"margins": {"alignment": 0.1}})
    assert decide(scores(alignment=0.1), ATTRIBUTES, rules).decision == "invalid"


def test_a_slice_with_too_few_prompts_is_invalid() -> None:
    rare = Slice(measure="alignment", where={"skin": "dark", "glasses": True}, margin=0.1)
    ruling = decide(scores(alignment=0.1), ATTRIBUTES, RULES.model_copy(update={"slices": {"rare": rare}}))
    assert ruling.decision == "invalid"
    assert "rare" in ruling.reasons[0]


def _figures(ruling: Ruling) -> list[tuple[float, float]]:
    return [(figure.lower, figure.upper) for figure in ruling.figures]


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries({axis: st.floats(-0.15, 0.15) for axis in AXES}), st.floats(0.001, 0.2), st.integers(0, 99)
)
def test_antisymmetry(shifts: dict[str, float], noise: float, seed: int) -> None:
    table = scores(noise, seed, **shifts)
    both = {decide(table, ATTRIBUTES, RULES).decision, decide(swapped(table), ATTRIBUTES, RULES).decision}
    assert both != {"promote"}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.floats(0, 0.2), st.sampled_from(AXES))
def test_better_scores_never_make_a_verdict_worse(seed: int, rise: float, axis: str) -> None:
    table = scores(0.05, seed, alignment=0.03)
    raised = table.copy()
    raised.loc[(table["measure"] == axis) & (table["model"] == "candidate"), "value"] += rise
    before, after = decide(table, ATTRIBUTES, RULES), decide(raised, ATTRIBUTES, RULES)
    assert all(b[0] <= a[0] + 1e-12 for b, a in zip(_figures(before), _figures(after), strict=True))
    order = ["reject", "hold", "promote"]
    assert order.index(after.decision) >= order.index(before.decision)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    table = scores(alignment=0.05)
    shuffled = table.sample(frac=1.0, random_state=seed)
    assert decide(shuffled, ATTRIBUTES, RULES) == decide(table, ATTRIBUTES, RULES)


def test_resamples_keep_the_size_of_each_stratum() -> None:
    strata = np.array([0] * 5 + [1] * 9)
    counts = draw_counts(strata, 50, seed=1)
    assert (counts[:, :5].sum(axis=1) == 5).all()
    assert (counts[:, 5:].sum(axis=1) == 9).all()
