"""Evaluate, as pipeline steps: sampling in shares where a cluster shares it out, and judging."""

from kfp.dsl import HTML, Dataset, Input, Model, Output

from components.image import step


@step
def draw_samples(
    run: dict,
    job: str,
    evaluation: dict,
    incumbent_uri: str,
    incumbent_digest: str,
    shard: int,
    shards: int,
    candidate: Input[Model],
    anchor_uri: str = "",
    anchor_digest: str = "",
) -> None:
    """Draw one of ``shards`` shares of all models' samples into the run's state folder."""
    from pathlib import Path

    from components.evaluate.evaluate import decision_of, draw_shard, opponents
    from components.evaluate.settings import EvaluationSettings
    from lineage.records import RunContext, recording

    context = RunContext.of(run, job)
    others = opponents(incumbent_uri, incumbent_digest, anchor_uri, anchor_digest)
    with recording(context, f"draw-samples-{shard}", parameters=evaluation) as record:
        settings = EvaluationSettings.model_validate(evaluation)
        record.input("candidate", candidate.path)
        models = context.tracking_uri, Path(candidate.path), others
        decision = decision_of(settings, context)
        record.facts["trouble"] = draw_shard(settings, *models, context.state, shard, shards, decision)


@step
def evaluate(
    run: dict,
    job: str,
    evaluation: dict,
    training: dict,
    incumbent_uri: str,
    incumbent_digest: str,
    candidate: Input[Model],
    validated: Input[Dataset],
    scores: Output[Dataset],
    grid: Output[HTML],
    anchor_uri: str = "",
    anchor_digest: str = "",
) -> str:
    """Sample candidate and incumbent on the same prompts and seeds and score both; returns the scores' digest."""
    from pathlib import Path

    from components.evaluate.evaluate import decision_of, evaluate, opponents
    from components.evaluate.settings import EvaluationSettings
    from lineage.records import RunContext, recording

    context = RunContext.of(run, job)
    others = opponents(incumbent_uri, incumbent_digest, anchor_uri, anchor_digest)
    with recording(context, "evaluate", parameters=evaluation) as record:
        settings = EvaluationSettings.model_validate(evaluation)
        record.input("candidate", candidate.path)
        record.input("validated", validated.path)
        for who, (_, digest) in others.items():
            record.input(who, digest)
        models = context.tracking_uri, Path(candidate.path), others
        where, decision = (Path(scores.path), context.state), decision_of(settings, context)
        record.facts |= evaluate(settings, *models, *where, training, Path(validated.path), decision)
        Path(grid.path).write_bytes((Path(scores.path) / "grid.html").read_bytes())
        return record.output("scores", scores.path)
