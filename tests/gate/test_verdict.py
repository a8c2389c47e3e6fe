"""The verdict, as a specification: which scores give which decision, and why."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from pydantic import ValidationError

from components.gate.scores import Scores
from components.gate.settings import AXES, Constraint, GateSettings, Slice
from components.gate.verdict import decide
from tests.gate.tables import ATTRIBUTES, RULES, SET_RULES, scores, with_anchor, with_sets

GUARDED = RULES.model_copy(update={"constraints": {"memorisation": Constraint(margin=0.05, limit=0.5)}})


@pytest.mark.parametrize(
    ("shifts", "decision", "reason"),
    [
        ({"alignment": 0.1}, "promote", "gain: alignment"),
        ({}, "hold", "no gain"),
        ({"alignment": 0.1, "realism": -0.05}, "hold", "trade-off: realism"),
        ({"alignment": 0.1, "realism": -0.2}, "reject", "realism"),
        ({"alignment": 0.1, "alignment_glasses": -0.4}, "reject", "no glasses asked"),
        ({"alignment": -0.3, "realism": 0.3, "aesthetics": 0.3}, "reject", "alignment"),
    ],
)
def test_decisions(shifts: dict[str, float], decision: str, reason: str) -> None:
    ruling = decide(scores(**shifts), RULES)
    assert ruling.decision == decision
    assert reason in " ".join(ruling.reasons)


def test_a_slice_that_gets_worse_within_its_margin_is_a_trade_off() -> None:
    ruling = decide(scores(alignment=0.1, alignment_glasses=-0.1), RULES)
    assert ruling.decision == "hold"
    assert ruling.reasons[0].startswith("trade-off: no glasses asked")


def test_a_margin_says_how_many_prompts_it_needs() -> None:
    narrow = RULES.model_copy(update={"margins": {**RULES.margins, "alignment": 0.01}})
    assert (
        decide(scores(alignment=0.1), narrow)
        .reasons[0]
        .startswith("axis 'alignment' has 160 prompts; a margin of 0.01 on scores from 0 to 1 needs 459")
    )


def test_scores_beyond_a_range_that_nobody_declared_are_invalid() -> None:
    made, wide = scores(alignment=0.1, realism=30.0), {axis: 1.0 for axis in AXES}
    undeclared = RULES.model_copy(update={"ranges": {}, "margins": wide, "slices": {}})
    assert "gate.ranges does not say between what its scores lie" in decide(made, undeclared).reasons[0]
    declared = undeclared.model_copy(update={"ranges": {"realism": (0.0, 1.0), "aesthetics": (0.0, 2.0)}})
    assert decide(made, declared).figures[1].candidate == 1.0, "as much as a score may count"


def test_the_decisions_of_an_evaluation_set_run_out() -> None:
    assert decide(scores(alignment=0.1), RULES, decision=20).decision == "promote"
    ruling = decide(scores(alignment=0.1), RULES, decision=21)
    assert ruling.decision == "hold"
    assert "decision 21 on an evaluation set that was meant for 20" in ruling.reasons[0]
    assert decide(scores(realism=-0.3), RULES, decision=21).decision == "reject"


def sealed(made: Scores, alignment: float) -> Scores:
    """Every second pair of prompts sealed; on them the candidate's alignment is another one."""
    kept = frozenset(prompt for number, prompt in enumerate(made.prompts) if number % 4 > 1)
    rows = made.table["prompt"].isin(kept) & (made.table["measure"] == "alignment")
    made.table.loc[rows & (made.table["model"] == "candidate"), "value"] += alignment
    return replace(made, sealed=kept)


def test_sealed_prompts_confirm_what_the_others_would_promote_and_tell_nothing_else() -> None:
    rules = RULES.model_copy(
        update={"slices": {"x": RULES.slices["no glasses asked"].model_copy(update={"margin": 0.3})}}
    )
    good = decide(sealed(scores(alignment=0.1), 0.0), rules)
    assert good.decision == "promote" and good.reasons[-1] == "confirmed on 80 sealed prompts"
    assert {figure.prompts for figure in (*good.figures, *good.sealed)} == {80, 40}
    bad = decide(sealed(scores(alignment=0.1), -0.3), rules)
    assert bad.decision == "hold" and bad.reasons[0] == "the 80 sealed prompts do not confirm it"
    assert bad.figures == good.figures and not bad.sealed
    unseen = decide(sealed(scores(alignment=-0.3), 0.6), rules)
    assert unseen.decision == "reject" and not unseen.sealed


def test_too_little_evidence_is_inconclusive() -> None:
    ruling = decide(scores(noise=0.5, alignment=0.02), RULES)
    assert ruling.decision == "hold"
    assert "inconclusive" in ruling.reasons[0]


def test_an_average_cannot_hide_harm_to_a_slice() -> None:
    made = scores(alignment=0.05)
    harmed = [prompt for prompt, has in ATTRIBUTES.items() if not has["glasses"]]
    rows = (made.table["measure"] == "alignment/glasses") & (made.table["model"] == "candidate")
    made.table.loc[rows & made.table["prompt"].isin(harmed), "value"] -= 0.4
    made.table.loc[rows & ~made.table["prompt"].isin(harmed), "value"] += 0.3
    assert decide(made, RULES).decision == "reject"


def test_no_gain_says_what_gain_would_have_been_seen() -> None:
    ruling = decide(scores(), RULES)
    assert "would each have been seen in 80 % of evaluations" in ruling.reasons[1]
    assert all(0 < figure.detectable < 0.1 for figure in ruling.figures)


@pytest.mark.parametrize(
    ("anchor", "decision"),
    [
        ({}, "promote"),
        ({"realism": 0.2}, "reject"),
        ({"realism": 0.005}, "promote"),
        ({"alignment_glasses": 0.3}, "reject"),
    ],
)
def test_a_candidate_may_not_be_worse_than_the_approved_version(anchor: dict[str, float], decision: str) -> None:
    ruling = decide(with_anchor(**anchor), RULES)
    assert ruling.decision == decision
    assert (
        decide(replace(with_anchor(), table=scores(alignment=0.1).table, anchored=False), RULES).decision == "promote"
    )
    if decision != "promote":
        assert "against the anchor" in ruling.reasons[0]


def test_an_approved_version_without_scores_is_invalid() -> None:
    ruling = decide(replace(scores(alignment=0.1), anchored=True), RULES)
    assert ruling.decision == "invalid"
    assert "anchor lacks prompt" in ruling.reasons[0]


def memorised(candidate: int, incumbent: int) -> Scores:
    """Scores in which every so-maniest picture is memorised."""
    made = scores(alignment=0.1)
    rows = made.table[made.table["measure"] == "alignment"].assign(measure="memorisation")
    for model, every in (("candidate", candidate), ("incumbent", incumbent)):
        of = rows["model"] == model
        rows.loc[of, "value"] = [-1.0 if i % every == 0 else 0.0 for i in range(of.sum())]
    return replace(made, table=pd.concat([made.table, rows]))


@pytest.mark.parametrize(
    ("candidate", "incumbent", "decision", "reason"),
    [
        (4, 4, "promote", "gain"),
        (8, 4, "promote", "gain"),
        (3, 40, "reject", "hard constraint memorisation -0.025 -> -0.338"),
        (1, 1, "reject", "a share of 1.000 is over the limit of 0.5"),
        (2, 2, "hold", "inconclusive: memorisation: a share of 0.500: one over the limit of 0.5 cannot be ruled out"),
    ],
)
def test_memorisation_is_a_hard_constraint(candidate: int, incumbent: int, decision: str, reason: str) -> None:
    ruling = decide(memorised(candidate, incumbent), GUARDED)
    assert ruling.decision == decision
    assert reason in ruling.reasons[0]


def test_a_constraint_without_its_measure_is_invalid() -> None:
    assert "no scores for memorisation" in decide(scores(alignment=0.1), GUARDED).reasons[0]


@pytest.mark.parametrize(
    ("candidate", "incumbent", "decision", "reason"),
    [
        (0.1, 0.6, "promote", "gain: realism/kid"),
        (0.3, 0.3, "hold", "inconclusive: realism/kid"),
        (0.6, 0.1, "reject", "realism/kid"),
    ],
)
def test_a_distance_of_sets_decides_an_axis(candidate: float, incumbent: float, decision: str, reason: str) -> None:
    ruling = decide(with_sets(scores(), candidate, incumbent), SET_RULES)
    assert ruling.decision == decision
    assert reason in ruling.reasons[0]


def test_a_slice_cannot_be_judged_by_a_distance_of_sets() -> None:
    rare = Slice(measure="realism/kid", where={"glasses": True}, margin=0.1)
    ruling = decide(with_sets(scores(), 0.1, 0.6), SET_RULES.model_copy(update={"slices": {"rare": rare}}))
    assert ruling.decision == "invalid"
    assert "judges a set as a whole" in ruling.reasons[0]


def test_a_missing_margin_is_invalid() -> None:
    ruling = decide(scores(alignment=0.1), RULES.model_copy(update={"margins": {"alignment": 0.1}}))
    assert ruling.decision == "invalid"
    assert "no margin for realism, aesthetics" in ruling.reasons[0]


def test_a_slice_with_too_few_prompts_is_invalid() -> None:
    rare = Slice(measure="alignment", where={"skin": "dark", "glasses": True}, margin=0.1)
    ruling = decide(scores(alignment=0.1), RULES.model_copy(update={"slices": {"rare": rare}}))
    assert ruling.decision == "invalid"
    assert "rare" in ruling.reasons[0]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"margins": {"realsm": 0.1}}, "realsm"),
        ({"margins": dict.fromkeys(AXES, float("inf"))}, "finite"),
        ({"margins": dict.fromkeys(AXES, -0.1)}, "greater than 0"),
        ({"margins": dict.fromkeys(AXES, 0.1), "ranges": {"realism": (1, 0)}}, "lowest score first"),
        ({"margins": dict.fromkeys(AXES, 0.1), "alpha": 0.001}, "too few"),
    ],
)
def test_settings_that_could_let_anything_pass_are_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        GateSettings.model_validate(wrong)
