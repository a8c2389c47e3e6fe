"""In-toto Statements (https://in-toto.io/Statement/v1): signed claims about artifacts, bound to them by digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from securesystemslib.signer import Key, Signer

from lineage.digests import LineageError, canonical, digest_path, digest_set
from lineage.frozen import Frozen
from lineage.signing import IN_TOTO, open_envelope, sign

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SLSA = "https://slsa.dev/provenance/v1"
"""Predicate type of SLSA provenance."""
VERDICT = "urn:triptych:verdict:v1"
"""Predicate type of the gate's verdict."""
VERDICT_FILE = "verdict.dsse.json"
"""The verdict's name in its folder."""


class Subject(Frozen):
    """What a statement is about."""

    name: str
    digest: dict[str, str]


class Statement(Frozen):
    """A claim of type ``predicateType`` about its subjects."""

    type: str = Field(default=STATEMENT_TYPE, alias="_type")
    subject: tuple[Subject, ...] = Field(min_length=1)
    predicateType: str
    predicate: dict[str, Any]

    def subject_digest(self, name: str) -> str:
        """The digest of the subject called ``name``.

        Raises:
            LineageError: the statement is not about it.
        """
        for subject in self.subject:
            if subject.name == name and len(subject.digest) == 1:
                [(kind, value)] = subject.digest.items()
                return f"{kind}:{value}"
        raise LineageError(f"the statement ({self.predicateType}) names no subject {name!r} by one digest")


def make_statement(predicate_type: str, subjects: Mapping[str, str], predicate: dict[str, Any]) -> Statement:
    """A statement about ``subjects`` (name -> digest)."""
    return Statement(
        subject=tuple(Subject(name=name, digest=digest_set(digest)) for name, digest in subjects.items()),
        predicateType=predicate_type,
        predicate=predicate,
    )


def write_statement(statement: Statement, path: Path, signer: Signer) -> str:
    """Write ``statement`` in an envelope signed by ``signer``; gives the file's digest.

    Raises:
        LineageError: it holds a NaN.
    """
    payload = canonical(statement.model_dump(mode="json", by_alias=True))
    path.write_bytes(sign(payload, IN_TOTO, signer))
    return digest_path(path)


def read_statement(path: Path, predicate_type: str, keys: Iterable[Key]) -> Statement:
    """Read a signed statement, and check its signature and type.

    Args:
        keys: the keys that may vouch for it.

    Raises:
        LineageError: it is missing, malformed, of another type, or none of ``keys`` signed it.
    """
    try:
        return open_statement(path.read_bytes(), predicate_type, keys)
    except (OSError, LineageError) as error:
        raise LineageError(f"{path}: {error}") from error


def open_statement(content: bytes, predicate_type: str, keys: Iterable[Key]) -> Statement:
    """The statement in an envelope; see `read_statement`."""
    payload, _ = open_envelope(content, IN_TOTO, keys)
    try:
        statement = Statement.model_validate_json(payload)
    except ValidationError as error:
        raise LineageError(f"this is not an in-toto statement: {error}") from error
    if statement.type != STATEMENT_TYPE or statement.predicateType != predicate_type:
        raise LineageError(f"this is a {statement.predicateType}, expected {predicate_type}")
    return statement
