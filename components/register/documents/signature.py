"""The candidate's signature in the OpenSSF format."""

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
