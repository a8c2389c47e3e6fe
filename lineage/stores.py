"""Where ledger entries lie: in a database (`lineage.database`), behind a governed MLflow server, or in an export."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from lineage.entries import BusyError, Entry, LedgerError, StaleError, read_entry
from lineage.places import without_credentials

API = "/api/2.0/triptych"
PATIENCE = 30.0
"""Seconds to wait for another writer, and for a server's answer."""

Maker = Callable[[list[Entry]], Entry]
"""Makes the next entry from those that came since it last looked."""


class ConflictError(LedgerError):
    """Another entry came first; read on and try again."""


class ServerStore:
    """Entries behind a governed MLflow server. Credentials come from MLflow's own variables."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url.rstrip("/"), without_credentials(url)

    def entries(self, after: int, before: int | None = None) -> list[Entry]:
        """Those from index ``after`` on, up to ``before``."""
        # Not splitlines: a reason may hold a line separator of Unicode's.
        answer = self.ask("GET", f"/entries?after={after}" + ("" if before is None else f"&before={before}"))
        return [read_entry(line) for line in answer.split("\n") if line]

    def append(self, after: int, make: Maker) -> Entry:
        """Append what ``make`` gives, checked, from the entries since ``after``; nothing comes between the two.

        Raises:
            ConflictError: something did.
        """
        entry = make(self.entries(after))
        self.ask("POST", "/entries", entry.model_dump_json())
        return entry

    def ask(
        self, method: str, path: str, content: str | None = None, patience: float = PATIENCE, retries: int = 2
    ) -> str:
        """The server's answer to a request under `API`.

        Raises:
            ConflictError: another entry came first.
            LedgerError: it refuses, with its reason, or does not answer within ``patience`` seconds.
        """
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        try:
            answer = http_request(
                get_default_host_creds(self.url),
                API + path,
                method,
                data=content,
                timeout=patience,
                max_retries=retries,
                raise_on_status=False,
            )
        except Exception as error:
            raise LedgerError(
                f"the ledger at {self.name} does not answer: {without_credentials(str(error))}"
            ) from error
        if answer.status_code == 200:
            return str(answer.text)
        kind, said = _refusal(answer.text)
        raise REFUSALS.get(kind, LedgerError)(f"the ledger at {self.name} refused ({answer.status_code}): {said}")


REFUSALS: dict[str, type[LedgerError]] = {kind.__name__: kind for kind in (StaleError, BusyError, ConflictError)}
"""``kind`` in a server's answer -> the error to raise here."""


def _refusal(answer: str) -> tuple[str, str]:
    """The name of the error and the message in a server's JSON answer."""
    try:
        content = json.loads(answer)
        return str(content.get("kind", "")), str(content["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", answer[:200]


def export(entries: Iterable[Entry]) -> str:
    """Entries as JSON lines."""
    return "".join(entry.model_dump_json() + "\n" for entry in entries)


def read_export(path: Path) -> list[Entry]:
    """The entries of an export, not yet checked.

    Raises:
        LedgerError: the file cannot be read, or a line is no entry.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"the export {path} cannot be read: {error}") from error
    lines = lines[:-1] if not lines[-1] else lines
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(read_entry(line))
        except LedgerError as error:
            raise LedgerError(f"{path}, line {number}: {error}") from error
    return entries
