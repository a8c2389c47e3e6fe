"""Fine-tune, as a pipeline step."""

from typing import NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components.image import step


@step
def fine_tune(
    run: dict,
    job: str,
    training: dict,
    trainjob: dict,
    mlflow_run: str,
    reuse_uri: str,
    reuse_digest: str,
    validated: Input[Dataset],
    features: Input[Dataset],
    candidate: Output[Model],
    curves: Output[HTML],
    training_record: Output[Artifact],
) -> NamedTuple("Outputs", digest=str):
    """Train a candidate under DeepSpeed, or fetch the one at ``reuse_uri``; gives the digest of its folder."""
    from collections import namedtuple
    from pathlib import Path

    from components.fine_tune.candidate import fetch_candidate, train_candidate
    from components.fine_tune.installed import installed
    from components.fine_tune.settings import TrainJobSettings
    from lineage.records import RunContext, recording
    from training.encode.info import INFO
    from training.launch.watching import MlflowRun
    from training.settings import TrainingSettings

    context = RunContext.of(run, job)
    outputs = Path(candidate.path), Path(curves.path), Path(training_record.path)
    with recording(context, "fine-tune", parameters=training) as record:
        record.input("validated", validated.path)
        record.input("features", Path(features.path) / INFO)
        if reuse_uri:
            record.facts |= fetch_candidate(reuse_uri, reuse_digest, context.tracking_uri, *outputs)
        else:
            settings = TrainingSettings.model_validate(training)
            curves_to = MlflowRun(context.tracking_uri, mlflow_run) if mlflow_run else None
            cluster = TrainJobSettings.model_validate(trainjob) if trainjob else None
            places = Path(validated.path), Path(features.path), *outputs
            record.facts |= train_candidate(settings, cluster, context.id, *places, curves_to, context.state)
        record.facts["installed"] = installed()  # the steps that tell of it run where less is
        record.output("training", training_record.path)
        return namedtuple("Outputs", "digest")(record.output("candidate", candidate.path))
