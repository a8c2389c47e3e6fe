"""Plan, as a pipeline step."""

from typing import NamedTuple

from components.image import step


@step
def plan(
    run: dict,
    job: str,
    snapshot_digest: str,
    data: dict,
    rows: int,
    validation: dict,
    training: dict,
    evaluation: dict,
    gate: dict,
    registry: dict,
    force: bool,
) -> NamedTuple(
    "Outputs",
    needed=bool,
    reason=str,
    training_key=str,
    evaluation_terms=str,
    reuse_uri=str,
    reuse_digest=str,
    incumbent_uri=str,
    incumbent_digest=str,
    anchor_uri=str,
    anchor_digest=str,
    mlflow_run=str,
):
    """Decide what has to run; where anything has to, open the MLflow run that shows it."""
    from collections import namedtuple
    from dataclasses import asdict

    from components.plan.overview import log_dataset, show_run
    from components.plan.plan import plan_run
    from lineage.records import RunContext, recording
    from lineage.registry import Registry, RegistrySettings
    from training.settings import TrainingSettings

    context, settings = RunContext.of(run, job), RegistrySettings.model_validate(registry)
    with recording(context, "plan", parameters={"force": force, "registry": registry}) as record:
        record.input("snapshot", snapshot_digest)
        sections = {"validation": validation, "evaluation": evaluation, "gate": gate}
        sections["training"] = TrainingSettings.model_validate(training).deciding()
        made = plan_run(context, settings, snapshot_digest, sections, force)
        facts = {**asdict(made), "mlflow_run": ""}
        if made.needed:
            store = Registry(context.tracking_uri, settings.model_name, settings.artifacts)
            facts["mlflow_run"] = store.open_run(context.id)
            log_dataset(store, facts["mlflow_run"], snapshot_digest, data["source"], {"rows": int(rows)})
            show_run(store, facts["mlflow_run"], context, {**sections, "data": data})
        record.facts |= facts
        for shown in ("incumbent_name", "busy"):
            facts.pop(shown)
        return namedtuple("Outputs", facts)(**facts)
