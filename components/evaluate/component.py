"""Evaluate, as a pipeline step."""

from kfp.dsl import HTML, Dataset, Input, Model, Output

from components.image import step


@step
def evaluate(
    run: dict,
    evaluation: dict,
    incumbent_uri: str,
    incumbent_digest: str,
    candidate: Input[Model],
    scores: Output[Dataset],
    grid: Output[HTML],
) -> str:
    """Sample candidate and incumbent on the same prompts and seeds and score both; returns the scores' digest."""
    from pathlib import Path

    from components.evaluate.evaluate import evaluate_against
    from components.evaluate.settings import EvaluationSettings
    from lineage.records import recording

    with recording(run, "evaluate", parameters=evaluation) as record:
        settings = EvaluationSettings.model_validate(evaluation)
        record.input("candidate", candidate.path)
        record.input("incumbent", incumbent_digest)
        record.facts |= evaluate_against(
            settings, run["tracking_uri"], incumbent_uri, incumbent_digest, Path(candidate.path), Path(scores.path)
        )
        Path(grid.path).write_bytes((Path(scores.path) / "grid.html").read_bytes())
        return record.output("scores", scores.path)
