"""The retraining pipeline, top to bottom as it runs.

    exit handler( snapshot -> plan -> if needed: validate -> encode -> fine-tune -> evaluate -> gate -> register
                                                 -> promote
                                      else:      nothing new )

Conditions test booleans only, and no output leaves the `If`.
"""

from collections.abc import Callable
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


def build_pipeline(
    image: str,
    cluster: bool = False,
    retries: int = 0,
    sample_shards: int = 1,
    equip: Callable[[dsl.PipelineTask, str], None] | None = None,
) -> Any:
    """The pipeline, to be called under `kfp.local`, or compiled.

    A run is named after its pipeline job, so that what a schedule repeats (its parameters) names no run.

    Args:
        image: of every step.
        cluster: have each step told in which pod it runs.
        retries: of a step, with back-off.
        sample_shards: above 1, so many tasks draw the samples and evaluate only judges them: on clusters, since KFP's
            local runner silently skips an `If` that contains a `ParallelFor`.
        equip: gives a task what the step of that name needs, such as `pipelines.cluster.ClusterSettings.equip`.
    """

    def placed(task: dsl.PipelineTask) -> dsl.PipelineTask:
        # Never cached: a cache key holds names, not contents. Reuse is the plan's business.
        task.set_container_image(image).set_caching_options(False)
        if retries:
            task.set_retry(retries, backoff_duration="30s", backoff_factor=2.0)
        if cluster:
            from kfp import kubernetes

            for name, field in FIELDS.items():
                kubernetes.use_field_path_as_env(task, PREFIX + name, field)
        if equip:
            equip(task, task.component_spec.name)
        return task

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
        def step(component: Any, *given: dict, **inputs: Any) -> dsl.PipelineTask:
            for outputs in given:
                inputs |= outputs
            return placed(component(run=run, job=dsl.PIPELINE_JOB_ID_PLACEHOLDER, **inputs))

        closing = step(close_run, registry=registry)
        with dsl.ExitHandler(closing):
            snapshot = step(snapshot_data, data=data)
            planned = step(
                plan,
                {"data": data, "validation": validation, "training": training},
                {"evaluation": evaluation, "gate": gate, "registry": registry},
                snapshot_digest=snapshot.outputs["digest"],
                rows=snapshot.outputs["rows"],
                force=force,
            )
            with dsl.If(planned.outputs["needed"] == True, name="needed"):  # noqa: E712
                validated = step(validate_data, of(snapshot, "snapshot"), validation=validation)
                features = step(encode_features, of(validated, "validated"), training=training)
                tuned = step(
                    fine_tune,
                    of(planned, "mlflow_run", "reuse_uri", "reuse_digest"),
                    of(validated, "validated"),
                    of(features, "features"),
                    training=training,
                    trainjob=trainjob,
                )
                models = of(planned, "incumbent_uri", "incumbent_digest", "anchor_uri", "anchor_digest")
                compared = {**models, **of(tuned, "candidate"), "evaluation": evaluation}
                scored = step(evaluate, compared, of(validated, "validated"), training=training)
                if sample_shards > 1:
                    with dsl.ParallelFor(list(range(sample_shards)), name="samples") as shard:
                        drawn = step(draw_samples, compared, shard=shard, shards=sample_shards)
                    scored.after(drawn)
                judged = step(gate_step, of(scored, "scores"), gate=gate, registry=registry)
                registered = step(
                    register,
                    of(planned, "training_key", "evaluation_terms", "mlflow_run"),
                    of(tuned, "candidate", "training_record"),
                    {**of(validated, "validated"), **of(scored, "scores"), **of(judged, "verdict")},
                    registry=registry,
                )
                decision = {"verdict_digest": judged.outputs["digest"], **of(judged, "verdict")}
                step(promote, decision, registry=registry, version=registered.output)
            with dsl.Else(name="nothing-new"):
                step(nothing_new, of(planned, "reason"))

    return retraining


def of(task: dsl.PipelineTask, *names: str) -> dict:
    """Some outputs of a task, for inputs of the same names."""
    return {name: task.outputs[name] for name in names}
