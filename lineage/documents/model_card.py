"""The model card, as the Hugging Face Hub reads it: what the model is for, how it was judged, what is unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lineage.documents.candidate import Candidate

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TASK = "text-to-image"


def model_card(candidate: Candidate) -> str:
    """Markdown with the Hub's metadata in its head; evaluation results are there as figures and below as a table.

    A rejected candidate has a card too, and the card says so first.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        model_name=candidate.model_name,
        pipeline_tag=TASK,
        library_name="diffusers",
        license="other",
        license_name=candidate.license or "not declared",
        tags=[TASK, "triptych", f"decision:{candidate.verdict.predicate['decision']}"],
        eval_results=_results(candidate),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(candidate)}"))


def _results(candidate: Candidate) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    pinned = candidate.evaluation["evaluation_set"]
    return [
        EvalResult(
            task_type=TASK,
            dataset_type="triptych-evaluation-set",
            dataset_name=f"{pinned['name']} {pinned['version']}",
            dataset_revision=pinned["digest"],
            metric_type=figure["measure"],
            metric_name=figure["name"],
            metric_value=figure["candidate"],
        )
        for figure in candidate.figures
    ]


def _body(candidate: Candidate) -> str:
    predicate = candidate.verdict.predicate
    scorers = ", ".join(f"{s['name']} ({s['axis']})" for s in candidate.evaluation["scorers"])
    pinned = candidate.evaluation["evaluation_set"]
    reasons = "\n".join(f"- {reason}" for reason in predicate["reasons"])
    return f"""# {candidate.model_name}

**Decision of the gate: {predicate["decision"]}**

{reasons}

Weights `{candidate.digest}`, a `{candidate.architecture()}` that diffusers loads, made by run `{candidate.run}`.

## Intended use

Drawing portraits from captions of the kind it was trained on (below). It is not meant for pictures of existing
people, nor for deciding anything about a person.

## Limits

Only what the table shows was measured, by automatic scorers, on one pinned set of prompts; no person has rated the
pictures unless the model version says who approved it. Prompts of another kind, larger pictures, other languages and
likeness to single training pictures were not measured. Whatever the training data favours, the model will favour.

## Training data

{_stated(candidate)}

Base model `{candidate.input("base_model") or "not recorded"}`, fine-tuned on `{candidate.data_digest}`. The teacher
(`{candidate.input("teacher") or "none"}`) is not part of the model. `croissant.json` describes the data row by row.

## Evaluation

Against the incumbent `{candidate.evaluation["incumbent"]["digest"]}`, on {pinned["name"]} {pinned["version"]}
(`{pinned["digest"]}`), the same prompts and seeds for both, higher is better. Scorers: {scorers}.

{_figures(candidate)}

## Licence

{candidate.license or "Nobody has declared one; ask the owner before using the model."}

## Checking

`model.sig` signs the weights: `model_signing verify key WEIGHTS --signature model.sig --public_key KEY`.
`provenance.dsse.json` names everything that went into them by digest, `bom.cdx.json` every package.
"""


def _figures(candidate: Candidate) -> str:
    """All the verdict's figures; where there are none, it says why in its reasons."""
    if not candidate.figures:
        return "Nothing was measured: the verdict is invalid, for the reason above."
    found = figures_table(candidate.figures)
    if candidate.anchor:
        found += "\n\nAgainst the last version that a person approved:\n\n"
        found += figures_table(candidate.anchor, "approved version")
    return found


def figures_table(figures: list[dict[str, object]], other: str = "incumbent") -> str:
    """Figures of the verdict as a Markdown table; ``other`` is whom the candidate was compared with."""
    lines = [
        f"| figure | {other} | candidate | difference | interval | margin |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {f['name']} | {f['incumbent']:.3f} | {f['candidate']:.3f} | {f['difference']:+.3f} "
        f"| {f['lower']:+.3f} to {f['upper']:+.3f} | {f['margin']:g} |"
        for f in figures
    ]
    return "\n".join(lines)


def _stated(candidate: Candidate) -> str:
    """How many pictures state which licence, consent and source; the most frequent five of each."""
    lines = [f"{candidate.images()}.", ""]
    for column in ("license", "consent", "source"):
        values = candidate.stated(column)
        lines += [f"- {column}: {value} ({count})" for value, count in list(values.items())[:5]]
        lines += [f"- {column}: {len(values) - 5} others"] if len(values) > 5 else []
    return "\n".join(lines)
