"""Every question of an auditor, for everything that can be asked about."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from shutil import copytree

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lineage.digests import digest_file
from lineage.embedded import Embedded
from lineage.entries import Entry, Judged, Moved
from lineage.records import read_records
from lineage.registry import Registry
from lineage.stores import export, read_export
from pipelines.audit import Report, UnknownError, audit, write_text
from pipelines.audit.report import Version
from tests.audit.world import BASE, HOSTILE, MODEL, REASON, REFUSED, SET, TEACHER, World


def version_of(report: Report) -> Version:
    assert report.holds, write_text(report)
    assert report.version is not None
    return report.version


def moved(entry: Entry) -> Moved:
    assert isinstance(entry.body, Moved)
    return entry.body


@pytest.fixture(scope="module")
def second(world: World) -> Version:
    return version_of(world.audit("2"))


def test_which_images_and_their_rights(second: Version) -> None:
    (data,) = second.data
    assert data.pictures is not None
    assert [picture.file_name for picture in data.pictures] == ["1.png", "2.png", "3.png", "7.png"]
    shown = data.pictures[0]
    assert (shown.text, shown.license, shown.consent, shown.source) == (
        "a portrait, number 1",
        "CC0-1.0",
        "generated",
        "drawn",
    )


def test_which_were_refused_and_why(world: World, second: Version) -> None:
    refused = second.data[0].refused
    assert refused and [(one.file_name, one.sha256, one.refused) for one in refused] == [
        ("5.png", digest_file(world.picture(5)), (REFUSED,))
    ]


def test_which_code_packages_configuration_and_seeds(world: World) -> None:
    records = world.audit("2").records
    training = records["fine-tune"]
    assert training.commit == "a" * 40 and training.parameters == {"seed": 7, "steps": 90}
    assert all(record.code and record.packages for record in records.values())
    assert world.audit("2").version.seeds == {f"p{prompt}": (7,) for prompt in range(4)}  # type: ignore[union-attr]


def test_which_base_model(world: World, second: Version) -> None:
    assert (second.base, second.base_name) == (BASE, "the base model")
    fourth = version_of(world.audit("4"))
    assert fourth.base_name == "version 2 of portraits"
    assert [data.version for data in fourth.data] == ["4", "2"], "down to the images of what it was trained from"


def test_what_the_gate_measured_against_what_and_on_what(world: World, second: Version) -> None:
    assert second.verdict.decision == "promote" and second.predicate
    assert (second.verdict.incumbent, second.incumbent_name) == (world.candidates["1"], "version 1 of portraits")
    assert second.predicate["evaluation"]["evaluation_set"] == {"name": "avatars", "version": 1, "digest": SET}
    figures = {figure["name"]: figure["difference"] for figure in second.predicate["figures"]}
    assert figures == {axis: pytest.approx(0.3) for axis in ("alignment", "realism", "aesthetics")}
    chain = [(link.body.version, link.verdict.incumbent) for link in second.chain]
    assert chain == [("2", world.candidates["1"]), ("1", BASE)]


def test_who_promoted_it_when_and_in_whose_place(second: Version) -> None:
    (entry,) = second.moves
    move = moved(entry)
    assert (move.action, move.user, move.previous_version) == ("promote", "a person", "1")
    assert second.registered.time < entry.time


def test_what_came_of_it(second: Version) -> None:
    assert [(use.version, use.how) for use in second.descendants] == [
        ("3", "judged against it"),
        ("4", "trained from it and judged against it"),
        ("5", "trained from it and judged against it"),
    ]


def test_a_withdrawn_version_says_why(world: World) -> None:
    first = version_of(world.audit("1"))
    assert first.standing == "withdrawn"
    assert [(move.action, move.version) for move in map(moved, first.moves)] == [
        ("promote", "1"),
        ("promote", "2"),
        ("withdraw", "1"),
    ]
    assert moved(first.moves[-1]).reason == REASON


def test_a_rejected_version_is_answered_for_too(world: World) -> None:
    third = version_of(world.audit("portraits/3"))
    assert third.standing == "candidate (reject)" and third.moves == ()


@pytest.mark.parametrize(
    "what", ["champion", "portraits/champion", "models:/portraits@champion", "models:/portraits/2"]
)
def test_names_of_a_version(world: World, what: str) -> None:
    assert world.audit(what).found == "version 2 of portraits: champion"


def test_a_run(world: World) -> None:
    report = world.audit("run-3")
    assert (report.kind, report.run, report.outcome) == ("run", "run-3", "judged")
    assert version_of(report).body.version == "3"


def test_digests_of_all_kinds(world: World) -> None:
    version = world.registered("2")
    record = read_records(str(world.records), "run-2")["gate"]
    samples = sorted((world.evidence("2") / "validated").iterdir())
    asked = {
        "weights": version.candidate,
        "verdict": version.verdict,
        "record": record.digest(),
        "evidence": version.evidence["croissant.json"],
        "digest": read_records(str(world.records), "run-2")["snapshot-data"].outputs["snapshot"],
    }
    for kind, digest in asked.items():
        for written in (digest, digest.removeprefix("sha256:")):
            report = world.audit(written)
            assert (report.kind, version_of(report).body.version) == (kind, "2"), report.found
    assert world.audit(digest_file(samples[0])).found.startswith("has it as evidence validated/facts.parquet")


def test_what_a_model_went_into(world: World) -> None:
    uses = {use.version: use.how for use in world.audit(TEACHER).uses}
    assert uses == dict.fromkeys("12345", "step encode-features names it as teacher")
    assert {use.version for use in world.audit(BASE).uses} == {"1", "2", "3"}


@pytest.mark.parametrize("as_file", [True, False])
def test_a_training_image_leads_to_every_version_trained_on_it(world: World, as_file: bool) -> None:
    path = world.picture(1)
    report = world.audit(str(path) if as_file else digest_file(path), image=True)
    assert report.holds
    assert {use.version: use.standing for use in report.uses} == {
        "1": "withdrawn",
        "2": "champion",
        "4": "candidate (hold)",
        "5": "candidate (hold)",
    }
    assert "“a portrait, number 1”; license CC0-1.0, consent generated" in report.uses[0].how
    assert report.uses[2].how.startswith("trained from weights"), "through the version it was trained from"
    assert "the champion, version 2, is one of them" in report.found


def test_a_training_image_is_found_without_being_announced(world: World) -> None:
    assert world.audit(str(world.picture(8))).kind == "training image"
    assert "the champion is not among them" in world.audit(str(world.picture(8))).found


def test_a_refused_image_says_why(world: World) -> None:
    report = world.audit(str(world.picture(5)), image=True)
    assert [use.version for use in report.uses] == ["1", "2", "3", "4", "5"]
    assert all(REFUSED in use.how and use.how.startswith("refused") for use in report.uses)
    assert "no version was trained on it" in report.found


def test_an_image_that_was_held_out_was_not_trained_on(world: World) -> None:
    report = world.audit(str(world.picture(6)), image=True)
    assert report.holds and "held out; no version was trained on it" in report.found
    (use,) = report.uses
    assert use.version == "3" and use.how.startswith("held it out as 6.png") and "split is validation" in use.how


def test_an_image_nobody_was_trained_on(world: World) -> None:
    report = world.audit(str(world.picture(9)), image=True)
    assert report.holds and report.uses == () and "no version was trained on it" in report.found


@pytest.mark.parametrize(("who", "number"), [("candidate", "2"), ("incumbent", "1")])
def test_a_stored_sample_proves_who_drew_it(world: World, who: str, number: str) -> None:
    sample = world.evidence("2") / "scores" / "samples" / who / "p1-7.png"
    report = world.audit(str(sample))
    assert report.kind == "generated picture" and report.images["picture"] == sample.read_bytes()
    assert version_of(report).body.version == number
    assert any(f.part == "picture" and f.standing == "holds" for f in report.findings)


def drawn(path: Path, **claims: str) -> str:
    text = PngInfo()
    for name, value in claims.items():
        text.add_itxt(name.replace("_", "-"), value)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path, pnginfo=text)
    return str(path)


def test_a_picture_from_elsewhere_is_a_claim(world: World, tmp_path: Path) -> None:
    digest = world.candidates["2"]
    report = world.audit(drawn(tmp_path / "a.png", model=MODEL, model_digest=digest, prompt="a portrait", seed="7"))
    assert version_of(report).body.version == "2" and report.claims["prompt"] == "a portrait"
    assert [f.standing for f in report.findings if f.part == "picture"] == ["not proven"]
    assert "not signed" in write_text(report)


def test_a_picture_that_names_unknown_weights_does_not_hold(world: World, tmp_path: Path) -> None:
    report = world.audit(drawn(tmp_path / "a.png", model=MODEL, model_digest="sha256:" + "7" * 64))
    assert not report.holds and report.version is None


@pytest.mark.parametrize("what", ["9", "another/1", "run-9", "sha256:" + "1" * 64, "/nowhere.png", "", "../x"])
def test_what_the_evidence_does_not_know(world: World, what: str) -> None:
    with pytest.raises(UnknownError, match="ledger"):
        world.audit(what)


def test_a_file_that_nothing_knows(world: World, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("note")
    with pytest.raises(UnknownError, match="nothing in the ledger, the records or the evidence"):
        world.audit(str(tmp_path / "note.txt"))


def test_an_export_serves_as_well_as_a_ledger(world: World, tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text(export(world.home.open("tests").entries()))
    assert world.audit("2", entries=read_export(tmp_path / "ledger.jsonl")).holds


def test_without_a_witness_completeness_is_not_proven(world: World) -> None:
    report = world.audit("2", checkpoints=())
    assert report.holds and "completeness not proven" in report.ledger.proven


def test_json_has_everything_and_no_bytes(world: World) -> None:
    written = json.loads(world.audit("2").model_dump_json())
    assert written["holds"] is True and "images" not in written
    assert written["version"]["data"][0]["pictures"][3]["text"] == HOSTILE


def test_text_answers_and_steers_no_terminal(world: World) -> None:
    text = write_text(world.audit("2"))
    assert "\x1b" not in text
    for said in (
        "4 images",
        "CC0-1.0 (4)",
        REFUSED,
        "seed of fine-tune: 7",
        "against version 1",
        "in place of version 1",
    ):
        assert said in text


def test_weights_judged_anew_lead_to_the_run_that_trained_them(world: World) -> None:
    fifth = version_of(world.audit("5"))
    assert fifth.body.run == "run-5" and fifth.body.candidate == world.candidates["4"]
    assert fifth.trained_by and fifth.trained_by.run == "run-4"
    assert {use.version for use in world.audit(fifth.body.candidate).uses} == {"4", "5"}


def test_an_empty_ledger_is_no_evidence(world: World) -> None:
    with pytest.raises(UnknownError, match="empty"):
        audit("1", world.sources(entries=[]))


def test_places_on_a_server_are_read_where_they_lie(world: World, tmp_path: Path) -> None:
    """Versions made through an MLflow server name ``mlflow-artifacts:`` places; no server is needed to audit them."""
    (tmp_path / "mlflow.db").write_bytes((world.folder / "mlflow.db").read_bytes())
    place = (world.folder / "artifacts").as_uri()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        for table, column in (
            ("runs", "artifact_uri"),
            ("model_versions", "source"),
            ("model_versions", "storage_location"),
        ):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, 'mlflow-artifacts:')", [place])
    store = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", MODEL)
    assert store.versions()[1].source.startswith("mlflow-artifacts:/")
    report = world.audit("2", registry=store.tracking_uri, artifacts=world.folder / "artifacts")
    assert version_of(report).body.version == "2"


def test_what_a_revoked_key_signed_does_not_count(world: World, tmp_path: Path) -> None:
    copytree(world.home.folder, tmp_path / "lineage")
    home = Embedded(tmp_path / "lineage")
    judged = [entry for entry in home.open("tests").entries() if isinstance(entry.body, Judged)]
    home.revoke("gate", judged[2].index, "stolen")
    entries = home.open("tests").entries()
    report = world.audit("2", entries=entries)
    assert version_of(report).descendants == (), "what was judged with the key never counted"
    assert any("does not count" in f.reason for f in report.findings)
    with pytest.raises(UnknownError, match=r"version 3 of portraits is named by ledger entry \d+ alone"):
        world.audit("3", entries=entries)
