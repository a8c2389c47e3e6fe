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
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fsspec
from pydantic import BaseModel, ConfigDict, Field

from lineage.digests import PREFIX, TREE, LineageError, code_digest, digest_json, digest_path, packages_digest

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from lineage.ledger import Ledger
    from lineage.signing import Role

Status = Literal["complete", "failed"]

IMAGE_VARIABLE = "TRIPTYCH_IMAGE"
"""The environment variable by which a containers runner tells a step its image."""

# The rooms whose code decides what a run gives.
PRODUCT = ("lineage", "training", "components")


class RunContext(BaseModel):
    """What every step is told about the run it belongs to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
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
    openlineage: str = ""
    """Where OpenLineage events go: a file or an HTTP address; empty: nowhere."""
    state: str = ""
    """A folder that outlives steps and runs, where unfinished work is taken up again: features, checkpoints, samples,
    measured facts. Whatever lies there is checked by digest before it is used. Empty: nothing is kept."""
    user: str = ""
    """Who or what started the run."""
    commit: str = ""
    """The commit of the code that started it, with ``-dirty`` where the checkout had changes."""

    def open_ledger(self) -> Ledger:
        """The ledger, read and checked.

        Raises:
            LineageError: it cannot be read or does not hold.
        """
        from lineage.ledger import Ledger

        return Ledger(self.ledger, self.root)

    def signer(self, role: Role) -> Signer:
        """The private key of ``role``.

        Raises:
            LineageError: this run does not hold it.
        """
        from lineage.signing import open_signer

        if role not in self.keys:
            raise LineageError(f"this run was given no {role} key; set keys.{role}")
        return open_signer(self.keys[role])


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
def recording(run: Mapping[str, Any] | RunContext, step: str, parameters: Mapping[str, Any]) -> Iterator[StepRecord]:
    """Do a step's work and leave its record, named in the ledger.

    Raises:
        LineageError: the record, or its entry in the ledger, cannot be written.
    """
    context = run if isinstance(run, RunContext) else RunContext.model_validate(run)
    record = StepRecord(
        run=context.id,
        step=step,
        started=_now(),
        user=f"{_account()}, for {context.user}" if context.user else _account(),
        host={"platform": platform.platform(), "python": platform.python_version()},
        commit=context.commit,
        code=code_digest(*PRODUCT),
        packages=packages_digest(),
        image=os.environ.get(IMAGE_VARIABLE),
        parameters=dict(parameters),
    )
    _announce(context, record, "START")
    try:
        yield record
    except BaseException as error:
        record.error = f"{type(error).__name__}: {error}"
        record.ended = _now()
        _leave(context, record, "FAIL")
        raise
    record.status, record.ended = "complete", _now()
    _leave(context, record, "COMPLETE")


def _leave(context: RunContext, record: StepRecord, event: Literal["COMPLETE", "FAIL"]) -> None:
    from lineage.entries import Recorded

    write_record(context.records, record)
    entry = Recorded(run=record.run, step=record.step, status=record.status, record=record.digest())
    context.open_ledger().append(entry, context.signer("run"))
    _announce(context, record, event)


def _announce(context: RunContext, record: StepRecord, event: Literal["START", "COMPLETE", "FAIL"]) -> None:
    if context.openlineage:
        from lineage.openlineage import emit

        emit(context.openlineage, record, event)


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
    except OSError as error:
        raise LineageError(
            f"the record of step {record.step!r} cannot be written to {target}: {error}; "
            "a step without a record does not count: make the folder writable and run again"
        ) from error


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
    """This run's records, each the one that the ledger names, and each step took what the one before it gave.

    Args:
        artifacts: name -> digest of what is at hand now, which the records must agree with.

    Raises:
        LineageError: a record was changed, or is not in the ledger, or something was exchanged between two steps.
    """
    records, named = read_records(context.records, context.id), context.open_ledger().state.records
    known = {name: ("what is at hand now is", digest) for name, digest in artifacts.items()}
    for step, record in records.items():
        if named.get((context.id, step)) != record.digest():
            raise LineageError(
                f"the record of step {step} in run {context.id} is not the one that the ledger names: restore it, or "
                "run again"
            )
        # What validate-data names by its rows, the next steps name by its folder.
        given = {name: digest for name, digest in record.outputs.items() if name != "validated"}
        for name, digest in [*record.inputs.items(), *given.items()]:
            who, expected = known.setdefault(name, (f"step {step} names", digest))
            if digest != expected:
                raise LineageError(
                    f"step {step} of run {context.id} names {name} {digest}, but {who} {expected}: it was exchanged "
                    "between the two; run again"
                )
    return records


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"  # a container's user need not have a name


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
