"""Content credentials: what a picture says of itself, who signed it, and what becomes of both."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c2pa import Reader
from PIL import Image

from lineage.pictures import phash
from serving import credentials
from serving.credentials import (
    FORMATS,
    LABEL,
    SOURCE,
    ContentSigner,
    CredentialsError,
    Origin,
    encode,
    make_content_key,
    read_credentials,
)
from serving.likeness import alike, note

ORIGIN = Origin(
    model="portraits",
    version="3",
    digest=f"tree-sha256:{'0' * 64}",
    seed=7,
    sampling={"guidance_scale": 3.0, "num_inference_steps": 4, "height": 64, "width": 64},
    step=4,
)


def picture(seed: int = 0, side: int = 64) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("content")
    make_content_key(folder)
    return folder


def signer(keys: Path) -> ContentSigner:
    return ContentSigner(keys / "content.pem", keys / "content.pem")


def signed(keys: Path, format: str = "png", **changes: Any) -> bytes:
    origin = ORIGIN.model_copy(update={"format": format} | changes)
    return signer(keys).sign(encode(picture(), format, None if format == "png" else 90), origin)


@pytest.mark.parametrize("format", FORMATS)
def test_the_manifest_says_that_a_model_made_it_and_which(keys: Path, format: str) -> None:
    content = signed(keys, format)
    store = json.loads(Reader(f"image/{format}", io.BytesIO(content)).json())
    manifest = store["manifests"][store["active_manifest"]]
    said = {one["label"]: one["data"] for one in manifest["assertions"]}
    (action,) = said["c2pa.actions.v2"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", SOURCE)
    assert said["c2pa.ai-disclosure"]["modelIdentifier"] == ORIGIN.digest
    assert said[LABEL] == ORIGIN.model_copy(update={"format": format}).model_dump(mode="json")
    assert store["validation_state"] == "Valid"


@pytest.mark.parametrize("format", FORMATS)
def test_xmp_has_iptcs_digital_source_type(keys: Path, format: str) -> None:
    with Image.open(io.BytesIO(signed(keys, format)), formats=[format]) as opened:
        xmp = opened.getxmp()  # Pillow's own reader
    described = xmp["xmpmeta"]["RDF"]["Description"]
    assert described["DigitalSourceType"] == SOURCE


def test_it_is_trusted_by_who_trusts_the_authority_only(keys: Path, tmp_path: Path) -> None:
    content = signed(keys)
    make_content_key(tmp_path)
    found = [read_credentials(content, who) for who in (keys / "authority.crt", None, tmp_path / "authority.crt")]
    assert [one.trusted for one in found if one] == [True, False, False]


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_that_was_changed_does_not_hold(keys: Path, format: str) -> None:
    content = bytearray(signed(keys, format))
    at = content.rindex(b"IDAT") + 40 if format == "png" else len(content) // 2
    if format == "webp":
        at = content.index(b"VP8 ") + 200
    if format == "jpeg":
        at = len(content) - 200
    content[at] ^= 1
    with pytest.raises(CredentialsError, match=r"do not hold: assertion.dataHash.mismatch"):
        read_credentials(bytes(content))


def test_another_seed_in_the_manifest_does_not_hold(keys: Path) -> None:
    content = signed(keys)
    at = content.index(b"seed\x07")
    with pytest.raises(CredentialsError):
        read_credentials(content[: at + 4] + b"\x08" + content[at + 5 :])


def test_a_picture_without_credentials_or_with_somebody_elses(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_credentials(encode(picture(), "png", None)) is None
    monkeypatch.setattr(credentials, "LABEL", "com.example.other")
    strange = signed(keys)
    monkeypatch.undo()
    assert read_credentials(strange) is None


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" * 100])
def test_rubbish_has_none_that_hold(content: bytes) -> None:
    try:
        assert read_credentials(content) is None
    except CredentialsError as error:
        assert "cannot be read" in str(error)


def test_a_key_is_made_once_and_renewed_when_its_certificate_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, chain = make_content_key(tmp_path)
    first, root = chain.read_bytes(), (tmp_path / "authority.crt").read_bytes()
    assert key.stat().st_mode & 0o077 == 0
    assert make_content_key(tmp_path) == (key, chain)
    assert chain.read_bytes() == first
    used = signer(tmp_path)
    before = used.sign(encode(picture(), "png", None), ORIGIN)
    monkeypatch.setattr(credentials, "LIFE", credentials.LIFE * 4)  # so that less than a third is left
    make_content_key(tmp_path)
    assert chain.read_bytes() != first
    assert (tmp_path / "authority.crt").read_bytes() == root
    expired = used.expires
    used.refresh()
    assert used.expires > expired > datetime.now(UTC)
    after = used.sign(encode(picture(), "png", None), ORIGIN)
    for content in (before, after):
        found = read_credentials(content, tmp_path / "authority.crt")
        assert found and found.trusted


def test_a_key_that_is_half_exchanged_is_not_taken_up(keys: Path, tmp_path: Path) -> None:
    make_content_key(tmp_path)
    key, chain = tmp_path / "tls.key", tmp_path / "tls.crt"
    for path in (key, chain):
        path.write_bytes((tmp_path / "content.pem").read_bytes())
    used = ContentSigner(key, chain)
    key.write_bytes((keys / "content.pem").read_bytes())
    with pytest.raises(CredentialsError, match="the certificate is of another key"):
        used.refresh()
    assert read_credentials(used.sign(encode(picture(), "png", None), ORIGIN), tmp_path / "authority.crt")
    chain.write_bytes((keys / "content.pem").read_bytes())
    used.refresh()
    found = read_credentials(used.sign(encode(picture(), "png", None), ORIGIN), keys / "authority.crt")
    assert found and found.trusted


def test_threads_sign_at_once(keys: Path) -> None:
    used = signer(keys)

    def one(seed: int) -> int:
        content = used.sign(encode(picture(seed), "png", None), ORIGIN.model_copy(update={"seed": seed}))
        found = read_credentials(content)
        assert found
        return found.origin.seed

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(40))) == list(range(40))


def test_a_stripped_picture_is_found_by_its_likeness(tmp_path: Path) -> None:
    log = tmp_path / "pictures.jsonl"
    for seed in range(50):
        note(log, picture(seed), f"req_{seed}", ORIGIN.model_copy(update={"seed": seed}))
    stripped = io.BytesIO()
    picture(17).resize((48, 48)).save(stripped, "JPEG", quality=40)
    (nearest, line), *_ = alike(log, Image.open(stripped, formats=["JPEG"]))
    assert line["origin"]["seed"] == 17
    assert nearest <= 6
    assert alike(log, picture(1000)) == []
    assert "prompt" not in log.read_text()


def test_the_hash_is_the_snapshots() -> None:
    from components.snapshot_data.duplicates import perceptual_hash

    stream = io.BytesIO()
    picture().save(stream, "PNG")
    assert phash(picture()) == perceptual_hash(stream.getvalue())
