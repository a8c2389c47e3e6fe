"""Signatures on weights in the OpenSSF format, which ``model_signing verify key`` checks without anything of ours."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from securesystemslib.signer import Key

from lineage.digests import LineageError
from lineage.signing import IN_TOTO, open_envelope


def sign_model(weights: Path, key: Path, signature: Path) -> None:
    """Sign every file of ``weights`` with an unencrypted PEM private key (ECDSA P-256) and write ``signature``.

    Files of git, such as ``.gitignore``, are left out, as the command line does by default.

    Raises:
        LineageError: the key does not serve, or the weights hold a link or something else that cannot be signed.
    """
    from model_signing import signing

    try:
        signer = signing.Config()  # type: ignore[no-untyped-call]
        signer.use_elliptic_key_signer(private_key=key).sign(weights, signature)
    except (OSError, ValueError, TypeError) as error:
        raise LineageError(f"the weights at {weights} cannot be signed with {key}: {error}") from error


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
        envelope = json.loads(signature)["dsseEnvelope"]
        if envelope["payloadType"] != IN_TOTO:
            raise LineageError(f"the signature is about a {envelope['payloadType']}, expected {IN_TOTO}")
        made, payload = envelope["signatures"][0]["sig"], envelope["payload"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise LineageError(f"this is no signature of a model: {error}") from error
    for key in keys:
        # A signature names its key by the digest of a PEM file; an envelope by the key's own id.
        signed = {"payload": payload, "payloadType": IN_TOTO, "signatures": [{"keyid": key.keyid, "sig": made}]}
        with suppress(LineageError):
            content, _ = open_envelope(json.dumps(signed).encode(), IN_TOTO, [key])
            resources = json.loads(content)["predicate"]["resources"]
            return {one["name"]: f"{one['algorithm']}:{one['digest']}" for one in resources}
    raise LineageError("none of the keys made the signature, or it was changed")
