"""Which decision figures lead to, said with figures made by hand: every claim at, above and below its bound."""

from __future__ import annotations

from typing import Any

import pytest

from components.gate.figures import Figure, Kind
from components.gate.settings import AXES
from components.gate.verdict import rule


def figure(name: str, kind: Kind = "axis", **changes: Any) -> Figure:
    """One that holds, and is neither better nor worse."""
    fields: dict[str, Any] = {
        "incumbent": 0.5,
        "candidate": 0.5,
        "difference": 0.0,
        "lower": -0.01,
        "upper": 0.01,
        "lower_gain": -0.02,
        "upper_loss": 0.02,
        "margin": 0.05,
        "candidate_lower": -0.1,
        "candidate_upper": 0.0,
        "error": 0.005,
        "detectable": 0.0123,
    }
    return Figure(name=name, measure=name, kind=kind, prompts=300, **(fields | changes))


BETTER: dict[str, Any] = {"lower": 0.001, "upper": 0.05, "lower_gain": 0.0005, "difference": 0.02}
WORSE: dict[str, Any] = {"upper_loss": -0.001, "difference": -0.02}
FAR: dict[str, Any] = {"lower": -0.051}
OTHERS = [figure("realism"), figure("aesthetics"), figure("dark skin", "slice"), figure("copies", "constraint")]


@pytest.mark.parametrize(
    ("changed", "decision", "reason"),
    [
        ({}, "promote", "gain: alignment"),
        (WORSE, "hold", "trade-off: alignment"),
        (FAR, "hold", "inconclusive: alignment"),
        (WORSE | FAR, "reject", "alignment"),
        ({"lower": -0.05}, "hold", "inconclusive: alignment"),
        ({"lower": -0.0499}, "promote", "gain: alignment"),
        ({"upper_loss": 0.0}, "promote", "gain: alignment"),
        ({"lower_gain": 0.0}, "hold", "no gain"),
    ],
)
def test_an_axis_at_its_bounds(changed: dict[str, Any], decision: str, reason: str) -> None:
    ruling = rule([figure("alignment", **(BETTER | changed)), *OTHERS])
    assert (ruling.decision, ruling.reasons[0][: len(reason)]) == (decision, reason)


@pytest.mark.parametrize("kind", ["slice", "constraint"])
@pytest.mark.parametrize(
    ("changed", "decision"), [({}, "promote"), (WORSE, "hold"), (FAR, "hold"), (WORSE | FAR, "reject")]
)
def test_a_slice_or_constraint_at_its_bounds(kind: Kind, changed: dict[str, Any], decision: str) -> None:
    ruling = rule([figure("alignment", **BETTER), figure("one", kind, **changed), *OTHERS])
    if kind == "constraint" and changed == WORSE:
        decision = "promote"  # Within its margin and limit, a fault may come and go.
    assert ruling.decision == decision
    assert decision == "promote" or "one 0.500 -> 0.500" in ruling.reasons[0]


@pytest.mark.parametrize(
    ("limit", "share", "decision", "reason"),
    [
        (0.1, (0.05, 0.1), "promote", "gain"),
        (0.1, (0.05, 0.11), "hold", "inconclusive: copies: a share of 0.080: one over the limit of 0.1"),
        (0.1, (0.1, 0.2), "hold", "inconclusive: copies"),
        (0.1, (0.101, 0.2), "reject", "hard constraint copies: a share of 0.080 is over the limit of 0.1"),
        (1.0, (0.9, 1.0), "promote", "gain"),
    ],
)
def test_a_limit_is_compared_with_bounds_of_the_share(
    limit: float, share: tuple[float, float], decision: str, reason: str
) -> None:
    least, most = share
    copies = figure("copies", "constraint", limit=limit, candidate=-0.08, candidate_upper=-least, candidate_lower=-most)
    ruling = rule([figure("alignment", **BETTER), *OTHERS[:3], copies])
    assert (ruling.decision, ruling.reasons[0][: len(reason)]) == (decision, reason)


@pytest.mark.parametrize(
    ("changed", "decision", "reason"),
    [
        ({}, "promote", "gain"),
        (WORSE, "promote", "gain"),
        (FAR, "hold", "inconclusive: against the anchor: realism"),
        (WORSE | FAR, "reject", "against the anchor: realism"),
    ],
)
def test_against_the_anchor_margins_hold_and_a_loss_within_them_does_not_count(
    changed: dict[str, Any], decision: str, reason: str
) -> None:
    ruling = rule([figure("alignment", **BETTER), *OTHERS], [figure("alignment"), figure("realism", **changed)])
    assert (ruling.decision, ruling.reasons[0][: len(reason)]) == (decision, reason)
    assert decision != "promote" or ruling.reasons[-1].endswith("within their margins, also against the anchor")


def test_reasons_tell_of_axes_alone_what_gain_would_have_been_seen() -> None:
    ruling = rule([figure("alignment", detectable=0.25), *OTHERS])
    assert ruling.reasons == (
        "no gain: every axis holds, none is better: "
        + "; ".join(f"{name} 0.500 -> 0.500 (+0.000, interval -0.010 to +0.010)" for name in AXES),
        "gains of 0.25 in alignment, 0.012 in realism, 0.012 in aesthetics would each have been seen in 80 % of "
        "evaluations of this size",
    )
    promoted = rule([figure("alignment", **BETTER), *OTHERS])
    assert promoted.reasons[-1] == "all 3 axes and 2 slices and constraints hold within their margins"
