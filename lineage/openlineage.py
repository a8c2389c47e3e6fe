"""OpenLineage events of steps (https://openlineage.io), for whoever draws lineage graphs from many pipelines.

Telemetry, not evidence: the step record is the evidence. So a destination that cannot be reached costs a line on
stderr and never the step. Datasets are named by digest, so that what one step gives and another takes is one node,
wherever it lay. The nominal time (of a schedule) and the source code's location are not known to a record and left
out; commit, image and the digests of code and packages are tags of the run.

    emit("/runs/openlineage.jsonl", record, "START")
    emit("https://marquez.example", record, "COMPLETE")
"""

from __future__ import annotations

import fcntl
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

from lineage.digests import digest_set

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent
    from openlineage.client.generated.base import DatasetFacet, RunFacet

    from lineage.records import StepRecord

State = Literal["START", "COMPLETE", "FAIL"]

NAMESPACE = "triptych"
"""Of jobs and datasets."""
PIPELINE = "retraining"
PRODUCER = "urn:triptych:lineage"
SCHEMA = "urn:triptych:openlineage-facets:1-1-0"
"""``$id`` of ``openlineage.json`` beside this module: the schema of our own facets."""
ENDPOINT = "api/v1/lineage"


def emit(destination: str, record: StepRecord, state: State) -> None:
    """Send one event of a step; what cannot be sent is reported on stderr and nothing else happens.

    Args:
        destination: a path or ``file:`` URI to append JSON lines to, or an ``http(s)://`` URL (its path, where it
            has one, replaces ``api/v1/lineage``); empty: no events. An API key for HTTP is read from the
            environment, as the OpenLineage client documents (``OPENLINEAGE__TRANSPORT__AUTH``).
    """
    if not destination:
        return
    try:
        event = make_event(record, state)
        if urlsplit(destination).scheme in ("http", "https"):
            _post(destination, event)
        else:
            _append(_local(destination), event)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(
            f"[warning] the OpenLineage event {state} of step {record.step!r} was not sent to {destination}: {error}; "
            "the step's record is not touched by this",
            file=sys.stderr,
            flush=True,
        )


def run_id(run: str, step: str = "") -> UUID:
    """The OpenLineage run of a step, or of the whole pipeline run: always the same for the same names."""
    return uuid5(NAMESPACE_URL, f"urn:triptych:run:{run}:{step}" if step else f"urn:triptych:run:{run}")


def make_event(record: StepRecord, state: State) -> RunEvent:
    """The event that says that the step of ``record`` began, completed or failed."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.generated.job_type_job import JobTypeJobFacet

    ended = record.ended if state != "START" else None
    return RunEvent(
        eventTime=ended or record.started,
        producer=PRODUCER,
        eventType=RunState[state],
        run=Run(runId=str(run_id(record.run, record.step)), facets=_run_facets(record, state)),
        job=Job(
            namespace=NAMESPACE,
            name=f"{PIPELINE}.{record.step}",
            facets={"jobType": JobTypeJobFacet("BATCH", "TRIPTYCH", "TASK", producer=PRODUCER)},
        ),
        inputs=[_dataset(InputDataset, name, digest) for name, digest in record.inputs.items()],
        outputs=[_dataset(OutputDataset, name, digest) for name, digest in record.outputs.items()],
    )


def _run_facets(record: StepRecord, state: State) -> dict[str, RunFacet]:
    from openlineage.client.generated import parent_run
    from openlineage.client.generated.error_message_run import ErrorMessageRunFacet
    from openlineage.client.generated.processing_engine_run import ProcessingEngineRunFacet
    from openlineage.client.generated.tags_run import TagsRunFacet, TagsRunFacetFields

    whole = str(run_id(record.run))
    tags = {"run": record.run, "user": record.user, "code": record.code, "packages": record.packages}
    tags |= {name: value for name, value in (("image", record.image), ("commit", record.commit)) if value}
    facets: dict[str, RunFacet] = {
        "parent": parent_run.ParentRunFacet(
            run=parent_run.Run(whole),
            job=parent_run.Job(NAMESPACE, PIPELINE),
            root=parent_run.Root(parent_run.RootRun(whole), parent_run.RootJob(NAMESPACE, PIPELINE)),
            producer=PRODUCER,
        ),
        "processing_engine": ProcessingEngineRunFacet(
            record.host["python"], "Python", version("triptych"), producer=PRODUCER
        ),
        "tags": TagsRunFacet(
            [TagsRunFacetFields(key, value, "TRIPTYCH") for key, value in tags.items()], producer=PRODUCER
        ),
    }
    if state == "FAIL":
        facets["errorMessage"] = ErrorMessageRunFacet(record.error or "no reason recorded", "PYTHON", producer=PRODUCER)
    if state == "COMPLETE" and "decision" in record.facts and "figures" in record.facts:
        facets["triptych_gate"] = _gate_facet(record.facts)
    return facets


def _gate_facet(facts: dict[str, Any]) -> RunFacet:
    """The verdict: decision, reasons and every figure."""
    import attr
    from openlineage.client.generated.base import RunFacet

    @attr.define
    class TriptychGateRunFacet(RunFacet):
        decision: str
        reasons: list[str]
        figures: list[dict[str, Any]]

        @staticmethod
        def _get_schema() -> str:
            return f"{SCHEMA}#/$defs/TriptychGateRunFacet"

    return TriptychGateRunFacet(facts["decision"], list(facts["reasons"]), list(facts["figures"]), producer=PRODUCER)


def _digest_facet(name: str, digest: str) -> DatasetFacet:
    """What a step called the dataset, and the digest taken of it."""
    import attr
    from openlineage.client.generated.base import DatasetFacet

    @attr.define
    class TriptychDigestDatasetFacet(DatasetFacet):
        name: str
        algorithm: str
        value: str

        @staticmethod
        def _get_schema() -> str:
            return f"{SCHEMA}#/$defs/TriptychDigestDatasetFacet"

    [(algorithm, value)] = digest_set(digest).items()
    return TriptychDigestDatasetFacet(name, algorithm, value, producer=PRODUCER)


def _dataset(kind: Any, name: str, digest: str) -> Any:
    from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet
    from openlineage.client.generated.datasource_dataset import DatasourceDatasetFacet

    facets = {
        "dataSource": DatasourceDatasetFacet(NAMESPACE, f"urn:triptych:digest:{digest}", producer=PRODUCER),
        "version": DatasetVersionDatasetFacet(digest, producer=PRODUCER),
        "triptych_digest": _digest_facet(name, digest),
    }
    return kind(namespace=NAMESPACE, name=digest, facets=facets)


def _local(destination: str) -> Path:
    parts = urlsplit(destination)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if "://" in destination:
        raise ValueError("only a path, file: or http(s): can be written to; correct the setting")
    return Path(destination)


def _append(path: Path, event: RunEvent) -> None:
    """Append one line. The lock keeps lines of several processes whole: the client's transport may write in parts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _send({"type": "file", "log_file_path": str(path), "append": True}, event)


def _post(url: str, event: RunEvent) -> None:
    parts = urlsplit(url)
    server, endpoint = f"{parts.scheme}://{parts.netloc}", parts.path.strip("/") or ENDPOINT
    # A server that is gone may cost a step some seconds, no more.
    patience = {"timeout": 3.0, "retry": {"total": 1, "connect": 1, "read": 1}}
    _send({"type": "http", "url": server, "endpoint": endpoint, **patience}, event)


def _send(transport: dict[str, Any], event: RunEvent) -> None:
    from openlineage.client import OpenLineageClient

    client = OpenLineageClient(config={"transport": transport})
    client.emit(event)
    client.close()
