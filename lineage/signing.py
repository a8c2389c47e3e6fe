"""Signing keys and signed envelopes.

A key has one role: `root` says which keys count, `run` vouches for what steps did, `gate` for verdicts, `promotion`
for moves of the champion, `witness` for how long the ledger is. Private keys are found by URI (securesystemslib's
signers): ``file2:/path/key.pem`` for ECDSA P-256 in PKCS #8, and cloud key services by their own schemes.

Envelopes follow DSSE (https://github.com/secure-systems-lab/dsse): a signature covers the payload and its type, so
that nothing signed as one thing can be passed off as another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import CryptoSigner, Key, Signature, Signer, SSlibKey

from lineage.digests import LineageError
from lineage.files import exclusive, write_whole

Role = Literal["root", "run", "gate", "promotion", "witness"]
ROLES: tuple[Role, ...] = get_args(Role)
SCHEME = "file2:"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order of the curve P-256 (FIPS 186-4, D.1.2.3)."""
IN_TOTO = "application/vnd.in-toto+json"
"""Payload type of a signed statement."""


def make_keys(folder: Path, roles: Iterable[Role] = ROLES) -> dict[str, Key]:
    """Make the pairs ``<folder>/<role>.pem`` and ``<role>.pub`` that are not there; gives the public keys.

    A private key whose public half exists is never made: it may be kept elsewhere, as the root's should be.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive(folder / ".lock"):
        return {role: _make_pair(folder, role) for role in roles}


def _make_pair(folder: Path, role: Role) -> Key:
    private, shown = folder / f"{role}.pem", folder / f"{role}.pub"
    if not shown.exists() and not private.exists():
        write_whole(private, CryptoSigner.generate_ecdsa().private_bytes)
    if not shown.exists():
        # The private half came first, so that a pair is never without it, wherever this ends.
        made = load_pem_private_key(private.read_bytes(), None)
        write_public(SSlibKey.from_crypto(made.public_key()), shown)
    return read_public(shown)


def write_public(key: Key, path: Path) -> None:
    """Write a public key as JSON: id, type, scheme, PEM."""
    write_whole(path, json.dumps(key_facts(key), indent=2).encode() + b"\n", 0o644)


def read_public(path: Path) -> Key:
    """Read a public key.

    Raises:
        LineageError: there is none, or it is not one.
    """
    try:
        return read_key(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise LineageError(f"{path} is not a public key: {error}") from error
    except LineageError as error:
        raise LineageError(f"{path}: {error}") from error


def key_facts(key: Key) -> dict[str, Any]:
    """A public key as JSON."""
    return {"keyid": key.keyid, **key.to_dict()}


def read_key(facts: Mapping[str, Any]) -> Key:
    """A public key from its JSON; its id must be the one that follows from its content.

    Raises:
        LineageError: it is malformed, or carries another key's id.
    """
    content = dict(facts)
    try:
        key = Key.from_dict(content.pop("keyid"), content)
        if not isinstance(key, SSlibKey):
            raise ValueError(f"the id of a {key.scheme} key does not follow from its content")
        loaded = key._crypto_key()
        derived = SSlibKey.from_crypto(loaded).keyid
        key._crypto_key = lambda: loaded  # parsed once: a ledger's key checks thousands of entries
    except (KeyError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise LineageError(f"this is not a public key: {error}") from error
    if derived != key.keyid:
        raise LineageError(f"public key {key.keyid} carries another key's id; it should be {derived}")
    return key


def open_signer(uri: str, public: Key | None = None) -> Signer:
    """The signer at ``uri``; a key in a file brings its public half along, others need ``public``.

    Raises:
        LineageError: there is no key, it cannot be read, or it is not the one that ``public`` names.
    """
    try:
        if public is None:
            if not uri.startswith(SCHEME):
                raise ValueError("a key that is not a file needs its public key named")
            public = read_public(Path(uri.removeprefix(SCHEME)).with_suffix(".pub"))
        return Signer.from_priv_key_uri(uri, public)
    except (OSError, ValueError, VerificationError) as error:
        raise LineageError(f"there is no usable key at {uri}: {error}") from error


def sign_bytes(payload: bytes, signer: Signer) -> str:
    """The signature of ``payload``, hexadecimal, in the one form that `check_signature` takes."""
    return _one_form(signer.public_key, signer.sign(payload).signature)


def made_by(key: Key, signature: str, payload: bytes) -> bool:
    """Whether ``key`` made the signature."""
    try:
        key.verify_signature(Signature(key.keyid, signature), payload)
        return True
    except (UnverifiedSignatureError, ValueError):
        return False


def check_signature(key: Key, signature: str, payload: bytes) -> bool:
    """Whether ``key`` made the signature, and it is written in its one form.

    An ECDSA signature (r, s) holds as (r, n - s) too; only the one with the smaller s counts, so that nobody can
    rewrite a signature without its key.
    """
    return made_by(key, signature, payload) and _one_form(key, signature) == signature


def _one_form(key: Key, signature: str) -> str:
    if key.scheme != "ecdsa-sha2-nistp256":
        return signature.lower()
    r, s = decode_dss_signature(bytes.fromhex(signature))
    return encode_dss_signature(r, min(s, P256_ORDER - s)).hex()


def sign(payload: bytes, payload_type: str, signer: Signer) -> bytes:
    """A DSSE envelope of ``payload``, as JSON."""
    envelope = Envelope(payload, payload_type, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), indent=2).encode() + b"\n"


def open_envelope(content: bytes, payload_type: str, keys: Iterable[Key]) -> tuple[bytes, str]:
    """The payload of a DSSE envelope and the id of the key that vouches for it.

    Raises:
        LineageError: it is no envelope, of another type, or signed by none of ``keys``.
    """
    keys = list(keys)
    try:
        envelope = Envelope.from_dict(json.loads(content))
        if envelope.payload_type != payload_type:
            raise LineageError(f"the envelope holds a {envelope.payload_type}, expected {payload_type}")
        if not keys:
            raise LineageError("no key is known that could vouch for it")
        accepted = envelope.verify(keys, 1)
    except VerificationError as error:
        tried = [key.keyid[:12] for key in keys]
        raise LineageError(f"the signature does not hold: none of the keys {tried} made it") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LineageError(f"this is not a signed envelope: {error}") from error
    return envelope.payload, next(iter(accepted))
