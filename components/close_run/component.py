"""The exit step: close the run whatever happened."""

from components.image import step


@step
def close_run(run: dict, registry: dict) -> str:
    """Derive the run's status from its records and close its MLflow run; safe to repeat."""
    from lineage.closing import close

    return close(run, registry["model_name"])
