"""The note that a run found nothing new, as a pipeline step."""

from components.image import step


@step
def nothing_new(run: dict, reason: str) -> str:
    """Record that nothing had to run, and why."""
    from lineage.records import recording

    with recording(run, "nothing-new", parameters={"reason": reason}):
        return reason
