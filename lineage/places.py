"""What goes wrong with places, be they files, stores or registries, in three words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lineage.digests import LineageError


class PlaceError(LineageError):
    """What lies at a place cannot be used; the message says why and what to do."""


class GoneError(PlaceError):
    """Nothing is there."""


class ChangedError(PlaceError):
    """Something else is there than was meant, or something that has no digest."""


class UnreachableError(PlaceError):
    """Whether it is there cannot be told now: the store does not answer, or may not be read."""


@contextmanager
def reaching(uri: str, is_gone: Callable[[str], bool] = lambda uri: False) -> Iterator[None]:
    """Say in two ways what stores and registries say in many.

    Raises:
        GoneError: nothing is there.
        UnreachableError: anything else.
    """
    shown = without_credentials(uri)
    try:
        yield
    except LineageError:
        raise
    except FileNotFoundError as error:
        raise GoneError(f"nothing is at {shown}; put it back") from error
    except PermissionError as error:
        reason = without_credentials(str(error))
        raise UnreachableError(f"{shown} may not be read: {reason}; check the credentials") from error
    except Exception as error:
        # Stores raise classes of their own libraries, which are not imported here.
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST" or is_gone(uri):
            raise GoneError(f"nothing is at {shown}; put it back") from error
        reason = without_credentials(f"{type(error).__name__}: {error}".splitlines()[0])
        raise UnreachableError(f"{shown} cannot be read: {reason}; try again") from error


def without_credentials(text: str) -> str:
    """``text`` without the user names, passwords and signed queries of the URLs in it."""
    # Up to the last @: a password may hold anything. The Hub's places have no user, and a commit after their @.
    text = re.sub(r"(?<=://)(?<!hf://)\S*@", "", text)
    return re.sub(r"""\?(?:'[^']*'|"[^"]*"|[\w.~%-]+=(?:'[^']*'|"[^"]*"|\S)*)""", "", text)
