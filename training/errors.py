"""The one exception of this room."""

from __future__ import annotations


class TrainingError(Exception):
    """Training cannot go on; the message says what is wrong, where, and what to do."""
