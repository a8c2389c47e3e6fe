"""Judge stored scores and write the verdict with its plot."""

from __future__ import annotations

import base64
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
from lineage.registry import Registry
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
    store: Registry
    """The model's, whose former versions are shown."""
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
    ruling, pinned = decide(read, settings), str(facts["evaluation_set"]["digest"])
    decisions = 1 + sum(judged.evaluation == pinned != "" for judged in about.state.verdicts.values())
    warnings = _warnings(decisions, settings)
    rules = settings.model_dump(mode="json")
    policy = policy_digest(facts["terms"], rules)
    predicate: dict[str, Any] = {
        "run": about.run,
        "model": about.store.model_name,
        "ledger": about.state.ledger,
        **ruling.model_dump(mode="json"),
        "decisions": decisions,
        "warnings": warnings,
        "evaluation": stated(facts),
        "gate": rules,
        "policy": policy,
    }
    candidate, incumbent = facts["candidate"]["digest"], facts["incumbent"]["digest"]
    verdict.mkdir(parents=True, exist_ok=True)
    statement = make_statement(VERDICT, {"candidate": candidate}, predicate)
    digest = write_statement(statement, verdict / VERDICT_FILE, signer)
    draw_pareto(ruling, past_versions(about.state, about.store, pinned), verdict / PICTURE)
    (verdict / PAGE).write_text(_page(ruling, warnings, (verdict / PICTURE).read_bytes()))
    return ruling, Judged(
        run=about.run,
        model=about.store.model_name,
        candidate=candidate,
        incumbent=incumbent,
        evaluation=pinned,
        decision=ruling.decision,
        verdict=digest,
        policy=policy,
    )


def _warnings(decisions: int, settings: GateSettings) -> list[str]:
    """What a reader should know although it decided nothing."""
    if decisions < settings.decisions_warning:
        return []
    return [
        f"this is decision {decisions} on this evaluation set: who tries often enough passes by chance; make a new "
        "version of the set"
    ]


def _page(ruling: Ruling, warnings: list[str], picture: bytes) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in (*ruling.reasons, *warnings))
    image = base64.b64encode(picture).decode()
    shown = f'<img alt="the axes" style="max-width:100%" src="data:image/png;base64,{image}">'
    return f"<h2>{ruling.decision}</h2><ul>{reasons}</ul>{shown}\n"
