"""Plan, as a pipeline step."""

from typing import NamedTuple

from components.image import step


@step
def plan(
    run: dict, snapshot_digest: str, training: dict, evaluation: dict, gate: dict, registry: dict, force: bool
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
    base_digest=str,
    mlflow_run=str,
):
    """Decide what has to run; where anything has to, open the MLflow run that shows it."""
    from collections import namedtuple
    from dataclasses import asdict

    from components.plan.plan import make_plan
    from lineage.records import recording
    from lineage.registry import Registry

    with recording(run, "plan", parameters={"force": force, "registry": registry}) as record:
        record.input("snapshot", snapshot_digest)
        store = Registry(run["tracking_uri"], registry["model_name"])
        made = asdict(make_plan(store, snapshot_digest, training, evaluation, gate, force))
        made["mlflow_run"] = store.open_run(run["id"]) if made["needed"] else ""
        record.facts |= made
        made.pop("incumbent_name")
        return namedtuple("Outputs", made)(**made)
