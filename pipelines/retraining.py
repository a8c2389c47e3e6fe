"""The retraining pipeline, top to bottom as it runs.

    exit handler( snapshot -> plan -> if needed: validate -> encode -> fine-tune -> evaluate -> gate -> register
                                                 -> promote
                                      else:      nothing new )

Conditions test booleans only, and no output leaves the `If`.
"""

from typing import Any

from kfp import dsl

from components.close_run.component import close_run
from components.encode_features.component import encode_features
from components.evaluate.component import draw_samples, evaluate
from components.fine_tune.component import fine_tune
from components.gate.component import gate as gate_step
from components.nothing_new.component import nothing_new
from components.plan.component import plan
from components.promote.component import promote
from components.register.component import register
from components.snapshot_data.component import snapshot_data
from components.validate_data.component import validate_data
from lineage.whereabouts import FIELDS, PREFIX

NAME = "retraining"


def build_pipeline(image: str, cluster: bool = False, retries: int = 0, sample_shards: int = 1) -> Any:
    """The pipeline, to be called under `kfp.local`, or compiled.

    A run is named after its pipeline job, so that what a schedule repeats (its parameters) names no run.

    Args:
        image: of every step.
        cluster: have each step told in which pod it runs.
        retries: of a step, with back-off.
        sample_shards: above 1, so many tasks draw the samples and evaluate only judges them: on clusters, since KFP's
            local runner silently skips an `If` that contains a `ParallelFor`.
    """

    def finish(*tasks: dsl.PipelineTask) -> None:
        # Never cached: a cache key holds names, not contents. Reuse is the plan's business.
        for task in tasks:
            task.set_container_image(image).set_caching_options(False)
            if retries:
                task.set_retry(retries, backoff_duration="30s", backoff_factor=2.0)
            if cluster:
                from kfp import kubernetes

                for name, field in FIELDS.items():
                    kubernetes.use_field_path_as_env(task, PREFIX + name, field)

    @dsl.pipeline(name=NAME, description="Retrain, judge on three axes, register, promote.")
    def retraining(
        run: dict,
        data: dict,
        validation: dict,
        training: dict,
        evaluation: dict,
        gate: dict,
        registry: dict,
        trainjob: dict = {},  # noqa: B006
        force: bool = False,
    ) -> None:
        this = {"run": run, "job": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
        closing = close_run(**this, registry=registry)
        with dsl.ExitHandler(closing):
            snapshot = snapshot_data(**this, data=data)
            planned = plan(
                **this,
                snapshot_digest=snapshot.outputs["digest"],
                data=data,
                rows=snapshot.outputs["rows"],
                validation=validation,
                training=training,
                evaluation=evaluation,
                gate=gate,
                registry=registry,
                force=force,
            )
            decided = planned.outputs
            with dsl.If(decided["needed"] == True, name="needed"):  # noqa: E712
                validated = validate_data(**this, validation=validation, snapshot=snapshot.outputs["snapshot"])
                features = encode_features(**this, training=training, validated=validated.outputs["validated"])
                tuned = fine_tune(
                    **this,
                    training=training,
                    trainjob=trainjob,
                    mlflow_run=decided["mlflow_run"],
                    reuse_uri=decided["reuse_uri"],
                    reuse_digest=decided["reuse_digest"],
                    validated=validated.outputs["validated"],
                    features=features.outputs["features"],
                )
                compared = {
                    **this,
                    "evaluation": evaluation,
                    "incumbent_uri": decided["incumbent_uri"],
                    "incumbent_digest": decided["incumbent_digest"],
                    "anchor_uri": decided["anchor_uri"],
                    "anchor_digest": decided["anchor_digest"],
                    "candidate": tuned.outputs["candidate"],
                }
                scored = evaluate(**compared, training=training, validated=validated.outputs["validated"])
                if sample_shards > 1:
                    with dsl.ParallelFor(list(range(sample_shards)), name="samples") as shard:
                        drawn = draw_samples(**compared, shard=shard, shards=sample_shards)
                        finish(drawn)
                    scored.after(drawn)
                judged = gate_step(**this, gate=gate, registry=registry, scores=scored.outputs["scores"])
                registered = register(
                    **this,
                    registry=registry,
                    training_key=decided["training_key"],
                    evaluation_terms=decided["evaluation_terms"],
                    mlflow_run=decided["mlflow_run"],
                    candidate=tuned.outputs["candidate"],
                    training_record=tuned.outputs["training_record"],
                    validated=validated.outputs["validated"],
                    scores=scored.outputs["scores"],
                    verdict=judged.outputs["verdict"],
                )
                promoted = promote(
                    **this,
                    registry=registry,
                    version=registered.output,
                    verdict=judged.outputs["verdict"],
                    verdict_digest=judged.outputs["digest"],
                )
            with dsl.Else(name="nothing-new"):
                noted = nothing_new(**this, reason=decided["reason"])
        finish(
            closing,
            snapshot,
            planned,
            validated,
            features,
            tuned,
            scored,
            judged,
            registered,
            promoted,
            noted,
        )

    return retraining
