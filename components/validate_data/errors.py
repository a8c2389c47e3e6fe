"""What goes wrong in validation."""

from __future__ import annotations

from lineage.digests import LineageError


class DataValidationError(LineageError):
    """The data is refused, or could not be judged; the message says what is wrong, where, and what to do."""
