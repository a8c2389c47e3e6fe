"""Judge stored scores and write the verdict with its plot."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.gate.pareto import draw_pareto, past_versions
from components.gate.scores import read_scores
from components.gate.settings import GateSettings
from components.gate.verdict import Ruling, decide
from lineage.entries import Judged
from lineage.policy import policy_digest
from lineage.scores import stated
from lineage.state import State
from lineage.statements import VERDICT, VERDICT_FILE, make_statement, write_statement

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

PICTURE, PAGE = "pareto.png", "pareto.html"


@dataclass(frozen=True)
class VerdictContext:
    """What a verdict says beside the scores: whose it is, and what was decided before."""

    run: str
    model: str
    tracking_uri: str
    """Of MLflow, where the model's former versions are found, which are shown."""
    state: State
    """Of the ledger, whose name is the workspace's."""


def judge(
    settings: GateSettings, scores: Path, verdict: Path, about: VerdictContext, signer: Signer
) -> tuple[Ruling, Judged]:
    """Rule on the scores folder that evaluate wrote.

    Writes the folder ``verdict``: `VERDICT_FILE`, a signed in-toto Statement, and the plot as `PICTURE` and `PAGE`.
    Gives the ruling, and what the ledger is to say of it.

    Raises:
        LineageError: the scores are not those that ``evaluation.json`` names.
    """
    read, facts = read_scores(scores)
    pinned = str(facts["evaluation_set"]["digest"])
    decisions = 1 + about.state.decisions(pinned)
    ruling, budget = decide(read, settings, decisions), _budget(decisions, settings)
    rules = settings.model_dump(mode="json")
    policy = policy_digest(facts["terms"], rules)
    predicate: dict[str, Any] = {
        "run": about.run,
        "model": about.model,
        "ledger": about.state.ledger,
        **ruling.model_dump(mode="json"),
        "decisions": decisions,
        "budget": budget,
        "evaluation": stated(facts),
        "gate": rules,
        "policy": policy,
    }
    candidate, incumbent = facts["candidate"]["digest"], facts["incumbent"]["digest"]
    verdict.mkdir(parents=True, exist_ok=True)
    statement = make_statement(VERDICT, {"candidate": candidate}, predicate)
    digest = write_statement(statement, verdict / VERDICT_FILE, signer)
    draw_pareto(ruling, past_versions(about.state, about.tracking_uri, about.model, pinned), verdict / PICTURE)
    (verdict / PAGE).write_text(_page(ruling, [budget, *_agreement(facts)], (verdict / PICTURE).read_bytes()))
    return ruling, Judged(
        run=about.run,
        model=about.model,
        candidate=candidate,
        incumbent=incumbent,
        evaluation=pinned,
        decision=ruling.decision,
        verdict=digest,
        policy=policy,
    )


def _budget(decisions: int, settings: GateSettings) -> str:
    """What of the evaluation set's error is spent with this decision."""
    spent = settings.level * min(decisions, settings.life)
    return f"decision {decisions} of {settings.life} on this evaluation set: {spent:.2g} of {settings.alpha:g} spent"


def _agreement(facts: Mapping[str, Any]) -> list[str]:
    found = facts.get("agreement", {})
    return [f"judges' differences correlate: {pair} {value:+.2f}" for pair, value in sorted(found.items())]


def _page(ruling: Ruling, notes: list[str], picture: bytes) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in (*ruling.reasons, *notes))
    image = base64.b64encode(picture).decode()
    shown = f'<img alt="the axes" style="max-width:100%" src="data:image/png;base64,{image}">'
    return f"<h2>{ruling.decision}</h2><ul>{reasons}</ul>{shown}\n"
