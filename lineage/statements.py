"""In-toto Statements (https://in-toto.io/Statement/v1): signed claims about artifacts, bound to them by digest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.signer import Key, Signer

from lineage.digests import LineageError, canonical, digest_path, digest_set
from lineage.frozen import Frozen
from lineage.signing import IN_TOTO, made_by, open_envelope, sign

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


def signed_files(signature: bytes, keys: Iterable[Key]) -> dict[str, str]:
    """What an OpenSSF model signature says of the weights, name -> digest, where one of ``keys`` made it.

    The weights are not read; ``model_signing verify key`` checks them, with nothing of ours.

    Raises:
        LineageError: it is malformed, or none of ``keys`` made it.
    """
    try:
        envelope = Envelope.from_dict(json.loads(signature)["dsseEnvelope"])
        [made] = envelope.signatures.values()
        if envelope.payload_type != IN_TOTO:
            raise LineageError(f"the signature is about a {envelope.payload_type}, expected {IN_TOTO}")
        # It names its key by the digest of a PEM file, and keys have ids of their own.
        if not any(made_by(key, made.signature, envelope.pae()) for key in keys):
            raise LineageError("none of the keys made the signature, or it was changed")
        resources = json.loads(envelope.payload)["predicate"]["resources"]
        return {one["name"]: f"{one['algorithm']}:{one['digest']}" for one in resources}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise LineageError(f"this is no signature of a model: {error}") from error
