"""The note that a run found nothing new, as a pipeline step."""

from components.image import step


@step
def nothing_new(run: dict, job: str, reason: str) -> str:
    """Record that nothing had to run, and why."""
    from lineage.records import RunContext, recording

    with recording(RunContext.of(run, job), "nothing-new", parameters={"reason": reason}):
        return reason
