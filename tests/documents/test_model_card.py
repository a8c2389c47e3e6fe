"""The model card, read back by huggingface_hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from components.evaluate.settings import DrawingSettings
from components.register.documents.model_card import model_card
from lineage.statements import VERDICT, make_statement
from tests.documents import example


def written(tmp_path: Path, license: str | None = None) -> Path:
    path = tmp_path / "README.md"
    path.write_text(model_card(example.candidate(tmp_path, license)), "utf-8")
    return path


def test_the_hub_reads_its_metadata(tmp_path: Path) -> None:
    path = written(tmp_path)
    card = ModelCard.load(path)
    assert card.data.pipeline_tag == "text-to-image"
    assert card.data.library_name == "diffusers"
    assert card.data.eval_results is not None
    figures = {result.metric_name: result for result in card.data.eval_results}
    assert figures["alignment"].metric_value == 0.9
    assert figures["no glasses asked"].metric_type == "alignment/glasses"
    assert figures["alignment"].dataset_revision == example.SET
    content = metadata_load(path)
    assert content is not None and content["model-index"][0]["name"] == "portraits"


def test_it_survives_a_round_trip(tmp_path: Path) -> None:
    text = written(tmp_path).read_text("utf-8")
    assert str(ModelCard(text)) == text


def test_it_tells_people_what_was_decided_and_what_is_unknown(tmp_path: Path) -> None:
    text = written(tmp_path).read_text("utf-8")
    assert "**Decision of the gate: promote**" in text
    assert "| alignment | 0.800 | 0.900 | +0.100 | +0.080 to +0.120 | 0.02 |" in text
    assert "Nobody has declared one" in text
    assert "- consent: not stated (1)" in text
    assert example.BASE in text and example.TEACHER in text


def test_a_candidate_without_figures_has_a_card(tmp_path: Path) -> None:
    subject = example.candidate(tmp_path, judged=example.invalid("sha256:" + "0" * 64))
    card = ModelCard(model_card(subject))
    assert "decision:invalid" in (card.data.tags or [])
    assert not card.data.eval_results
    assert "Nothing was measured" in card.text and "| figure |" not in card.text


def test_figures_against_the_approved_version_have_their_own_table(tmp_path: Path) -> None:
    judged = example.verdict("sha256:" + "0" * 64)
    anchor = [{**judged.predicate["figures"][0], "incumbent": 0.7, "difference": 0.2}]
    told = make_statement(VERDICT, {"candidate": "sha256:" + "0" * 64}, {**judged.predicate, "anchor": anchor})
    text = model_card(example.candidate(tmp_path, judged=told))
    before, after = text.split("Against the anchor")
    assert "| alignment | 0.800 |" in before and "| alignment | 0.700 |" in after
    assert "| figure | anchor |" in after


def test_the_precision_that_judges_drew_in_is_what_the_verdict_says(tmp_path: Path) -> None:
    judged = example.verdict("sha256:" + "0" * 64)
    terms = {"terms": {"drawing": DrawingSettings(precision="bfloat16").model_dump(mode="json")}}
    more = {**judged.predicate, "evaluation": {**judged.predicate["evaluation"], **terms}}
    told = make_statement(VERDICT, {"candidate": "sha256:" + "0" * 64}, more)
    assert example.candidate(tmp_path / "told", judged=told).precision == "bfloat16"
    assert example.candidate(tmp_path / "plain").precision == "float32"


def test_pictures_held_out_are_not_among_those_trained_on(tmp_path: Path) -> None:
    subject = example.candidate(tmp_path)
    assert "\n3 captioned pictures.\n" in model_card(subject)
    example.hold_out(subject.manifest, 1)
    text = model_card(replace(subject))
    assert "\n2 captioned pictures; 1 more were held out.\n" in text
    assert "- source: drawn (2)" in text and "license: CC0-1.0" not in text, "what only a held-out picture says"


def test_a_declared_licence_is_shown(tmp_path: Path) -> None:
    path = written(tmp_path, "Apache-2.0")
    assert "\nApache-2.0\n" in path.read_text("utf-8")
    assert ModelCard.load(path).data.license_name == "Apache-2.0"
