"""The checks: every digest and signature that a version rests on."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key

from lineage.audit.examination import Examination, beside, expect
from lineage.audit.sources import MissingError
from lineage.closing import CLOSING
from lineage.digests import LineageError, digest_file, digest_path
from lineage.documents.model_signature import verify_model
from lineage.documents.provenance import SLSA
from lineage.entries import Registered
from lineage.records import StepRecord
from lineage.registry import CHAMPION
from lineage.scores import stated
from lineage.statements import VERDICT, VERDICT_FILE, read_statement
from lineage.witness import check_against, read_checkpoint, witness_keys

STEPS = ("snapshot-data", "plan", "validate-data", "encode-features", "fine-tune", "evaluate", "gate", "register")
"""The steps that every registered version has behind it."""
NAMED = 20
"""Culprits that are named one by one."""
Seeds = tuple[int, ...]


def check_ledger(x: Examination) -> None:
    """Chain, signatures and rules; the root; and how far the ledger is known to be complete."""
    entries, size = x.sources.entries, x.state.size
    if x.history.trouble:
        reason = f"{x.history.trouble}; nothing from entry {size} on counts here"
        x.note("ledger", "does not hold", "the ledger", reason)
    else:
        good = f"all {size} entries follow one another, are signed by keys that count, and keep the rules"
        x.note("ledger", "holds", "the ledger", good)
    if not x.sources.root_id:
        reason = "no root public key was given: anybody could have opened this ledger"
        x.note("ledger", "missing", "the root key", reason)
    else:
        with x.checking("ledger", "the root key", f"{x.sources.root_id[:12]} opened the ledger"):
            if entries[0].key != x.sources.root_id:
                raise LineageError(f"the ledger was opened by {entries[0].key[:12]}, not by {x.sources.root_id[:12]}")
    for index, why in x.state.void.items():
        x.note("ledger", "not proven", f"ledger entry {index}", f"it does not count: {why}")
    for name in x.state.clock_steps:
        x.note("ledger", "not proven", f"the time of {name}", "it lies before that of the entry before it")
    if x.sources.mark and not x.history.trouble:
        with x.checking("ledger", "the high-water mark", "the ledger goes on from what this reader saw last"):
            x.sources.mark.check(entries, x.state)
    _check_completeness(x)


def _check_completeness(x: Examination) -> None:
    seen = 0
    for name, content in (x.sources.checkpoints or {}).items():
        subject = f"checkpoint {name}"
        if why := _says_nothing(x, content):
            x.note("ledger", "not proven", subject, why)
            continue
        with x.checking("ledger", subject, "the ledger goes on from it"):
            found = read_checkpoint(content, witness_keys(x.state))
            check_against(entries=x.sources.entries, seen=found, who="the witness")
            seen = max(seen, found.size)
    x.proven = f"consistent up to {x.state.size} entries; completeness not proven: no checkpoint of it was given"
    if seen:
        x.proven = f"complete up to entry {seen - 1} as the witness saw it; consistent up to {x.state.size}"
    x.note("ledger", "holds" if seen else "not proven", "the end of the ledger", x.proven)


def _says_nothing(x: Examination, content: bytes) -> str:
    """Why a checkpoint is neither proof nor alarm; empty where it is one of the two."""
    revoked = [k.key for k in x.state.keys.values() if k.role == "witness" and k.distrusted is not None]
    with suppress(LineageError):
        read_checkpoint(content, revoked)
        return "a key signed it that was revoked"
    with suppress(ValueError, LookupError, TypeError):
        ledger = json.loads(base64.b64decode(json.loads(content)["payload"]))["ledger"]
        return "" if ledger == x.state.ledger else f"it is of another ledger ({ledger})"
    return ""


def check_steps(x: Examination, run: str, records: Mapping[str, StepRecord], version: Registered | None) -> None:
    """What one step gave is what the next took, and in the end what was registered."""
    known: dict[str, tuple[str, str]] = {}
    if version:
        registered = {"candidate": version.candidate, "incumbent": x.state.verdicts[version.verdict].incumbent}
        known = {name: ("the ledger says", digest) for name, digest in (registered | version.evidence).items()}
    wrong = False
    for step, record in records.items():
        # What validate-data names by its rows, the next steps name by its folder.
        given = {name: digest for name, digest in record.outputs.items() if name != "validated"}
        for verb, named in (("took", record.inputs), ("gave", given)):
            for name, digest in named.items():
                before, expected = known.setdefault(name, (f"{step} {verb}", digest))
                if digest != expected:
                    wrong = True
                    reason = f"step {step} {verb} {name} {digest}, but {before} {expected}"
                    x.note("records", "does not hold", f"{name} in run {run}", reason)
    if len({record.code for step, record in records.items() if step != CLOSING}) > 1:
        reason = "its steps did not all run the same code: it was changed meanwhile, or they ran in places that differ"
        x.note("records", "not proven", f"the code of run {run}", reason)
    if not wrong:
        good = f"in {len(records)} records, what one step gave is what the next took"
        x.note("records", "holds", f"the steps of run {run}", good)


def check_evidence(x: Examination, version: Registered) -> None:
    """Everything beside the weights is what the ledger names, and nothing was added."""
    for name in sorted(version.evidence):
        x.evidence(version, name)
    with x.checking("version", f"the evidence of version {version.version}", "nothing was added to it"):
        added = x.store.names(version) - version.evidence.keys()
        if added:
            raise LineageError(f"{', '.join(sorted(added))} lies there, and the ledger does not name it")


def verdict(x: Examination, version: Registered) -> dict[str, Any] | None:
    """The verdict that a version was registered with; None where it does not hold."""
    judged = x.history.judged[version.verdict][1]
    with x.checking("verdict", beside(version, f"verdict/{VERDICT_FILE}"), "signed by the gate, about these weights"):
        path = x.file(version, VERDICT_FILE, "verdict")
        statement = read_statement(path, VERDICT, x.state.verdict_keys())
        predicate = statement.predicate
        said = {
            "envelope": (digest_file(path), version.verdict),
            "weights": (statement.subject_digest("candidate"), version.candidate),
            "run": (predicate["run"], judged.run),
            "decision": (predicate["decision"], judged.decision),
            "incumbent": (predicate["evaluation"]["incumbent"]["digest"], judged.incumbent),
        }
        for name, (actual, expected) in said.items():
            if actual != expected:
                raise LineageError(f"its {name} is {actual}, the ledger says {expected}")
        return predicate
    return None


def check_scores(x: Examination, version: Registered, predicate: Mapping[str, Any] | None) -> dict[str, Seeds]:
    """Scores and samples are those that the verdict was given on; gives each prompt's seeds."""
    subject = beside(version, "scores/evaluation.json")
    with x.checking("evaluation", subject, "it is what the verdict was given on"):
        evaluation = json.loads(x.file(version, "evaluation.json", "scores").read_bytes())
        if predicate is None:
            raise MissingError("there is no verdict that holds to compare it with")
        if stated(evaluation) != predicate["evaluation"]:
            raise LineageError("it differs from what the verdict names")
    subject = beside(version, "scores/scores.parquet")
    with x.checking("evaluation", subject, "it is the table that evaluation.json names"):
        path = x.file(version, "scores.parquet", "scores")
        actual = digest_file(path)
        expected = json.loads(x.file(version, "evaluation.json", "scores").read_bytes())["scores"]
        if actual != expected:
            raise LineageError(f"it was changed: digest {actual}, evaluation.json says {expected}")
        if predicate and predicate["evaluation"].get("unusable"):
            return {}  # nothing was scored, whatever was drawn before that
        return _check_samples(x, version, path)
    return {}


def _check_samples(x: Examination, version: Registered, table: Path) -> dict[str, Seeds]:
    import pyarrow.parquet as pq

    rows = pq.read_table(table, columns=["model", "prompt", "seed"]).to_pylist()
    scored = {f"{row['model']}/{row['prompt']}-{row['seed']}.png" for row in rows}
    good = f"{len(scored)} pictures, one for each prompt and seed that was scored"
    with x.checking("evaluation", beside(version, "scores/samples"), good):
        folder = table.with_name("samples")
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
        if scored - there:
            raise MissingError(f"scored and not there: {', '.join(sorted(scored - there)[:NAMED])}")
        if there - scored:
            raise LineageError(f"there and never scored: {', '.join(sorted(there - scored)[:NAMED])}")
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row["prompt"], set()).add(row["seed"])
    return {prompt: tuple(sorted(found)) for prompt, found in sorted(seeds.items())}


def check_weights(x: Examination, version: Registered) -> None:
    """The weights in the store are those that were judged, and what the run's key signed."""
    subject, folder = f"the weights of version {version.version}", None
    with x.checking("weights", subject, "they are those that were judged"):
        folder = x.store.weights(version)
        actual = digest_path(folder)
        if actual != version.candidate:
            changed = _changed_weights(x, version, folder)
            raise LineageError(f"they were changed{changed}: digest {actual}, the ledger says {version.candidate}")
    subject = beside(version, "model.sig")
    if "model.sig" not in version.evidence:
        x.note("weights", "not proven", subject, "the weights were not signed: the run's key was not in a file")
        return
    with x.checking("weights", subject, "the run's key signed exactly these files"):
        if folder is None:
            raise MissingError("the weights that it is about are not there")
        signature = x.evidence(version, "model.sig")
        if signature is None:
            raise MissingError("it is not there")
        _verify_model(folder, signature, x.keys_of("run"))


def _changed_weights(x: Examination, version: Registered, folder: Path) -> str:
    """Which files, as far as the bill of materials can tell."""
    bill = x.evidence(version, "bom.cdx.json")
    if bill is None or digest_path(bill) != version.evidence.get("bom.cdx.json"):
        return ""
    listed = json.loads(bill.read_bytes())["metadata"]["component"].get("components", [])
    before = {item["name"]: "sha256:" + item["hashes"][0]["content"] for item in listed}
    now = {p.relative_to(folder).as_posix(): digest_file(p) for p in folder.rglob("*") if p.is_file()}
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return f" ({', '.join(changed[:NAMED])})"


def check_provenance(x: Examination, version: Registered) -> None:
    """The signed provenance is about these weights and these records."""
    subject = beside(version, "provenance.dsse.json")
    with x.checking("version", subject, "signed by the run, about these weights and records"):
        path = x.evidence(version, "provenance.dsse.json")
        if path is None:
            raise MissingError("it is not there")
        statement = read_statement(path, SLSA, x.keys_of("run"))
        expect(statement.subject_digest("candidate"), version.candidate, "the ledger")
        for byproduct in statement.predicate["runDetails"]["byproducts"]:
            step = byproduct["name"].removeprefix("step record ")
            named = x.state.records.get((version.run, step), "")
            expect("sha256:" + byproduct["digest"]["sha256"], named, f"the ledger, of the record of {step},")


def check_registry(x: Examination, version: Registered) -> None:
    """The registry's version, tags and champion agree with the ledger."""
    subject = f"version {version.version} of {version.model} in the registry"
    with x.checking("version", subject, "it agrees with the ledger"):
        found = x.store.versions(version.model).get(version.version)
        if found is None:
            raise MissingError("the registry does not have it")
        if found.run != version.mlflow_run:
            raise LineageError(f"it was deleted and made again, from MLflow run {found.run}")
        for tag, expected in (("candidate", version.candidate), ("verdict", version.verdict)):
            if tag in found.tags:
                expect(found.tags[tag], expected, f"the ledger, of tag {tag},")
    with x.checking("moves", f"alias {CHAMPION} of {version.model}", "it is where the ledger says"):
        champion = x.state.champion(version.model)
        said = champion.version if champion else "no version"
        holders = [v.number for v in x.store.versions(version.model).values() if CHAMPION in v.aliases]
        if (holders[0] if holders else "no version") != said:
            raise LineageError(
                f"it is on {', '.join(holders) or 'no version'}, the ledger says {said}; run: triptych reconcile"
            )


def _verify_model(folder: Path, signature: Path, keys: list[Key]) -> None:
    for key in keys:
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as public:
            public.write(key.keyval["public"])  # type: ignore[attr-defined]
            public.flush()
            with suppress(LineageError):
                verify_model(folder, Path(public.name), signature)
                return
    raise LineageError(
        "it does not hold for the weights in the store: one of their files, or the signature itself, was changed, or "
        f"none of the run keys ({', '.join(key.keyid[:12] for key in keys)}) made it"
    )
