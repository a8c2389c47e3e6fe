"""The exit step: close the run whatever happened."""

from components.image import step


@step
def close_run(run: dict, job: str, registry: dict) -> str:
    """Derive the run's status from its records and close its MLflow run; safe to repeat."""
    from components.close_run.close import close
    from lineage.records import RunContext

    return close(RunContext.of(run, job), registry["model_name"])
