"""What holds of every verdict, whatever the scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.gate.scores import Scores
from components.gate.settings import AXES
from components.gate.verdict import Ruling, decide
from lineage.scores import REFERENCES
from tests.gate.tables import ATTRIBUTES, MEASURES, PROMPTS, RULES, SET_RULES, scores, swapped, with_sets

GOOD = scores(alignment=0.1)
GOOD_SETS = with_sets(scores(), 0.1, 0.6)
SHIFTS = st.fixed_dictionaries({axis: st.floats(-0.15, 0.15) for axis in AXES})
ORDER = ["reject", "hold", "promote"]


def test_the_starting_points_are_promoted() -> None:
    assert decide(GOOD, RULES).decision == decide(GOOD_SETS, SET_RULES).decision == "promote"


@settings(max_examples=40, deadline=None)
@given(SHIFTS, st.floats(0.001, 0.2), st.integers(0, 99))
def test_antisymmetry(shifts: dict[str, float], noise: float, seed: int) -> None:
    made = scores(noise, seed, **shifts)
    there, back = decide(made, RULES), decide(swapped(made), RULES)
    assert {there.decision, back.decision} != {"promote"}
    for one, other in zip(there.figures, back.figures, strict=True):
        assert one.lower == -other.upper
        assert one.lower_gain <= 0 or other.upper_loss < 0, "a gain is a loss from the other side"


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_antisymmetry_of_distances_of_sets(candidate: float, incumbent: float, seed: int) -> None:
    made = with_sets(scores(), candidate, incumbent, seed)
    there, back = decide(made, SET_RULES), decide(swapped(made), SET_RULES)
    assert {there.decision, back.decision} != {"promote"}
    assert there.figures[1].lower == pytest.approx(-back.figures[1].upper, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 99),
    SHIFTS,
    st.lists(st.tuples(st.sampled_from(MEASURES), st.integers(0, PROMPTS - 1), st.floats(0, 5)), max_size=60),
)
def test_a_better_score_on_any_prompt_never_makes_a_verdict_worse(
    seed: int, shifts: dict[str, float], rises: list[tuple[str, int, float]]
) -> None:
    before = scores(0.05, seed, **shifts)
    raised = before.table.set_index(["measure", "model", "prompt"]).sort_index()
    for measure, prompt, rise in rises:
        raised.loc[(measure, "candidate", f"p{prompt:03d}"), "value"] += rise
    was, now = decide(before, RULES), decide(replace(before, table=raised.reset_index()), RULES)
    assert all(worse.lower <= better.lower for worse, better in zip(was.figures, now.figures, strict=True))
    assert all(worse.upper <= better.upper for worse, better in zip(was.figures, now.figures, strict=True))
    assert ORDER.index(now.decision) >= ORDER.index(was.decision)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    two_seeds = pd.concat([GOOD.table, scores(0.1, 3, alignment=0.1).table.assign(seed=8)])
    made = replace(GOOD, table=two_seeds, seeds={prompt: [7, 8] for prompt in ATTRIBUTES})
    draw = np.random.default_rng(seed)
    names = list(ATTRIBUTES)
    draw.shuffle(names)
    shuffled = replace(
        made,
        table=two_seeds.sample(frac=1.0, random_state=seed),
        attributes={name: ATTRIBUTES[name] for name in names},
        seeds={name: [8, 7] for name in names},
    )
    assert decide(shuffled, RULES) == decide(made, RULES)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999))
def test_the_order_of_features_does_not_matter(seed: int) -> None:
    assert GOOD_SETS.sets
    order = np.random.default_rng(seed).permutation(PROMPTS)
    (kid,) = GOOD_SETS.sets.measures
    features = {who: kid.features[who][order] for who in ("candidate", "incumbent")}
    moved = replace(
        GOOD_SETS.sets,
        rows=tuple(GOOD_SETS.sets.rows[i] for i in order),
        measures=(replace(kid, features={**kid.features, **features}),),
    )
    assert decide(replace(GOOD_SETS, sets=moved), SET_RULES) == decide(GOOD_SETS, SET_RULES)


def invalid(made: Scores, rules: Any = RULES) -> str:
    """The reason why scores are invalid."""
    ruling: Ruling = decide(made, rules)
    assert ruling.decision == "invalid"
    assert not ruling.figures
    return ruling.reasons[0]


ROW = st.integers(0, len(GOOD.table) - 1)


@settings(max_examples=25, deadline=None)
@given(ROW, st.sampled_from([math.nan, math.inf, -math.inf, 1e200, None, "high"]))
def test_any_score_that_is_no_number_is_invalid(row: int, value: object) -> None:
    spoiled = GOOD.table.astype({"value": object})
    spoiled.iat[row, 4] = value
    assert GOOD.table.iat[row, 0] in invalid(replace(GOOD, table=spoiled))


@settings(max_examples=15, deadline=None)
@given(st.sets(ROW, min_size=1, max_size=400))
def test_any_missing_score_is_invalid(rows: set[int]) -> None:
    left = GOOD.table.drop(index=list(rows))
    assert "lacks prompt" in (reason := invalid(replace(GOOD, table=left))) or "no scores for" in reason


@settings(max_examples=15, deadline=None)
@given(ROW)
def test_any_repeated_score_is_invalid(row: int) -> None:
    again = pd.concat([GOOD.table, GOOD.table.iloc[[row]].assign(value=0.5)])
    assert "two scores" in invalid(replace(GOOD, table=again))


@settings(max_examples=25, deadline=None)
@given(ROW, st.sampled_from(["prompt", "seed", "model"]))
def test_any_score_under_another_key_is_invalid(row: int, column: str) -> None:
    other = {"prompt": "p999", "seed": 99, "model": "someone else"}[column]
    spoiled = GOOD.table.copy()
    spoiled.iat[row, list(spoiled.columns).index(column)] = other
    assert str(other) in (reason := invalid(replace(GOOD, table=spoiled))) or "lacks" in reason


SPOILED: dict[str, tuple[Callable[[Scores], Scores], str]] = {
    "another evaluation set": (lambda s: replace(s, attributes={**ATTRIBUTES, "new": {}}), "does not name the seeds"),
    "scores of another set": (
        lambda s: replace(s, attributes={**ATTRIBUTES, "new": {}}, seeds={**s.seeds, "new": [7]}),
        "lacks prompt new",
    ),
    "another seed for both": (lambda s: replace(s, table=s.table.assign(seed=8)), "prompts and seeds"),
    "a set without seeds": (lambda s: replace(s, seeds={}), "does not name the seeds"),
    "a prompt without seeds": (lambda s: replace(s, seeds={**s.seeds, "p000": []}), "does not name the seeds"),
    "a measure less": (lambda s: replace(s, table=s.table[s.table["measure"] != "realism"]), "no scores for realism"),
    "a column less": (lambda s: replace(s, table=s.table.drop(columns="seed")), "seed"),
    "no rows": (lambda s: replace(s, table=s.table.iloc[:0]), "no scores"),
    "one model": (lambda s: replace(s, table=s.table[s.table["model"] == "candidate"]), "incumbent lacks"),
    "no prompts": (lambda s: replace(s, attributes={}, seeds={}), "has 0 prompts"),
    "few prompts": (
        lambda s: replace(
            s,
            table=s.table[s.table["prompt"] < "p020"],
            attributes={p: a for p, a in ATTRIBUTES.items() if p < "p020"},
            seeds={p: [7] for p in ATTRIBUTES if p < "p020"},
        ),
        "has 20 prompts; a margin of 0.1 on scores from 0 to 1 needs 44",
    ),
    "a failed evaluation": (lambda s: replace(s, unusable="the champion no longer loads"), "the champion no longer"),
}


@pytest.mark.parametrize("spoilt", SPOILED)
def test_scores_that_cannot_be_used_are_invalid_and_say_why(spoilt: str) -> None:
    spoil, reason = SPOILED[spoilt]
    assert reason in invalid(spoil(GOOD))


def spoil_features(who: str, change: Callable[[Any], Any]) -> Scores:
    """`GOOD_SETS` with the features of one model changed; None takes them away."""
    assert GOOD_SETS.sets
    (kid,) = GOOD_SETS.sets.measures
    features = {**kid.features, who: change(kid.features[who].copy())}
    kept = {name: found for name, found in features.items() if found is not None}
    return replace(GOOD_SETS, sets=replace(GOOD_SETS.sets, measures=(replace(kid, features=kept),)))


@pytest.mark.parametrize("who", ["candidate", "incumbent", REFERENCES])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: None, "no features"),
        (lambda f: f[:0], "no features"),
        (lambda f: f[:, :3], "dimensions"),
        (lambda f: np.where(f == f[0, 0], np.nan, f), "not finite"),
        (lambda f: np.where(f == f[0, 0], np.inf, f), "not finite"),
        (lambda f: f[0], "no features"),
    ],
)
def test_features_that_cannot_be_used_are_invalid(who: str, change: Callable[[Any], Any], reason: str) -> None:
    assert reason in invalid(spoil_features(who, change), SET_RULES)


@pytest.mark.parametrize(
    "rows",
    [
        lambda rows: rows[:-1],
        lambda rows: (*rows[:-1], rows[0]),
        lambda rows: (*rows[:-1], ("p999", 7)),
        lambda rows: tuple((prompt, 8) for prompt, _ in rows),
        lambda rows: (*rows, rows[0]),
    ],
)
def test_features_of_other_pictures_are_invalid(rows: Callable[[Any], Any]) -> None:
    assert GOOD_SETS.sets
    moved = replace(GOOD_SETS, sets=replace(GOOD_SETS.sets, rows=rows(GOOD_SETS.sets.rows)))
    assert "prompts and seeds" in invalid(moved, SET_RULES)


def test_too_few_features_are_invalid() -> None:
    assert "features of the candidate for" in invalid(spoil_features("candidate", lambda f: f[:-1]), SET_RULES)
    assert "two references" in invalid(spoil_features(REFERENCES, lambda f: f[:1]), SET_RULES)


def test_a_distance_that_no_file_holds_is_invalid() -> None:
    assert "no scores for realism/kid" in invalid(GOOD, SET_RULES)
