"""In-toto Statements (https://in-toto.io/Statement/v1): claims about artifacts, bound to them by digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lineage.digests import PREFIX, LineageError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
VERDICT = "urn:triptych:verdict:v1"
"""Predicate type of the gate's verdict."""


class Subject(BaseModel):
    """What a statement is about."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    digest: dict[str, str]


class Statement(BaseModel):
    """A claim of type ``predicateType`` about its subjects."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
            if subject.name == name and "sha256" in subject.digest:
                return PREFIX + subject.digest["sha256"]
        raise LineageError(f"the statement ({self.predicateType}) names no subject {name!r}")


def make_statement(predicate_type: str, subjects: Mapping[str, str], predicate: dict[str, Any]) -> Statement:
    """A statement about ``subjects`` (name -> digest)."""
    return Statement(
        subject=tuple(
            Subject(name=name, digest={"sha256": digest.removeprefix(PREFIX)}) for name, digest in subjects.items()
        ),
        predicateType=predicate_type,
        predicate=predicate,
    )


def write_statement(statement: Statement, path: Path) -> None:
    """Write ``statement`` as JSON; a NaN anywhere in it is refused."""
    content = statement.model_dump(mode="json", by_alias=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_statement(path: Path, predicate_type: str) -> Statement:
    """Read a statement and check its type.

    Raises:
        LineageError: it is missing, malformed, or of another type.
    """
    try:
        statement = Statement.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise LineageError(f"{path} is not an in-toto statement: {error}") from error
    if statement.type != STATEMENT_TYPE or statement.predicateType != predicate_type:
        raise LineageError(f"{path} is a {statement.predicateType}, expected {predicate_type}")
    return statement
