"""Validate data: every bad row is set aside with its reason, no good one is, and bad data stops the run."""

import io
import json
import random
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from kfp import dsl, local
from PIL import Image

from components.snapshot_data.component import snapshot_data
from components.snapshot_data.settings import DataSettings
from components.snapshot_data.snapshot import take_snapshot
from components.validate_data.component import validate_data
from components.validate_data.errors import DataValidationError
from components.validate_data.settings import ValidationSettings
from components.validate_data.suite import build_suite, read_suite
from components.validate_data.validate import Validated, validate
from lineage.records import read_records
from tests.runs import run_context

AVATARS = Path(__file__).parents[2] / "examples" / "avatars" / "expectations.json"
TOKENIZER = str(AVATARS.parent / "models" / "base" / "tokenizer")
GOOD = 110
Row = dict[str, Any]


@cache
def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> bytes:
    stream = io.BytesIO()
    noise = random.Random(seed).randbytes(12)
    Image.frombytes("RGB", (2, 2), noise).resize(size).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A tiny PNG that says it is huge."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class Portraits:
    """A source to spoil: files and their metadata, pinned when asked."""

    def __init__(self, folder: Path, rows: int = GOOD) -> None:
        self.folder, self.source = folder, folder / "portraits"
        self.source.mkdir(parents=True)
        self.rows: list[Row] = []
        for number in range(rows):
            self.add(f"good-{number:03}.png", picture(number))

    def add(self, name: str, content: bytes, **told: Any) -> None:
        (self.source / name).write_bytes(content)
        usual = {"text": f"portrait, number {name}", "license": "CC0-1.0", "consent": "drawn"}
        self.rows.append({"file_name": name, **usual, **told})

    def pin(self) -> Path:
        lines = (json.dumps(row) + "\n" for row in self.rows)
        (self.source / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
        take_snapshot(DataSettings(source=str(self.source)), self.folder / "snapshot")
        return self.folder / "snapshot"

    def suite(self, *expectations: dict[str, Any]) -> str:
        path = self.folder / "suite.json"
        path.write_text(json.dumps({"name": "test", "expectations": list(expectations)}))
        return str(path)

    def validate(self, suite: str = str(AVATARS), **settings: Any) -> Validated:
        return validate(
            ValidationSettings(suite=suite, **{"tokenizer": TOKENIZER, **settings}), self.pin(), self.validated
        )

    @property
    def validated(self) -> Path:
        return self.folder / "validated"

    def quarantine(self) -> list[Row]:
        rows: list[Row] = pq.read_table(self.validated / "quarantine.parquet").to_pylist()
        return rows

    def accepted(self) -> list[str]:
        names: list[str] = pq.read_table(self.validated / "manifest.parquet")["file_name"].to_pylist()
        return names


@pytest.fixture
def portraits(tmp_path: Path) -> Portraits:
    return Portraits(tmp_path)


# name: content, what the metadata says, the expectation that fails, its value, the reason
Fault = tuple[bytes, Row, str, str | None, str]
DECODES, CAPTION = "expect_column_values_to_be_in_set(decodes)", "expect_column_values_to_be_between(caption_length)"
FAULTS: dict[str, Fault] = {
    "not-an-image.png": (b"GIF? no", {}, DECODES, "False", "not an image of a known format"),
    "a-program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", {}, DECODES, "False", "not an image of a known format"),
    "truncated.png": (picture(500)[:150], {}, DECODES, "False", "The image decodes completely: "),
    "truncated-at-the-end.png": (picture(501)[:-8], {}, DECODES, "False", "The image decodes completely: "),
    "zero-bytes.png": (b"", {}, DECODES, "False", "the file is empty"),
    "large.png": (bomb(9000, 9000), {}, DECODES, "False", "9000 x 9000 pixels, more than max_pixels 67108864"),
    "bomb.png": (bomb(60000, 60000), {}, DECODES, "False", "DecompressionBombError"),
    "wide.png": (picture(502, size=(65, 64)), {}, "expect_column_values_to_be_in_set(width)", "65", "width is 65"),
    "high.png": (picture(503, size=(64, 128)), {}, "expect_column_values_to_be_in_set(height)", "128", "is 128"),
    "grey.png": (picture(504, "L"), {}, "expect_column_values_to_be_in_set(mode)", "L", "mode is L"),
    "see-through.png": (picture(505, "RGBA"), {}, "expect_column_values_to_be_in_set(mode)", "RGBA", "mode is RGBA"),
    "no-caption.png": (picture(506), {"text": None}, CAPTION, "0", "caption_length is 0"),
    "empty-caption.png": (picture(507), {"text": ""}, CAPTION, "0", "caption_length is 0"),
    "blank-caption.png": (picture(508), {"text": " \n" * 20}, CAPTION, "0", "caption_length is 0"),
    "endless-caption.png": (picture(509), {"text": "word " * 100}, CAPTION, "499", "10 to 400 characters"),
    "no-license.png": (
        picture(510),
        {"license": None},
        "expect_column_values_to_not_be_null(license)",
        None,
        "The license is stated: license is missing",
    ),
    "blank-license.png": (
        picture(511),
        {"license": " "},
        "expect_column_values_to_not_be_null(license)",
        None,
        "license is missing",
    ),
    "no-consent.png": (
        picture(512),
        {"consent": None},
        "expect_column_values_to_not_be_null(consent)",
        None,
        "consent is missing",
    ),
    "twice.png": (picture(3), {}, "expect_column_values_to_be_unique(sha256)", "sha256:", "same as good-003.png"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Portraits, Validated]:
    portraits = Portraits(tmp_path_factory.mktemp("faulty"))
    for name, (content, told, *_) in FAULTS.items():
        portraits.add(name, content, **told)
    return portraits, portraits.validate(max_quarantined_share=0.5)


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_row_is_set_aside_with_its_reason(faulty: tuple[Portraits, Validated], name: str) -> None:
    *_, expectation, value, reason = FAULTS[name]
    portraits, _ = faulty
    found = {row["expectation"]: row for row in portraits.quarantine() if row["file_name"] == name}
    assert reason in found[expectation]["reason"]
    assert (found[expectation]["value"] or "").startswith(value or "")
    assert (found[expectation]["value"] is None) == (value is None)
    facts = pq.read_table(portraits.validated / "facts.parquet").to_pylist()
    assert facts[found[expectation]["row"]]["file_name"] == name
    assert name not in portraits.accepted()


def test_no_good_row_is_lost_and_the_counts_add_up(faulty: tuple[Portraits, Validated]) -> None:
    portraits, validated = faulty
    assert portraits.accepted() == sorted(row["file_name"] for row in portraits.rows[:GOOD])
    assert {row["file_name"] for row in portraits.quarantine()} == set(FAULTS)
    assert (validated.rows, validated.accepted, validated.quarantined) == (GOOD + len(FAULTS), GOOD, len(FAULTS))
    summary = json.loads((portraits.validated / "summary.json").read_text())
    assert (summary["status"], summary["accepted"], summary["quarantined"]) == ("accepted", GOOD, len(FAULTS))
    assert sorted(path.name for path in portraits.validated.iterdir()) == [
        "expectations.html",
        "facts.parquet",
        "manifest.parquet",
        "quarantine.parquet",
        "report.html",
        "summary.json",
    ]
    pinned = pq.read_table(portraits.folder / "snapshot" / "manifest.parquet")
    kept = pq.read_table(portraits.validated / "manifest.parquet")
    assert kept.schema == pinned.schema
    assert [row for row in pinned.to_pylist() if row["file_name"] in portraits.accepted()] == kept.to_pylist()


def test_the_report_needs_nothing_beside_it(faulty: tuple[Portraits, Validated]) -> None:
    portraits, validated = faulty
    page = (portraits.validated / "report.html").read_text(encoding="utf-8")
    for count in (validated.rows, validated.accepted, validated.quarantined):
        assert f"<b>{count}</b>" in page
    for told in ("The image decodes completely", *FAULTS, "same as good-003.png", "mode is RGBA"):
        assert told in page
    assert page.count('src="data:image/png;base64,') == sum(fault[2] != DECODES for fault in FAULTS.values())
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?://|<script|<link|@import|url\(""", page)


def test_captions_cannot_script_the_report(portraits: Portraits) -> None:
    portraits.add("<img src=x onerror=alert(1)>.png", picture(600), text="<script>alert(1)</script>", license=None)
    portraits.validate()
    page = (portraits.validated / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page


def test_where_all_is_good_the_digest_is_the_snapshot_s(portraits: Portraits, tmp_path: Path) -> None:
    validated = portraits.validate()
    again = take_snapshot(DataSettings(source=str(portraits.source)), tmp_path / "again")
    assert (validated.digest, validated.accepted) == (again.digest, GOOD)
    portraits.add("no-consent.png", picture(600), consent=None)
    assert portraits.validate().digest == validated.digest
    portraits.rows[0]["consent"] = None
    assert portraits.validate().digest != validated.digest


@pytest.mark.parametrize(
    ("copies", "kept"),
    [
        ([{}, {}, {}], "copy-0.png"),
        ([{"license": None}, {}, {}], "copy-1.png"),
        ([{"license": None}, {"text": ""}, {}], "copy-2.png"),
        ([{"license": None}, {"text": ""}, {"consent": None}], None),
    ],
    ids=["the first", "the first good one", "the only good one", "none is good"],
)
def test_of_equal_images_one_good_one_stays(portraits: Portraits, copies: list[Row], kept: str | None) -> None:
    for number, told in enumerate(copies):
        portraits.add(f"copy-{number}.png", picture(700), **told)
    portraits.validate()
    assert [name for name in portraits.accepted() if name.startswith("copy")] == ([kept] if kept else [])


def expectation(kind: str, severity: str = "warning", **kwargs: Any) -> Row:
    return {"type": kind, "kwargs": kwargs, "severity": severity}


LICENSED = "expect_column_values_to_not_be_null"
SIZE = "expect_table_row_count_to_be_between"

# what the suite says, how many of 10 rows have no license, whether the run goes on, how many rows are accepted
SEVERITIES: dict[str, tuple[Row, int, bool, int]] = {
    "critical, held": (expectation(LICENSED, "critical", column="license"), 0, True, 10),
    "critical, failed by a row": (expectation(LICENSED, "critical", column="license"), 1, False, 9),
    "critical, within mostly": (expectation(LICENSED, "critical", column="license", mostly=0.8), 2, True, 8),
    "critical, beyond mostly": (expectation(LICENSED, "critical", column="license", mostly=0.8), 3, False, 7),
    "warning, failed by a row": (expectation(LICENSED, "warning", column="license"), 1, True, 9),
    "warning, within mostly": (expectation(LICENSED, "warning", column="license", mostly=0.5), 2, True, 8),
    "info, failed by a row": (expectation(LICENSED, "info", column="license"), 1, True, 10),
    "unstated is critical": ({"type": LICENSED, "kwargs": {"column": "license"}}, 1, False, 9),
    "critical about the table": (expectation(SIZE, "critical", min_value=11), 0, False, 10),
    "warning about the table": (expectation(SIZE, "warning", min_value=11), 0, True, 10),
    "on some rows only": (
        expectation(
            "expect_column_values_to_be_in_set",
            column="license",
            value_set=["MIT"],
            row_condition={"type": "comparison", "column": {"name": "row"}, "operator": "<", "parameter": 2},
        ),
        0,
        True,
        8,
    ),
    "about two columns": (
        expectation("expect_column_pair_values_a_to_be_greater_than_b", column_A="width", column_B="height"),
        0,
        False,
        0,
    ),
}


@pytest.mark.parametrize(("stated", "unlicensed", "goes_on", "accepted"), SEVERITIES.values(), ids=SEVERITIES)
def test_what_a_severity_means(tmp_path: Path, stated: Row, unlicensed: int, goes_on: bool, accepted: int) -> None:
    portraits = Portraits(tmp_path, rows=10)
    for row in portraits.rows[:unlicensed]:
        row["license"] = None
    suite = portraits.suite(stated)
    if goes_on:
        assert portraits.validate(suite, max_quarantined_share=0.5).accepted == accepted
    else:
        with pytest.raises(DataValidationError, match="the data is refused"):
            portraits.validate(suite, max_quarantined_share=0.5)
        summary = json.loads((portraits.validated / "summary.json").read_text())
        assert (summary["status"], summary["accepted"]) == ("refused", accepted)


def unlicensed(portraits: Portraits, count: int) -> None:
    for row in portraits.rows[:count]:
        row["license"] = None


def few(portraits: Portraits) -> None:
    del portraits.rows[99:]


REFUSED: dict[str, tuple[Callable[[Portraits], None], dict[str, Any], str]] = {
    "too few rows": (few, {}, r"critical expectation does not hold: There are at least 100 portraits .*\(99\)"),
    "more than the stated share": (
        lambda portraits: unlicensed(portraits, 12),
        {"max_quarantined_share": 0.1},
        r"12 of 110 rows are quarantined \(10.91%\), more than max_quarantined_share 10.00%",
    ),
    "one bad row where none may be": (
        lambda portraits: unlicensed(portraits, 1),
        {"max_quarantined_share": 0.0},
        r"1 of 110 rows are quarantined",
    ),
    "nothing left": (
        lambda portraits: unlicensed(portraits, GOOD),
        {"max_quarantined_share": 1.0},
        "no row is left to train on",
    ),
}


@pytest.mark.parametrize(("spoil", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_data_stops_the_run_and_leaves_a_report(
    portraits: Portraits, spoil: Callable[[Portraits], None], settings: dict[str, Any], message: str
) -> None:
    portraits.validate()
    spoil(portraits)
    with pytest.raises(DataValidationError, match=message):
        portraits.validate(**settings)
    assert sorted(path.name for path in portraits.validated.iterdir()) == [
        "expectations.html",
        "facts.parquet",
        "quarantine.parquet",
        "report.html",
        "summary.json",
    ]
    assert re.search(message.split(" .*")[0], (portraits.validated / "report.html").read_text())
    assert not portraits.validated.with_name("validated.partial").exists()


def test_the_stated_share_itself_is_allowed(portraits: Portraits) -> None:
    unlicensed(portraits, 11)
    assert portraits.validate(max_quarantined_share=0.1).quarantined == 11


def swap(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil", [swap, lambda path: path.write_bytes(b"longer" * 999), Path.unlink], ids=["a bit", "its length", "gone"]
)
def test_an_image_that_changed_since_the_snapshot_stops_the_run(
    portraits: Portraits, spoil: Callable[[Path], object]
) -> None:
    snapshot = portraits.pin()
    spoil(portraits.source / "good-007.png")
    with pytest.raises(
        DataValidationError, match=r"changed or gone since the snapshot: row 7, .*good-007\.png.*put them"
    ):
        validate(ValidationSettings(suite=str(AVATARS), tokenizer=TOKENIZER), snapshot, portraits.validated)
    assert not portraits.validated.exists()


def test_a_snapshot_without_manifest(portraits: Portraits, tmp_path: Path) -> None:
    with pytest.raises(DataValidationError, match=r"manifest\.parquet cannot be read .*; take the snapshot again"):
        validate(ValidationSettings(suite=str(AVATARS), tokenizer=TOKENIZER), tmp_path, portraits.validated)


NOT_A_SUITE = {
    "not JSON": ("{", "is not JSON"),
    "no expectations": ('{"name": "x"}', "has no 'expectations'"),
    "an empty list of them": ('{"expectations": []}', "has no 'expectations'"),
    "a list": ("[]", "has no 'expectations'"),
    "one without a type": ('{"expectations": [{"kwargs": {}}]}', "expectation 1 of .* is not an object with a 'type'"),
}


@pytest.mark.parametrize(("content", "message"), NOT_A_SUITE.values(), ids=NOT_A_SUITE)
def test_files_that_are_no_suite(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "suite.json"
    path.write_text(content)
    with pytest.raises(DataValidationError, match=message):
        read_suite(path)


def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataValidationError, match=r"nothing\.json cannot be read"):
        read_suite(tmp_path / "nothing.json")


MALFORMED = {
    "an unknown type": expectation("expect_column_values_to_be_lovely", column="text"),
    "an unknown argument": expectation(LICENSED, column="license", colour="red"),
    "a missing argument": expectation(LICENSED),
    "an unknown key": {**expectation(LICENSED, column="license"), "sevirity": "critical"},
    "an unknown severity": expectation(LICENSED, "fatal", column="license"),
}


@pytest.mark.parametrize("stated", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_expectation_is_never_passed_over(stated: Row) -> None:
    good = expectation(LICENSED, column="license")
    with pytest.raises(DataValidationError, match=rf"expectation 2 \({stated['type']}\) is malformed"):
        build_suite([good, stated], ValidationSettings(suite="none"))


@pytest.mark.parametrize("severity", ["critical", "warning", "info"])
def test_an_expectation_that_cannot_be_evaluated_stops_the_run(tmp_path: Path, severity: str) -> None:
    portraits = Portraits(tmp_path, rows=3)
    suite = portraits.suite(expectation(LICENSED, severity, column="licence"))
    with pytest.raises(DataValidationError, match=r"to_not_be_null\(licence\) could not be evaluated: .*correct the"):
        portraits.validate(suite)


def test_a_suite_that_great_expectations_wrote_itself(tmp_path: Path) -> None:
    import great_expectations as gx

    gx.get_context(mode="ephemeral")
    suite = gx.ExpectationSuite(name="theirs", id="4d0c1c6e-0f0c-4a8e-9d6b-0d6d5d1f3c11")
    written = suite.add_expectation(
        gx.expectations.ExpectColumnValuesToNotBeNull(column="license", severity="warning", mostly=0.5)
    )
    written.id = "a0d5f1f0-9d3c-4f57-8f43-6a4a1f0c2b22"
    portraits = Portraits(tmp_path, rows=4)
    portraits.rows[0]["license"] = None
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(suite.to_json_dict()))
    assert portraits.validate(str(path), max_quarantined_share=0.5).quarantined == 1


def test_the_avatars_suite_states_every_severity_and_description() -> None:
    expectations = read_suite(AVATARS)
    build_suite(expectations, ValidationSettings(suite=str(AVATARS), tokenizer=TOKENIZER))
    for stated in expectations:
        assert stated["severity"] in ("critical", "warning", "info")
        assert stated["description"]


def test_both_steps_in_a_real_pipeline(portraits: Portraits, tmp_path: Path) -> None:
    @dsl.pipeline  # type: ignore[untyped-decorator]
    def data(run: dict, data: dict, validation: dict) -> int:  # type: ignore[type-arg]
        pinned = snapshot_data(run=run, job="one", data=data)
        found = validate_data(run=run, job="one", validation=validation, snapshot=pinned.outputs["snapshot"])
        accepted: int = found.outputs["accepted"]
        return accepted

    portraits.add("no-license.png", picture(600), license=None)
    portraits.pin()
    shutil.rmtree(portraits.folder / "snapshot")
    records = str(tmp_path / "records")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    task = data(
        run=run_context(Path(records).parent, "one").model_dump(exclude={"id"}),
        data={"source": str(portraits.source)},
        validation={"suite": str(AVATARS), "tokenizer": TOKENIZER},
    )
    assert task.outputs == {"Output": GOOD}
    left = read_records(records, "one")
    assert list(left) == ["snapshot-data", "validate-data"]
    assert left["validate-data"].inputs["snapshot"] == left["snapshot-data"].outputs["snapshot"]
    facts = left["validate-data"].facts
    assert (facts["rows"], facts["accepted"], facts["quarantined"]) == (GOOD + 1, GOOD, 1)
    (report,) = (path for path in (tmp_path / "root").rglob("report") if path.is_file())
    assert "no-license.png" in report.read_text(encoding="utf-8")
