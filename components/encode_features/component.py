"""Encode features, as a pipeline step."""

from kfp.dsl import Dataset, Input, Output

from components.image import step


@step
def encode_features(run: dict, job: str, training: dict, validated: Input[Dataset], features: Output[Dataset]) -> str:
    """Encode latents, text embeddings and teacher features of the accepted pictures; returns their digest."""
    from pathlib import Path

    from components.encode_features.pictures import encode_pictures
    from lineage.records import RunContext, recording
    from training.encode.info import INFO
    from training.settings import TrainingSettings

    context = RunContext.of(run, job)
    with recording(context, "encode-features", parameters=training) as record:
        settings = TrainingSettings.model_validate(training)
        record.input("validated", validated.path)
        cache = Path(context.state) / "features" if context.state else None
        info = encode_pictures(settings, Path(validated.path), Path(features.path), cache)
        record.input("base_model", settings.base_model)
        if teacher := info.made_of.get("teacher"):
            record.input("teacher", teacher)
        if structure := info.made_of.get("structure"):
            record.input("structure_model", structure["model"])
        record.facts |= info.model_dump(mode="json")
        return record.output("features", Path(features.path) / INFO)
