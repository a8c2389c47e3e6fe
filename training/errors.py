"""How training ends early: with an error, or because it was asked to."""

from __future__ import annotations

STOPPED = 75
"""Exit status of training that was asked to stop and can be taken up again (sysexits.h: EX_TEMPFAIL)."""

STOP_FILE = "TRIPTYCH_TRAINING_STOP_FILE"
"""Variable with the file whose appearance asks a training process to stop, whether or not it has begun to listen."""


class TrainingError(Exception):
    """Training cannot go on; the message says what is wrong, where, and what to do."""


class ProcessLostError(TrainingError):
    """A training process was killed, or ended with an error not its own, as where its peer was killed."""


class StorageError(TrainingError):
    """A place cannot be read or written now; what lies there may be as it should be."""


class Stopped(SystemExit):
    """Training was asked to stop and has saved where it is; leaves the process with status `STOPPED`."""

    def __init__(self, message: str) -> None:
        super().__init__(STOPPED)
        self._message = message

    def __str__(self) -> str:
        return self._message
