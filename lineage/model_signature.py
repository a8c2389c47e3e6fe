"""Signatures on weights in the OpenSSF format, which ``model_signing verify key`` checks without anything of ours."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from securesystemslib.dsse import Envelope
from securesystemslib.signer import Key

from lineage.digests import LineageError
from lineage.signing import IN_TOTO, made_by


def verify_model(weights: Path, public_key: Path, signature: Path) -> None:
    """Check that ``weights`` are exactly what was signed: no file changed, added or missing.

    Raises:
        LineageError: they are not, or the signature is by another key.
    """
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    try:
        verifier = verifying.Config()  # type: ignore[no-untyped-call]
        verifier.use_elliptic_key_verifier(public_key=public_key).verify(weights, signature)
    except (OSError, ValueError, InvalidSignature) as error:
        raise LineageError(
            f"the signature {signature} does not hold for the weights at {weights} and the key {public_key}: "
            f"{error or 'it was made with another key'}; do not use them"
        ) from error


def signed_files(signature: bytes, keys: Iterable[Key]) -> dict[str, str]:
    """What a signature says of the weights, name -> digest, where one of ``keys`` made it; the weights are not read.

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
