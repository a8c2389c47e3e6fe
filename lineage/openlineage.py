"""OpenLineage events of steps (https://openlineage.io), for whoever draws lineage graphs from many pipelines.

Telemetry, not evidence: the step record is the evidence. So a destination that cannot be reached costs a line on
stderr and never the step. Datasets are named by digest, so that what one step gives and another takes is one node,
wherever it lay.

    emit("/runs/openlineage.jsonl", record.model_dump(), "START")
    emit("https://marquez.example", record.model_dump(), "COMPLETE")
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

from lineage.digests import LineageError
from lineage.files import exclusive
from lineage.places import without_credentials

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent

State = Literal["START", "COMPLETE", "FAIL"]

NAMESPACE = "triptych"
"""Of jobs and datasets."""
PIPELINE = "retraining"
PATIENCE = {"timeout": 3.0, "retry": {"total": 1, "connect": 1, "read": 1}}
"""A server that is gone may cost a step some seconds, no more."""


def emit(destination: str, record: Mapping[str, Any], state: State) -> None:
    """Send one event of a step; what cannot be sent is reported on stderr and nothing else happens.

    Args:
        destination: a path or ``file:`` URI to append JSON lines to, or an ``http(s)://`` URL (its path, where it
            has one, replaces ``api/v1/lineage``); empty: no events. An API key for HTTP is read from the
            environment, as the OpenLineage client documents (``OPENLINEAGE__TRANSPORT__AUTH``).
        record: a `lineage.records.StepRecord` as JSON.
    """
    if not destination:
        return
    try:
        _send(destination, make_event(record, state))
    except (ImportError, OSError, RuntimeError, ValueError, LineageError) as error:
        told = f"was not sent to {destination}: {error}; the step's record is not touched by this"
        about = f"[warning] the OpenLineage event {state} of step {record['step']!r}"
        print(about, without_credentials(told), file=sys.stderr, flush=True)


def run_id(run: str, step: str = "") -> UUID:
    """The OpenLineage run of a step, or of the whole pipeline run: always the same for the same names."""
    return uuid5(NAMESPACE_URL, f"urn:triptych:run:{run}:{step}" if step else f"urn:triptych:run:{run}")


def make_event(record: Mapping[str, Any], state: State) -> RunEvent:
    """The event that says that the step of ``record`` began, completed or failed."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.generated import parent_run
    from openlineage.client.generated.base import set_producer
    from openlineage.client.generated.documentation_dataset import DocumentationDatasetFacet
    from openlineage.client.generated.error_message_run import ErrorMessageRunFacet
    from openlineage.client.generated.tags_run import TagsRunFacet, TagsRunFacetFields

    set_producer("urn:triptych:lineage")
    whole = str(run_id(record["run"]))
    tags = {name: record[name] for name in ("run", "user", "code", "packages", "image", "commit") if record[name]}
    tags |= {"decision": record["facts"]["decision"]} if "decision" in record["facts"] else {}
    facets: dict[str, Any] = {
        "parent": parent_run.ParentRunFacet(parent_run.Run(whole), parent_run.Job(NAMESPACE, PIPELINE)),
        "tags": TagsRunFacet([TagsRunFacetFields(key, value, "TRIPTYCH") for key, value in tags.items()]),
    }
    if state == "FAIL":
        facets["errorMessage"] = ErrorMessageRunFacet(record["error"] or "no reason recorded", "PYTHON")

    def datasets(kind: type[Any], named: Mapping[str, str]) -> list[Any]:
        return [kind(NAMESPACE, d, facets={"documentation": DocumentationDatasetFacet(n)}) for n, d in named.items()]

    return RunEvent(
        eventTime=(state != "START" and record["ended"]) or record["started"],
        eventType=RunState[state],
        run=Run(str(run_id(record["run"], record["step"])), facets),
        job=Job(NAMESPACE, f"{PIPELINE}.{record['step']}"),
        inputs=datasets(InputDataset, record["inputs"]),
        outputs=datasets(OutputDataset, record["outputs"]),
    )


def _send(destination: str, event: RunEvent) -> None:
    from openlineage.client import OpenLineageClient

    parts, transport = urlsplit(destination), dict[str, Any]()
    held: AbstractContextManager[None] = nullcontext()
    if parts.scheme in ("http", "https"):
        endpoint = parts.path.strip("/") or "api/v1/lineage"
        transport = {"type": "http", "url": f"{parts.scheme}://{parts.netloc}", "endpoint": endpoint, **PATIENCE}
    elif parts.scheme == "file" or "://" not in destination:
        path = Path(unquote(parts.path) if parts.scheme == "file" else destination)
        path.parent.mkdir(parents=True, exist_ok=True)
        transport = {"type": "file", "log_file_path": str(path), "append": True}
        # The lock keeps lines of several processes whole: the client's transport may write in parts.
        held = exclusive(path.with_name(f".{path.name}.lock"))
    else:
        raise ValueError("only a path, file: or http(s): can be written to; correct the setting")
    with held:
        client = OpenLineageClient(config={"transport": transport})
        client.emit(event)
        client.close()
