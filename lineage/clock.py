"""The time as entries, records and checkpoints write it: ISO 8601, UTC, milliseconds."""

from datetime import UTC, datetime, timedelta


def now(ahead: timedelta = timedelta()) -> str:
    """The time, or one ``ahead`` of it."""
    return written(datetime.now(UTC) + ahead)


def written(time: datetime) -> str:
    """``time`` in that form."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds")
