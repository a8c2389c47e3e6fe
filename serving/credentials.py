"""Machine-readable marking of each picture: a C2PA manifest that is signed, and IPTC's digital source type in its XMP.

The manifest says that a model made the picture, and which one: name, version, digest of the weights, seed and
sampling. It is signed with a key of its own, role ``content``, which signs nothing else and which no ledger knows: its
certificate leads to an authority that whoever looks at pictures trusts, or does not.

Specifications: https://spec.c2pa.org/specifications/specifications/2.4/ and
https://iptc.org/std/photometadata/specification/ (``Iptc4xmpExt:DigitalSourceType``).
"""

from __future__ import annotations

import functools
import io
import json
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from c2pa import Builder, C2paError, C2paSignerInfo, Context, Reader, Signer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError
from securesystemslib.signer import CryptoSigner

from lineage.digests import LineageError
from lineage.files import write_whole
from lineage.frozen import Frozen

LABEL = "org.triptych.drawing"
"""Of our assertion."""
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's word for: made by a model that was trained."""
XMP = (
    '<?xpacket begin="\N{BOM}" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
FORMATS = ("png", "jpeg", "webp")
AUTHORITY_LIFE, LIFE = timedelta(days=3650), timedelta(days=90)
"""Of the certificates that are made here."""
MOST_PICTURE = 64 * 2**20
"""Bytes of a picture whose credentials are read."""


class CredentialsError(LineageError):
    """A picture cannot be signed, or has no credentials that hold; the message says why."""


class Origin(Frozen):
    """What drew a picture, and how: enough to draw it again, but for the prompt."""

    model: str
    version: str
    digest: str
    """Of the folder of weights."""
    seed: int
    sampling: dict[str, Any]
    step: int
    """Steps done; fewer than ``num_inference_steps`` for a preview."""
    format: str = "png"
    quality: int | None = None
    """0 to 100, of jpeg and webp."""
    deterministic: bool = False


@dataclass(frozen=True)
class Credentials:
    """What was read of a picture."""

    origin: Origin
    trusted: bool
    """Whether the certificate leads to the authority that was named."""
    signer: str


def encode(image: Image.Image, format: str, quality: int | None) -> bytes:
    """``image`` as a file that IPTC's digital source type says is made by a model."""
    stream, options = io.BytesIO(), dict[str, Any](xmp=XMP.encode())
    if format == "png":
        options = {"pnginfo": PngInfo(), "compress_level": 3}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP)
    elif quality is not None:
        options["quality"] = quality
    image.convert("RGB").save(stream, format, **options)
    return stream.getvalue()


class ContentSigner:
    """Signs pictures with the content key; threads may share it.

    Args:
        key: PEM, PKCS #8, ECDSA P-256.
        chain: PEM: its certificate, then those that lead to the authority. Where the files change, they are read
            again, so that whoever rotates them restarts nothing.
        timestamps: an RFC 3161 service; empty: none, and signatures end with their certificate.

    Raises:
        CredentialsError: there are no such files, or they are not a key and its certificate.
    """

    def __init__(self, key: Path, chain: Path, timestamps: str = "") -> None:
        self._paths, self._timestamps, self._lock = (key, chain), timestamps, threading.Lock()
        self._read: tuple[int, ...] = ()
        self.expires = datetime.min.replace(tzinfo=UTC)
        """When the certificate ends."""
        self.refresh()

    def refresh(self) -> None:
        """Take up a key and certificate that were exchanged; what does not fit is not taken up."""
        with self._lock:
            try:
                written = tuple(path.stat().st_mtime_ns for path in self._paths)
                if written == self._read:
                    return
                key, chain = (path.read_bytes() for path in self._paths)
                private, certificates = pem.load_pem_private_key(key, None), x509.load_pem_x509_certificates(chain)
                if private.public_key() != certificates[0].public_key():
                    raise ValueError("the certificate is of another key")
                chain = b"".join(one.public_bytes(pem.Encoding.PEM) for one in certificates)
                key = private.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
                info = C2paSignerInfo("es256", chain, key, self._timestamps or None)
                self._signer = Signer.from_info(info)
            except (OSError, ValueError, TypeError, C2paError) as error:
                raise CredentialsError(f"{self._paths[0]} and {self._paths[1]} cannot sign: {error}") from error
            self._read, self.expires = written, certificates[0].not_valid_after_utc

    def sign(self, content: bytes, origin: Origin) -> bytes:
        """An encoded picture with its manifest.

        Raises:
            CredentialsError: it cannot be signed; it must then not be handed out.
        """
        signed = io.BytesIO()
        try:
            with Builder(_manifest(origin), _signing()) as builder:
                builder.sign(self._signer, f"image/{origin.format}", io.BytesIO(content), signed)
        except C2paError as error:
            raise CredentialsError(f"the picture cannot be signed: {error}") from error
        return signed.getvalue()


@functools.cache
def _signing() -> Any:
    """How c2pa signs. A picture needs no smaller copy of itself beside it, nor is it read again after it was signed,
    which would take as long as signing: whether a key and its certificate fit is asked when they are taken up."""
    return Context.from_dict({"builder": {"thumbnail": {"enabled": False}}, "verify": {"verify_after_sign": False}})


@functools.cache
def _generator() -> dict[str, str]:
    return {"name": "triptych", "version": version("triptych")}


def _manifest(origin: Origin) -> dict[str, Any]:
    named = {"modelType": "c2pa.types.model", "modelName": f"{origin.model} version {origin.version}"}
    made = {"action": "c2pa.created", "digitalSourceType": SOURCE}
    return {
        "claim_generator_info": [_generator()],
        "format": f"image/{origin.format}",
        "title": f"{origin.model} {origin.version} seed {origin.seed}",
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": [made]}},
            {"label": "c2pa.ai-disclosure", "data": named | {"modelIdentifier": origin.digest}},
            {"label": LABEL, "data": origin.model_dump(mode="json")},
        ],
    }


def read_credentials(content: bytes, authority: Path | None = None) -> Credentials | None:
    """What a picture's manifest says of its origin; None where it has no manifest, or one that is not ours.

    Args:
        authority: PEM of the certificates that are trusted.

    Raises:
        CredentialsError: the manifest does not hold: the picture was changed, or the signature is no good.
    """
    said: dict[str, Any] = {"verify": {"verify_trust": authority is not None}}
    if authority:
        said["trust"] = {"user_anchors": authority.read_text("ascii")}
    try:
        with Reader(None, io.BytesIO(content), context=Context.from_dict(said)) as reader:
            state, manifest = reader.get_validation_state(), reader.get_active_manifest() or {}
            found = json.loads(reader.json()).get("validation_results", {}).get("activeManifest", {})
    except C2paError.ManifestNotFound:
        return None
    except (C2paError, OSError, ValueError) as error:
        raise CredentialsError(f"its content credentials cannot be read: {error}") from error
    ours = [one["data"] for one in manifest.get("assertions", []) if one["label"] == LABEL]
    if not ours:
        return None
    if state not in ("Valid", "Trusted"):
        told = ", ".join(sorted({one["code"] for one in found.get("failure", [])}))
        raise CredentialsError(f"its content credentials do not hold: {told or state}")
    try:
        origin = Origin.model_validate(ours[0])
    except ValidationError as error:
        raise CredentialsError(f"its content credentials name no origin: {error}") from error
    issuer = manifest.get("signature_info", {})
    return Credentials(origin, state == "Trusted", f"{issuer.get('common_name', '')} ({issuer.get('issuer', '')})")


def make_content_key(folder: Path) -> tuple[Path, Path]:
    """A content key, its certificate and an authority of this machine's own, in ``folder``; gives key and chain.

    Both are in one file, so that they are exchanged at once. A key that is there is kept until a third of its
    certificate's life is left. The authority's certificate, ``authority.crt``, is what others trust.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, root, made = (folder / name for name in ("authority.pem", "authority.crt", "content.pem"))
    if made.exists():
        expires = x509.load_pem_x509_certificate(made.read_bytes()).not_valid_after_utc
        if expires - datetime.now(UTC) > LIFE / 3:
            return made, made
    if not root.exists():
        key = CryptoSigner.generate_ecdsa().private_bytes
        write_whole(authority, key)
        write_whole(root, _certificate("Triptych content authority of this machine", key, key))
    key, issuer = CryptoSigner.generate_ecdsa().private_bytes, root.read_bytes()
    own = _certificate("Triptych content key of this machine", key, authority.read_bytes(), issuer)
    write_whole(made, key + own + issuer)
    return made, made


def _certificate(name: str, key: bytes, by: bytes, issuer: bytes = b"") -> bytes:
    """An authority's certificate, or one for signing content (C2PA 2.4, 14.5) where there is an ``issuer``; all PEM."""
    leaf, now = bool(issuer), datetime.now(UTC)
    named = ((NameOID.ORGANIZATION_NAME, "Triptych"), (NameOID.COMMON_NAME, name))
    subject = x509.Name([x509.NameAttribute(*part) for part in named])
    above = x509.load_pem_x509_certificate(issuer).subject if leaf else subject
    public, signer = pem.load_pem_private_key(key, None).public_key(), pem.load_pem_private_key(by, None)
    uses = x509.KeyUsage(leaf, False, False, False, False, not leaf, not leaf, False, False)
    made = x509.CertificateBuilder(above, subject, public, x509.random_serial_number())  # type: ignore[arg-type]
    made = made.not_valid_before(now - timedelta(minutes=5)).not_valid_after(now + (LIFE if leaf else AUTHORITY_LIFE))
    made = made.add_extension(x509.BasicConstraints(ca=not leaf, path_length=None), critical=True)
    made = made.add_extension(uses, critical=True)
    made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)  # type: ignore[arg-type]
    over = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())  # type: ignore[arg-type]
    made = made.add_extension(over, critical=False)
    if leaf:
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        made = made.add_extension(purposes, critical=False)
    return made.sign(signer, hashes.SHA256()).public_bytes(pem.Encoding.PEM)  # type: ignore[arg-type]
