"""Bad images and captions of every kind: none ends in a traceback, none good is lost, and the counts add up."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.snapshot_data.duplicates import perceptual_hash
from components.validate_data import faces, facts
from components.validate_data.errors import DataValidationError
from components.validate_data.faces import FaceDetector
from components.validate_data.images import measure_images
from components.validate_data.settings import ValidationSettings
from components.validate_data.validate import Validated
from tests.components.test_validate_data import GOOD, Portraits, picture

AVATARS = Path(__file__).parents[2] / "examples" / "avatars"


def encoded(kind: str, seed: int = 1, mode: str = "RGB", size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture(seed, size=size))).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def animated(kind: str) -> bytes:
    stream = io.BytesIO()
    frames = [Image.open(io.BytesIO(picture(seed))) for seed in (1, 2)]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("JPEG", 900 + orientation, exif=exif)


def spoiled(content: bytes, at: float) -> bytes:
    place = int(len(content) * at)
    return content[:place] + bytes(byte ^ 0xFF for byte in content[place : place + 40]) + content[place + 40 :]


# name: content, caption, which column the expectation that fails is about
Case = tuple[bytes, str | None, str]
CAPTION = "portrait of a person"
IMAGES: dict[str, Case] = {
    "truncated.png": (encoded("PNG", 801)[:-60], CAPTION, "decodes"),
    "truncated.jpg": (encoded("JPEG", 802)[:-60], CAPTION, "decodes"),
    "truncated.webp": (encoded("WEBP", 803)[:-20], CAPTION, "decodes"),
    "corrupt.png": (spoiled(encoded("PNG", 804), 0.5), CAPTION, "decodes"),
    "corrupt.jpg": (spoiled(encoded("JPEG", 805), 0.1), CAPTION, "decodes"),
    "corrupt.webp": (spoiled(encoded("WEBP", 806, lossless=True), 0.2), CAPTION, "decodes"),
    "text.png": (b"this is a letter, not a picture", CAPTION, "decodes"),
    "nothing.png": (b"", CAPTION, "decodes"),
    "one-pixel.png": (encoded("PNG", 807, size=(1, 1)), CAPTION, "width"),
    "cmyk.jpg": (encoded("JPEG", 808, mode="CMYK"), CAPTION, "mode"),
    "palette.png": (encoded("PNG", 809, mode="P"), CAPTION, "mode"),
    "sixteen-bit.png": (encoded("PNG", 810, mode="I;16"), CAPTION, "mode"),
    "animated.png": (animated("PNG"), CAPTION, "frames"),
    "animated.gif": (animated("GIF"), CAPTION, "frames"),
    "animated.webp": (animated("WEBP"), CAPTION, "frames"),
    "on-its-side.jpg": (rotated(6), CAPTION, "orientation"),
    "mirrored.jpg": (rotated(2), CAPTION, "orientation"),
    "empty-caption.png": (encoded("PNG", 811), "", "caption_length"),
    "no-caption.png": (encoded("PNG", 812), None, "caption_length"),
    "endless-caption.png": (encoded("PNG", 813), "x" * 10_000, "caption_length"),
    "many-tokens.png": (encoded("PNG", 814), "a b " * 90, "caption_tokens"),
    "control-caption.png": (encoded("PNG", 815), "portrait \x00\x1b[2J of a person", "caption_control"),
}
FINE = {
    "right-to-left.png": (encoded("PNG", 816), "صورة شخص يبتسم"),
    "upright.jpg": (rotated(1), CAPTION),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> tuple[Portraits, Validated]:
    portraits = Portraits(tmp_path_factory.mktemp("bad"))
    for name, (content, text, *_) in {**IMAGES, **FINE}.items():
        portraits.add(name, content, text=text)
    return portraits, portraits.validate(max_quarantined_share=0.5)


@pytest.mark.parametrize("name", IMAGES)
def test_it_is_quarantined_with_file_row_and_reason(bad: tuple[Portraits, Validated], name: str) -> None:
    portraits, _ = bad
    column = IMAGES[name][2]
    found = [row for row in portraits.quarantine() if row["file_name"] == name]
    (finding,) = [row for row in found if f"({column})" in row["expectation"]]
    assert finding["reason"]
    measured = pq.read_table(portraits.validated / "facts.parquet").to_pylist()
    assert measured[finding["row"]]["file_name"] == name
    assert "Traceback" not in finding["reason"]


@pytest.mark.parametrize("name", FINE)
def test_it_is_good(bad: tuple[Portraits, Validated], name: str) -> None:
    assert name in bad[0].accepted()


def test_the_counts_add_up(bad: tuple[Portraits, Validated]) -> None:
    portraits, validated = bad
    summary = json.loads((portraits.validated / "summary.json").read_text())
    refused = pq.read_table(portraits.folder / "snapshot" / "refused.parquet").num_rows
    set_aside = {row["file_name"] for row in portraits.quarantine()}
    assert set_aside == set(IMAGES)
    assert len(portraits.accepted()) == validated.accepted == GOOD + len(FINE)
    assert validated.accepted + validated.quarantined + validated.refused_before == len(portraits.rows)
    assert (summary["refused_before"], refused) == (0, 0)


def test_the_report_says_what_the_snapshot_refused(tmp_path: Path) -> None:
    portraits = Portraits(tmp_path)
    portraits.rows.append({"file_name": "../secret.png", "text": "climbs out"})
    portraits.add("nan.png", encoded("PNG", 899), text=float("nan"))
    validated = portraits.validate()
    assert (validated.rows, validated.accepted, validated.refused_before) == (GOOD, GOOD, 2)
    page = (portraits.validated / "report.html").read_text()
    assert "../secret.png" in page
    assert "nan.png" in page
    refused = pq.read_table(portraits.folder / "snapshot" / "refused.parquet").to_pylist()
    assert [row["row"] for row in refused] == [GOOD + 1, GOOD + 2]
    assert "text" in refused[1]["reason"] and "nan" in str(refused[1]["value"]).lower()


def test_orientation_is_undone_before_faces_are_looked_for() -> None:
    drawn = next((AVATARS / "evaluation").rglob("*.png"))
    upright = Image.open(drawn).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3
    stored, plain = io.BytesIO(), io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_180).save(stored, "PNG", exif=exif)
    upright.save(plain, "PNG")
    detector = FaceDetector(0.3)
    found = measure_images([stored.getvalue(), plain.getvalue()], 2**20, detector).to_pylist()
    assert [row["orientation"] for row in found] == [3, 1]
    for name in ("faces", "sharpness", "exposure"):
        assert found[0][name] == pytest.approx(found[1][name])


def test_faces_are_found_in_portraits_and_not_in_noise() -> None:
    drawn = [path.read_bytes() for path in sorted((AVATARS / "evaluation").rglob("*.png"))[:40]]
    noise = [encoded("PNG", seed) for seed in range(40)]
    found = measure_images([*drawn, *noise], 2**20, FaceDetector(0.3)).to_pylist()
    seen = [row["faces"] for row in found]
    assert seen[:40].count(1) >= 38
    assert sum(seen[40:]) <= 2
    assert all(0.05 < row["face_share"] <= 1 for row in found[:40] if row["faces"])


def test_a_face_too_small_for_the_first_look_is_found_by_the_second() -> None:
    detector, contents = FaceDetector(0.3), []
    for path in sorted((AVATARS / "evaluation").rglob("*.png"))[:20]:
        large = Image.new("RGB", (512, 512), (128, 128, 128))
        large.paste(Image.open(path).convert("RGB").resize((150, 150)), (150, 60))
        stream = io.BytesIO()
        large.save(stream, "PNG")
        contents.append(stream.getvalue())
    coarse = [Image.open(io.BytesIO(content)).convert("RGB").reduce(8) for content in contents]
    first = detector.find(np.stack([np.asarray(one) for one in coarse]))
    found = measure_images(contents, 2**20, detector).to_pylist()
    assert (first.count == 0).sum() >= 5
    assert sum(row["faces"] > 0 for row in found) >= 18
    assert all(row["face_share"] < 0.2 for row in found)


def test_an_image_measured_large_or_small_has_nearly_the_same_hash() -> None:
    contents = [encoded("PNG", 7, size=(size, size)) for size in (64, 512)] + [encoded("JPEG", 7, size=(512, 512))]
    first, *others = (int(perceptual_hash(content) or "", 16) for content in contents)
    assert all((first ^ other).bit_count() <= 8 for other in others)
    assert measure_images(contents, 2**20, None)["faces"].null_count == 3, "nobody looked for any"


def test_measured_in_several_threads_the_facts_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "BATCH", 7)
    portraits = Portraits(tmp_path)
    portraits.add("broken.png", b"broken")
    manifest, measured = facts.read_manifest(portraits.pin()), []
    for threads in (1, 4):
        settings = ValidationSettings(suite="none", processes=threads)
        measured.append(facts.measure_facts(manifest, settings))
    one, four = measured
    assert one.equals(four) and one["row"].to_pylist() == list(range(GOOD + 1))


def test_what_stops_a_thread_stops_the_step(tmp_path: Path) -> None:
    manifest = facts.read_manifest(Portraits(tmp_path).pin())
    settings = ValidationSettings(suite="none", faces=False, tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(DataValidationError, match=r"validation\.tokenizer: .*nowhere"):
        facts.measure_facts(manifest, settings)


def test_without_the_face_detector_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "MODEL", tmp_path / "detector.tflite")
    with pytest.raises(DataValidationError, match=r"is not the face detector .* run make install, or set"):
        FaceDetector(0.3)
