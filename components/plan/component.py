"""Plan, as a pipeline step."""

from typing import NamedTuple

from components.image import step


@step
def plan(
    run: dict,
    kfp_run: str,
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

    from components.plan.plan import make_plan
    from lineage.records import RunContext, recording
    from lineage.registry import Registry
    from training.settings import TrainingSettings

    with recording(run, "plan", parameters={"force": force, "registry": registry}) as record:
        record.input("snapshot", snapshot_digest)
        model = registry["model_name"]
        state = RunContext.model_validate(run).open_ledger().state
        store = Registry(run["tracking_uri"], model, registry.get("artifacts"))
        deciding = TrainingSettings.model_validate(training).deciding()
        made = asdict(make_plan(state, model, snapshot_digest, validation, deciding, evaluation, gate, force))
        made["mlflow_run"] = store.open_run(run["id"]) if made["needed"] else ""
        if made["mlflow_run"]:
            store.log_dataset(made["mlflow_run"], snapshot_digest, data["source"], {"rows": int(rows)})
        record.facts |= {**made, "kfp_run": kfp_run}
        for shown in ("incumbent_name", "base_digest"):
            made.pop(shown)
        return namedtuple("Outputs", made)(**made)
