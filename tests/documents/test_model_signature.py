"""The model's signature, checked by model_signing itself, as whoever fetched the weights would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec

from components.register.register import sign_model
from lineage.digests import LineageError
from tests.documents import example


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
    spki = pem.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem.Encoding.PEM, spki))
    return private, public


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Weights, public key, signature."""
    weights, signature = example.weights(tmp_path), tmp_path / "model.sig"
    private, public = keys(tmp_path, "run")
    sign_model(weights, private, signature)
    return weights, public, signature


def command_line(weights: Path, public: Path, signature: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("model_signing"), "verify", "key", weights]
    command += ["--signature", signature, "--public_key", public]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_its_own_command_line_verifies(signed: tuple[Path, Path, Path]) -> None:
    done = command_line(*signed)
    assert done.returncode == 0, done.stderr
    assert "Verification succeeded" in done.stdout
    (signed[0] / "transformer" / "weights.safetensors").write_text("candidatf")
    assert command_line(*signed).returncode != 0


def test_what_was_signed_verifies(signed: tuple[Path, Path, Path]) -> None:
    example.verify_model(*signed)


@pytest.mark.parametrize("name", ["transformer/weights.safetensors", "model_index.json"])
def test_a_flipped_byte_does_not(signed: tuple[Path, Path, Path], name: str) -> None:
    content = bytearray((signed[0] / name).read_bytes())
    content[0] ^= 1
    (signed[0] / name).write_bytes(content)
    with pytest.raises(ValueError, match="mismatch"):
        example.verify_model(*signed)


def test_an_added_file_does_not(signed: tuple[Path, Path, Path]) -> None:
    (signed[0] / "extra.bin").write_text("more")
    with pytest.raises(ValueError, match=r"extra\.bin"):
        example.verify_model(*signed)


def test_another_key_does_not(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises((ValueError, InvalidSignature)):
        example.verify_model(signed[0], keys(tmp_path, "other")[1], signed[2])


def test_a_changed_signature_does_not(signed: tuple[Path, Path, Path]) -> None:
    text = signed[2].read_text()
    signed[2].write_text(text.replace('"sig": "M', '"sig": "N').replace('"sig":"M', '"sig":"N'))
    assert signed[2].read_text() != text
    with pytest.raises((ValueError, InvalidSignature)):
        example.verify_model(*signed)


def test_something_else_than_a_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.pem").write_text("not a key")
    with pytest.raises(LineageError, match="cannot be signed"):
        sign_model(example.weights(tmp_path), tmp_path / "run.pem", tmp_path / "model.sig")
