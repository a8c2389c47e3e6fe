"""Step records: what each step took, gave, and ran with.

A record is written when the step ends, also when it fails; a record that cannot be written fails the step.

    with recording(run, "validate-data", parameters=settings) as record:
        record.input("snapshot", snapshot_path)
        ...
        record.output("validated", validated_path)
"""

from __future__ import annotations

import getpass
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fsspec
from pydantic import BaseModel, ConfigDict, Field

from lineage.clock import now
from lineage.digests import PREFIX, TREE, LineageError, code_digest, digest_json, digest_path, packages_digest
from lineage.frozen import Frozen
from lineage.openlineage import emit
from lineage.places import without_credentials
from lineage.whereabouts import whereabouts

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from lineage.ledger import Ledger
    from lineage.signing import Role

Status = Literal["complete", "failed"]

IMAGE_VARIABLE = "TRIPTYCH_IMAGE"
"""The environment variable by which a containers runner tells a step its image."""
RUN_VARIABLE = "TRIPTYCH_RUN"
"""The environment variable by which a runner on this machine tells a step its run."""

# The rooms whose code decides what a run gives.
PRODUCT = ("lineage", "training", "components")
CLOSING = "close-run"
"""The step that closes a run; its record is no part of what the run gave."""


class RunContext(Frozen):
    """What every step is told about the run it belongs to."""

    id: str
    """Names the run; it comes from the pipeline job, see `of`."""
    records: str
    """URI of the folder that holds all records."""
    tracking_uri: str
    """The MLflow tracking server or store."""
    ledger: str
    """URL of the ledger: a database, or the governed MLflow server."""
    root: str
    """Id of the root key that opened it."""
    keys: dict[str, str]
    """Role -> URI of its private key: ``run`` and ``gate``; ``promotion`` only where no server holds it."""
    witness: str = ""
    """Where checkpoints of the ledger go, if the run writes them."""
    channel: str = ""
    """Where the promotion channel is, if the run writes it."""
    marks: str = ""
    """A folder for what steps remember of the ledger; empty: they remember nothing."""
    openlineage: str = ""
    """Where OpenLineage events go: a file or an HTTP address; empty: nowhere."""
    state: str = ""
    """A folder that outlives steps and runs, where unfinished work is taken up again: features, checkpoints, samples,
    measured facts. Whatever lies there is checked by digest before it is used. Empty: nothing is kept."""
    user: str = ""
    """Who or what started the run."""
    trigger: str = ""
    """What had the run start, such as ``schedule nightly 2026-11-26T02:00Z``; empty: ``user`` did."""
    commit: str = ""
    """The commit of the code that started it, with ``-dirty`` where the checkout had changes."""

    @classmethod
    def of(cls, run: Mapping[str, Any], job: str) -> RunContext:
        """The context of the run that a pipeline job is.

        A schedule repeats its parameters, so the id is none of them: it is the job's own, or on this machine the one
        that the runner put into the environment.

        Args:
            run: the pipeline's parameter of that name, all fields but ``id``.
            job: what KFP puts in place of `kfp.dsl.PIPELINE_JOB_ID_PLACEHOLDER`.
        """
        return cls.model_validate({**run, "id": os.environ.get(RUN_VARIABLE) or job})

    def open_ledger(self) -> Ledger:
        """The ledger; the same object each time in one process."""
        return _ledger(self)

    def signer(self, role: Role) -> Signer:
        """The private key of ``role``, which the ledger names.

        Raises:
            LineageError: this run does not hold it.
        """
        if role not in self.keys:
            raise LineageError(f"this run was given no {role} key; set keys.{role}")
        return self.open_ledger().signer(role, self.keys[role])

    def __hash__(self) -> int:
        return hash((self.id, self.ledger, self.root, self.marks))


@cache
def _ledger(context: RunContext) -> Ledger:
    from lineage.ledger import Ledger
    from lineage.memory import Memory
    from lineage.signing import SCHEME, open_signer

    if not context.marks:
        return Ledger.open(context.ledger, context.root)
    own = context.keys.get("run", "")
    signer = open_signer(own) if own.startswith(SCHEME) else None
    return Ledger.open(context.ledger, context.root, Memory(Path(context.marks), "pipeline", signer))


class StepRecord(BaseModel):
    """One step of one run: the evidence it leaves."""

    model_config = ConfigDict(extra="forbid")

    run: str
    step: str
    status: Status = "failed"
    started: str
    ended: str | None = None
    error: str | None = None
    user: str
    """Whom the step ran as, and who started the run."""
    host: dict[str, str]
    commit: str
    code: str
    packages: str
    image: str | None = None
    """Id of the container image that the step ran in; None where it ran as a process."""
    where: dict[str, str] = Field(default_factory=dict)
    """On a cluster, see `lineage.whereabouts`."""
    trigger: str = ""
    """What had the run start, where no person did."""
    parameters: dict[str, Any]
    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, str] = Field(default_factory=dict)
    facts: dict[str, Any] = Field(default_factory=dict)
    """Measured or decided by the step: counts, seeds, thread counts, decisions."""

    def input(self, name: str, content: Path | str) -> str:
        """Note an input by digest; ``content`` is a path, or a digest already taken. Returns the digest."""
        self.inputs[name] = _digest(content)
        return self.inputs[name]

    def output(self, name: str, content: Path | str) -> str:
        """Note an output by digest, as `input` does."""
        self.outputs[name] = _digest(content)
        return self.outputs[name]

    def digest(self) -> str:
        """The digest of this record's canonical JSON."""
        return digest_json(self.model_dump(mode="json"))


def _digest(content: Path | str) -> str:
    if isinstance(content, str) and content.startswith((PREFIX, TREE)):
        return content
    return digest_path(content)


@contextmanager
def recording(context: RunContext, step: str, parameters: Mapping[str, Any]) -> Iterator[StepRecord]:
    """Do a step's work and leave its record, named in the ledger.

    Raises:
        LineageError: the record, or its entry in the ledger, cannot be written.
    """
    from lineage.entries import Recorded

    record = StepRecord(
        run=context.id,
        step=step,
        started=now(),
        user=f"{account()}, for {context.user}" if context.user else account(),
        host={"platform": platform.platform(), "python": platform.python_version()},
        commit=context.commit,
        code=code_digest(*PRODUCT),
        packages=packages_digest(),
        image=os.environ.get(IMAGE_VARIABLE),
        where=whereabouts(),
        trigger=context.trigger,
        parameters=dict(parameters),
    )
    emit(context.openlineage, record.model_dump(mode="json"), "START")
    event: Literal["COMPLETE", "FAIL"] = "FAIL"
    try:
        yield record
        record.status, event = "complete", "COMPLETE"
    except BaseException as error:
        record.error = without_credentials(f"{type(error).__name__}: {error}")
        raise
    finally:
        record.ended = now()
        write_record(context.records, record)
        entry = Recorded(run=record.run, step=record.step, status=record.status, record=record.digest())
        context.open_ledger().append(entry, context.signer("run"))
        emit(context.openlineage, record.model_dump(mode="json"), event)


def write_record(records: str, record: StepRecord) -> None:
    """Write ``record`` whole or not at all to ``<records>/<run>/<step>.json``."""
    filesystem, root = fsspec.url_to_fs(records)
    target = f"{root}/{record.run}/{record.step}.json"
    partial = f"{target}.{os.getpid()}.partial"
    try:
        filesystem.makedirs(f"{root}/{record.run}", exist_ok=True)
        with filesystem.open(partial, "w") as stream:
            stream.write(record.model_dump_json(indent=2))
        filesystem.mv(partial, target)
    except Exception as error:  # stores raise classes of their own libraries
        said = without_credentials(str(error))
        told = f"the record of step {record.step!r} cannot be written to {target}: {said}"
        raise LineageError(f"{told}; a step without one does not count: make it writable and run again") from error


def read_records(records: str, run: str) -> dict[str, StepRecord]:
    """All records of one run, by step name, in the order in which the steps began.

    Raises:
        LineageError: a record is there and cannot be read.
    """
    filesystem, root = fsspec.url_to_fs(records)
    found: list[StepRecord] = []
    for path in filesystem.glob(f"{root}/{run}/*.json"):
        try:
            found.append(StepRecord.model_validate(json.loads(filesystem.cat_file(path))))
        except ValueError as error:
            raise LineageError(f"{path} is not a step record: {error}") from error
    return {record.step: record for record in sorted(found, key=lambda record: record.started)}


def check_records(context: RunContext, artifacts: Mapping[str, str]) -> dict[str, StepRecord]:
    """This run's records: all that the ledger names, as it names them, and each step took what the one before it gave.

    Args:
        artifacts: name -> digest of what is at hand now; some step must have given each, exactly so.

    Raises:
        LineageError: a record is gone, was changed or is not in the ledger, or something was exchanged between steps.
    """
    records = read_records(context.records, context.id)
    named = context.open_ledger().refresh().records.get(context.id, {})
    for step in sorted({*records, *named}):
        if step not in records or named.get(step) != records[step].digest():
            told = f"the record of step {step} in run {context.id} is not the one that the ledger names"
            raise LineageError(f"{told}: restore it, or run again")
    given = {name for record in records.values() for name in record.outputs}
    if orphans := sorted(artifacts.keys() - given):
        raise LineageError(f"no record of run {context.id} says where {', '.join(orphans)} came from; run again")
    if told := next(exchanged(records, artifacts), ""):
        raise LineageError(f"run {context.id}: {told}; it was exchanged between the two: run again")
    return records


def exchanged(records: Mapping[str, StepRecord], artifacts: Mapping[str, str]) -> Iterator[str]:
    """In words, each artifact of which two steps name different digests.

    Args:
        artifacts: name -> digest of what is known from elsewhere.
    """
    known = {name: ("what is at hand now is", digest) for name, digest in artifacts.items()}
    for step, record in records.items():
        for name, digest in [*record.inputs.items(), *record.outputs.items()]:
            who, expected = known.setdefault(name, (f"step {step} names", digest))
            if digest != expected:
                yield f"step {step} names {name} {digest}, but {who} {expected}"


def account() -> str:
    """Whom this process runs as."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"  # a container's user need not have a name
