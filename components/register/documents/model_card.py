"""The model card, as the Hugging Face Hub reads it: what the model is for, how it was judged, what is unknown.

Its text is ``model_card.md`` beside this module, a jinja2 template.
"""

from __future__ import annotations

from pathlib import Path

from components.register.documents.candidate import Candidate
from lineage.figures import figures_table

TASK = "text-to-image"
TEMPLATE = Path(__file__).with_suffix(".md")


def model_card(candidate: Candidate) -> str:
    """Markdown with the Hub's metadata in its head; evaluation results are there as figures and below as a table.

    A rejected candidate has a card too, and the card says so first.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData
    from jinja2 import StrictUndefined, Template

    verdict, pinned = candidate.verdict.predicate, candidate.evaluation["evaluation_set"]
    results = [
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
    data = ModelCardData(
        model_name=candidate.model_name,
        pipeline_tag=TASK,
        library_name="diffusers",
        license="other",
        license_name=candidate.license or "not declared",
        tags=[TASK, "triptych", f"decision:{verdict['decision']}"],
        eval_results=results,
    )
    # Unlike `ModelCard.from_template`, a name that is nowhere is an error.
    template = Template(TEMPLATE.read_text("utf-8"), undefined=StrictUndefined)
    return str(ModelCard(template.render(card_data=data.to_yaml(), it=candidate, verdict=verdict, table=figures_table)))
