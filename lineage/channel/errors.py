"""What goes wrong with a channel, in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tuf.api import exceptions as tuf
from urllib3.exceptions import HTTPError

from lineage.digests import LineageError
from lineage.places import without_credentials


class ChannelError(LineageError):
    """A channel does not hold, or does not say what is asked for."""


class ExpiredError(ChannelError):
    """Nobody vouches for what the channel says any more: it was not renewed, or an old copy is served."""


class UnreachableError(ChannelError):
    """The channel's place, or the folder that remembers what was seen of it, cannot be used."""


MIXED = "was tampered with or mixed: a file is not the one that was signed"
MEANINGS: tuple[tuple[type[Exception], type[ChannelError], str], ...] = (
    (tuf.ExpiredMetadataError, ExpiredError, "has expired: it was not renewed, or an old copy is served"),
    (tuf.BadVersionNumberError, ChannelError, "was rolled back: it is older than what was seen before"),
    (tuf.UnsignedMetadataError, ChannelError, "is not signed by its root's keys: a revoked key, or another root"),
    (tuf.LengthOrHashMismatchError, ChannelError, MIXED),
    (tuf.DownloadLengthMismatchError, ChannelError, MIXED),
    (tuf.RepositoryError, ChannelError, "is none, or was tampered with: a file cannot be read"),
    (Exception, UnreachableError, "cannot be reached"),
)
"""What TUF's errors mean; the first that fits."""


@contextmanager
def in_words(where: str) -> Iterator[None]:
    """Turn TUF's errors into this room's, about the channel at ``where``.

    Raises:
        ChannelError: what happened, for people.
    """
    try:
        yield
    except (tuf.RepositoryError, tuf.DownloadError, HTTPError, OSError) as error:
        kind, meaning = next((kind, meaning) for cause, kind, meaning in MEANINGS if isinstance(error, cause))
        if getattr(error, "status_code", 0) in (403, 404):
            kind, meaning = ChannelError, "lacks a file: there is none here, or only a part of one"
        raise kind(without_credentials(f"the channel {where} {meaning}: {error.__cause__ or error}")) from error
