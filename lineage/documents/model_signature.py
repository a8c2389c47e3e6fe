"""Signatures on weights in the OpenSSF format, which ``model_signing verify key`` checks without anything of ours."""

from __future__ import annotations

from pathlib import Path

from lineage.digests import LineageError


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
