"""Register, as a pipeline step."""

from kfp.dsl import Artifact, Dataset, Input, Model

from components.image import step


@step
def register(
    run: dict,
    job: str,
    registry: dict,
    training_key: str,
    evaluation_terms: str,
    mlflow_run: str,
    candidate: Input[Model],
    training_record: Input[Artifact],
    validated: Input[Dataset],
    scores: Input[Dataset],
    verdict: Input[Artifact],
) -> str:
    """Register the candidate with its evidence, whatever the verdict; returns the version's number."""
    from pathlib import Path

    from components.register.register import register_candidate
    from lineage.records import RunContext, recording
    from lineage.registry import RegistrySettings

    context, settings = RunContext.of(run, job), RegistrySettings.model_validate(registry)
    inputs = {"candidate": candidate, "verdict": verdict, "training": training_record, "scores": scores}
    paths = {name: Path(artifact.path) for name, artifact in {**inputs, "validated": validated}.items()}
    keys = {"training_key": training_key, "evaluation_terms": evaluation_terms}
    with recording(context, "register", parameters=registry) as record:
        for name, path in paths.items():
            record.input(name, path)
        registered, judged = register_candidate(context, settings, mlflow_run, paths, keys)
        record.facts |= {**registered.model_dump(), "decision": judged.decision, "incumbent": judged.incumbent}
        return registered.version
