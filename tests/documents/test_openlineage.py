"""OpenLineage events: by file and HTTP, checked against the published JSON schemas.

No package carries those schemas. The tests take them from the folder ``OPENLINEAGE_SPEC`` (the ``spec`` folder of a
checkout of OpenLineage), or from openlineage.io, where the events themselves point to; where neither can be had that
one test is skipped. What always runs: every facet must fit the OpenLineage client's own generated class.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource

from lineage.digests import digest_bytes
from lineage.files import exclusive
from lineage.openlineage import State, emit, make_event, run_id
from lineage.records import StepRecord
from tests.documents import example

CANDIDATE = digest_bytes(b"candidate")
GATE = example.records(CANDIDATE)["gate"].model_dump(mode="json")
GENERATED = {
    "ParentRunFacet": "parent_run",
    "TagsRunFacet": "tags_run",
    "ErrorMessageRunFacet": "error_message_run",
    "DocumentationDatasetFacet": "documentation_dataset",
}


def event(record: StepRecord, state: State) -> dict[str, Any]:
    from openlineage.client.serde import Serde

    return dict(Serde.to_dict(make_event(record.model_dump(mode="json"), state)))


def events() -> list[dict[str, Any]]:
    """One event of every kind that steps give."""
    records = example.records(CANDIDATE)
    failed = example.record("evaluate", 9, status="failed", error="ValueError: NaN", image=digest_bytes(b"image"))
    made = [event(record, state) for record in records.values() for state in ("START", "COMPLETE")]
    return [*made, event(failed, "FAIL")]


def facets(content: dict[str, Any]) -> list[dict[str, Any]]:
    holders = [content["run"], content["job"], *content["inputs"], *content["outputs"]]
    return [facet for holder in holders for facet in holder.get("facets", {}).values()]


@functools.cache
def published(uri: str) -> Resource[Any]:
    """A schema that OpenLineage publishes."""
    folder = os.environ.get("OPENLINEAGE_SPEC")
    if folder:
        name = uri.rsplit("/", 1)[-1]
        found = next(path for path in Path(folder).rglob(name))
        content = json.loads(found.read_text())
        assert content["$id"] == uri, f"{found} is another version of the schema"
        return Resource.from_contents(content)
    with urllib.request.urlopen(uri, timeout=5) as answer:
        return Resource.from_contents(json.load(answer))


def check(instance: Any, schema_url: str) -> None:
    registry: Registry[Any] = Registry(retrieve=published)  # type: ignore[call-arg]
    validator = Draft202012Validator(
        {"$ref": schema_url}, registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    validator.validate(instance)


def test_events_fit_the_published_schemas() -> None:
    try:
        published("https://openlineage.io/spec/2-0-2/OpenLineage.json")
    except (URLError, OSError) as error:
        pytest.skip(f"openlineage.io cannot be reached ({error}); set OPENLINEAGE_SPEC to its spec folder")
    for content in events():
        check(content, content["schemaURL"])
        for facet in facets(content):
            check(facet, facet["_schemaURL"])
    broken = {**events()[0], "eventType": "BEGAN"}
    with pytest.raises(ValidationError):
        check(broken, broken["schemaURL"])


def test_standard_facets_fit_the_clients_own_classes() -> None:
    from openlineage.client.event_v2 import RunEvent

    seen = set()
    for content in events():
        assert content["schemaURL"] == RunEvent._get_schema()
        for facet in facets(content):
            name = facet["_schemaURL"].rsplit("/", 1)[-1]
            module = importlib.import_module(f"openlineage.client.generated.{GENERATED[name]}")
            own = {key: value for key, value in facet.items() if not key.startswith("_")}
            assert getattr(module, name)(**own)._schemaURL == facet["_schemaURL"]
            seen.add(name)
    assert seen == GENERATED.keys()


def test_a_step_and_its_pipeline_run_keep_their_ids() -> None:
    first, again = events()[0], events()[0]
    assert first["run"]["runId"] == again["run"]["runId"] == str(run_id(example.RUN, "snapshot-data"))
    assert {e["run"]["facets"]["parent"]["run"]["runId"] for e in events()} == {str(run_id(example.RUN))}
    assert run_id(example.RUN, "gate") != run_id("retraining-2", "gate")


def test_an_event_says_what_a_step_called_its_data_and_what_the_gate_decided() -> None:
    gate = next(e for e in events() if e["job"]["name"] == "retraining.gate" and e["eventType"] == "COMPLETE")
    tags = gate["run"]["facets"]["tags"]["tags"]
    assert {"decision": "promote"}.items() <= {tag["key"]: tag["value"] for tag in tags}.items()
    assert events()[1]["outputs"][0]["facets"]["documentation"]["description"] == "snapshot"


def test_what_one_step_gives_and_the_next_takes_is_one_dataset() -> None:
    by_step = {e["job"]["name"]: e for e in events() if e["eventType"] == "COMPLETE"}
    given = by_step["retraining.fine-tune"]["outputs"][0]
    taken = by_step["retraining.evaluate"]["inputs"][0]
    assert (given["namespace"], given["name"]) == (taken["namespace"], taken["name"]) == ("triptych", CANDIDATE)


def test_a_failure_says_why_and_a_start_says_when() -> None:
    failed, started = events()[-1], events()[0]
    assert failed["eventType"] == "FAIL"
    assert failed["run"]["facets"]["errorMessage"]["message"] == "ValueError: NaN"
    assert started["eventTime"] == example.records(CANDIDATE)["snapshot-data"].started


@pytest.mark.parametrize("uri", [False, True])
def test_events_are_appended_to_a_file(tmp_path: Path, uri: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")  # the setting counts, not what else is around
    path = tmp_path / "a folder" / "events.jsonl"
    record = GATE
    for state in ("START", "COMPLETE"):
        emit(path.as_uri() if uri else str(path), record, state)
    assert [json.loads(line)["eventType"] for line in path.read_text().splitlines()] == ["START", "COMPLETE"]


def test_a_line_waits_until_another_process_has_written_its_own(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    record = GATE
    make_event(record, "START")  # load the client first
    with exclusive(tmp_path / ".events.jsonl.lock"):
        writer = threading.Thread(target=emit, args=(str(path), record, "START"))
        writer.start()
        writer.join(timeout=1)
        assert writer.is_alive() and not path.exists()
    writer.join(timeout=30)
    assert json.loads(path.read_text())["eventType"] == "START"


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """An HTTP server that keeps what it is sent."""
    got: list[tuple[str, dict[str, Any]]] = []

    class Keep(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(500 if "broken" in self.path else 201)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Keep)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}", got
    listening.shutdown()


@pytest.mark.parametrize(("path", "expected"), [("", "/api/v1/lineage"), ("/team/lineage", "/team/lineage")])
def test_events_are_posted(server: tuple[str, list[tuple[str, dict[str, Any]]]], path: str, expected: str) -> None:
    url, got = server
    emit(url + path, GATE, "COMPLETE")
    assert [(where, content["eventType"]) for where, content in got] == [(expected, "COMPLETE")]


@pytest.mark.parametrize("destination", ["http://127.0.0.1:9", "/proc/nowhere/events.jsonl", "s3://bucket/events"])
def test_an_unreachable_destination_costs_a_line_and_not_the_step(
    destination: str, capsys: pytest.CaptureFixture[str]
) -> None:
    emit(destination, GATE, "COMPLETE")
    said = capsys.readouterr().err
    assert said.startswith("[warning]") and said.count("\n") == 1
    assert destination in said and "COMPLETE of step 'gate'" in said


def test_a_server_that_refuses_is_reported(
    server: tuple[str, list[tuple[str, dict[str, Any]]]], capsys: pytest.CaptureFixture[str]
) -> None:
    emit(f"{server[0]}/broken", GATE, "START")
    assert "was not sent" in capsys.readouterr().err


def test_no_destination_means_no_events(capsys: pytest.CaptureFixture[str]) -> None:
    emit("", GATE, "START")
    assert capsys.readouterr().err == ""


def test_importing_it_does_not_load_the_client() -> None:
    code = "import sys, lineage.openlineage; sys.exit('openlineage.client' in sys.modules or 'requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
