"""Provenance, checked by the in-toto attestation library's own messages and by the rules of SLSA v1."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement as InTotoStatement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

from components.register.documents.provenance import dependencies, provenance
from lineage.digests import LineageError, digest_bytes, digest_path, digest_set
from lineage.statements import SLSA
from tests.documents import example

CANDIDATE = digest_bytes(b"candidate")


@pytest.fixture
def predicate() -> Provenance:
    made = provenance(example.RUN, example.records(CANDIDATE), CANDIDATE).model_dump(mode="json", by_alias=True)
    message = ParseDict(made, StatementMessage())
    InTotoStatement.copy_from_pb(message).validate()
    assert message.predicate_type == SLSA
    # Parsing refuses a field that SLSA v1 does not have.
    return ParseDict(made["predicate"], Provenance())


def test_it_is_a_slsa_v1_predicate(predicate: Provenance) -> None:
    assert predicate.build_definition.build_type.startswith("urn:")
    assert predicate.run_details.builder.id.startswith("urn:")
    assert predicate.run_details.metadata.invocation_id == example.RUN
    for described in (*predicate.build_definition.resolved_dependencies, *predicate.run_details.byproducts):
        ResourceDescriptor.copy_from_pb(described).validate()
        assert described.digest


def test_the_times_are_those_of_the_run_in_utc(predicate: Provenance) -> None:
    metadata = predicate.run_details.metadata
    assert metadata.started_on.ToJsonString() == "2026-01-02T00:00:01Z"
    assert metadata.finished_on.ToJsonString() == "2026-01-02T00:00:07Z"


def test_everything_that_went_in_is_named_by_digest(predicate: Provenance) -> None:
    named = {d.name: dict(d.digest) for d in predicate.build_definition.resolved_dependencies}
    wanted = {"snapshot": example.SNAPSHOT, "base_model": example.BASE, "teacher": example.TEACHER}
    wanted |= {"incumbent": example.BASE, "evaluation set": example.SET, "metadata": example.METADATA}
    for name, digest in wanted.items():
        assert named[name] == digest_set(digest)
    assert set(named["base_model"]) == {"tree-sha256"}, "a folder's digest is no SHA-256 of bytes"
    assert named["commit"] == {"gitCommit": "a" * 40}
    assert {"code", "packages", "scorer avatars-alignment"} <= named.keys()
    assert not {"features", "candidate"} & named.keys(), "what the run made itself is no dependency"


def test_parameters_of_every_step_are_there(predicate: Provenance) -> None:
    assert predicate.build_definition.external_parameters["fine-tune"]["seed"] == 7


def test_the_step_records_are_byproducts(predicate: Provenance) -> None:
    found = {b.name: b.digest["sha256"] for b in predicate.run_details.byproducts}
    assert found["step record gate"] == example.records(CANDIDATE)["gate"].digest().removeprefix("sha256:")
    assert len(found) == 6


def test_a_candidate_that_no_step_gave_has_no_provenance() -> None:
    with pytest.raises(LineageError, match="no step of run"):
        provenance(example.RUN, example.records(CANDIDATE), digest_bytes(b"another"))


def test_a_checkout_with_changes_names_no_commit() -> None:
    records = {"fine-tune": example.record("fine-tune", 1, commit="b" * 40 + "-dirty", outputs={"c": CANDIDATE})}
    definition = provenance(example.RUN, records, CANDIDATE).predicate["buildDefinition"]
    assert "commit" not in {d["name"] for d in definition["resolvedDependencies"]}
    assert definition["internalParameters"]["fine-tune"]["commit"].endswith("-dirty")


def test_a_reused_candidate_says_where_it_came_from() -> None:
    facts = {"reused": "models:/portraits/3"}
    records = {"fine-tune": example.record("fine-tune", 1, facts=facts, outputs={"candidate": CANDIDATE})}
    found = provenance(example.RUN, records, CANDIDATE).predicate["buildDefinition"]["resolvedDependencies"]
    assert {"name": "reused candidate", "uri": "models:/portraits/3"}.items() <= found[-1].items()


def test_an_image_is_a_dependency(tmp_path: Path) -> None:
    image = digest_path(example.weights(tmp_path))
    assert ("image", image) in dependencies({"plan": example.record("plan", 1, image=image)})
