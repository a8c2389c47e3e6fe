"""The checks: every digest and signature that a version rests on. Most only add claims, compared at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

from lineage.artifacts import WEIGHTS_FOLDER, check_loader, folder_digest, weights_digest
from lineage.digests import PREFIX, LineageError, digest_json
from lineage.entries import Registered
from lineage.figures import METRICS, cells, metrics
from lineage.pictures import manifest_rows
from lineage.places import GoneError
from lineage.policy import policy_digest
from lineage.projection import tags_of
from lineage.records import CLOSING, StepRecord
from lineage.registry import CHAMPION
from lineage.scores import EVALUATION_FILE, SETS_FILE, TABLE_FILE, stated
from lineage.statements import SLSA, VERDICT, open_statement, signed_files
from lineage.witness import check_against, kept_checkpoint
from pipelines.audit.examination import VERDICT_PATH, Claim, Examination, beside
from pipelines.audit.report import LEDGER, STORE, Part

STEPS = ("snapshot-data", "plan", "validate-data", "encode-features", "fine-tune", "evaluate", "gate", "register")
"""The steps that every registered version has behind it."""
MOST_TABLE, MOST_UNPACKED = 2**30, 2**31
"""Bytes of a table's file, and of what is in it."""
NAMED = 20
"""Culprits that are named one by one."""
VERDICT_SAYS = ("candidate", "incumbent", "decision", "policy")
"""What a verdict says that the ledger says too."""
Seeds = dict[str, tuple[int, ...]]
Said = Iterator[tuple[str, str]]
"""Subjects, and what is said of them."""


def check_ledger(x: Examination) -> None:
    """Chain, signatures and rules; the root; and how far the ledger is known to be complete."""
    entries, state, root, mark = x.sources.entries, x.state, x.sources.root, x.sources.mark
    good = f"all {state.size} entries follow one another, are signed by keys that count, and keep the rules"
    with x.checking("ledger", "the ledger", good):
        if x.trouble:
            raise LineageError(f"{x.trouble}; nothing from entry {state.size} on counts here")
    with x.checking("ledger", "the root key", f"{root[:12]} opened the ledger"):
        if not root:
            raise GoneError("no root public key was given: anybody could have opened this ledger")
        if entries[0].key != root:
            raise LineageError(f"the ledger was opened by {entries[0].key[:12]}, not by {root[:12]}")
    for index, why in state.void.items():
        x.note("ledger", "not proven", f"ledger entry {index}", f"it does not count: {why}")
    for name in state.clock_steps:
        x.note("ledger", "not proven", f"the time of {name}", "it lies before that of the entry before it")
    if mark and not x.trouble:
        good = "the ledger goes on from what this reader saw last"
        with x.checking("ledger", "the high-water mark", good), mark.locked():
            mark.check(state, x.digest_at)
    seen = max([_checkpoint(x, name, content) for name, content in x.sources.checkpoints], default=0)
    x.proven = f"consistent up to {state.size} entries; completeness not proven: no checkpoint of it was given"
    if seen:
        x.proven = f"complete up to entry {seen - 1} as the witness saw it; consistent up to {state.size}"
    x.note("ledger", "holds" if seen else "not proven", "the end of the ledger", x.proven)


def _checkpoint(x: Examination, name: str, content: bytes) -> int:
    """How many entries a checkpoint proves."""
    with x.checking("ledger", f"checkpoint {name}", "the ledger goes on from it"):
        found = kept_checkpoint(name, content, x.state)
        check_against(x.state, x.digest_at, found, "the witness")
        return found.size
    return 0


def check_steps(x: Examination, run: str, records: Mapping[str, StepRecord], version: Registered | None) -> None:
    """All steps left records, ran the same code, and some step gave what another took."""
    if len({record.code for step, record in records.items() if step != CLOSING}) > 1:
        reason = "its steps did not all run the same code: it was changed meanwhile, or they ran in places that differ"
        x.note("records", "not proven", f"the code of run {run}", reason)
    if version is None:
        return
    for step in STEPS:
        x.record(run, step)
    given = {name for record in records.values() for name in record.outputs}
    taken = {name for record in records.values() for name in record.inputs}
    for name in ({"candidate", *version.evidence} & taken) - given:
        x.note("records", "missing", f"{name} in run {run}", "no record says which step gave it")


def check_version(x: Examination, version: Registered) -> tuple[dict[str, Any] | None, Seeds]:
    """Everything of a version; gives what its verdict says, and each prompt's seeds."""
    with x.checking("version", f"the evidence of {version.name}", "nothing was added to it"):
        for name in sorted(version.evidence):
            x.evidence(version, name)
        if added := x.artifacts.names(x.stored(version).evidence) - version.evidence.keys():
            raise LineageError(f"{', '.join(sorted(added))} lies there, and the ledger does not name it")
    predicate = check_verdict(x, version)
    _check_model(x, version)
    for name, file in ("scores", TABLE_FILE), ("sets", SETS_FILE):
        if predicate and name in predicate["evaluation"]:
            digest = predicate["evaluation"][name]
            x.claim(Claim(beside(version, f"scores/{file}"), digest, "the verdict", "evaluation"))
    for path, (part, read) in DOCUMENTS.items():
        if path == "model.sig" and path not in version.evidence:
            x.note(part, "not proven", beside(version, path), "the run's key was not in a file, and signed no weights")
            continue
        with x.checking(part, f"what {beside(version, path)} says", "it can be read, and whoever must has signed it"):
            said = list(read(x, version, x.content(version, path)))
            x.claim(*(Claim(subject, str(value), path, part) for subject, value in said))
    _check_registry(x, version, predicate)
    return predicate, _check_samples(x, version, predicate or {})


def check_verdict(x: Examination, version: Registered) -> dict[str, Any] | None:
    """The verdict that a version was registered with; None where it does not hold."""
    made, judged, subject = x.registration(version), x.registration(version).verdict, beside(version, VERDICT_PATH)
    with x.checking("verdict", f"the signature of {subject}", "the gate's key made it"):
        x.evidence(version, "verdict")
        statement = open_statement(x.content(version, VERDICT_PATH), VERDICT, x.state.keys_of("gate"))
        predicate: dict[str, Any] = statement.predicate
        evaluation = predicate["evaluation"]
        policy = policy_digest(evaluation["terms"], predicate["gate"])
        said = statement.subject_digest("candidate"), evaluation["incumbent"]["digest"], predicate["decision"], policy
        for name, value in zip(VERDICT_SAYS, said, strict=True):
            x.claim(Claim(f"{name} in run {judged.run}", getattr(judged, name), LEDGER, "verdict"))
            x.claim(Claim(f"{name} in run {judged.run}", str(value), "the verdict", "verdict"))
        x.claim(Claim(f"evaluation in run {judged.run}", digest_json(evaluation), "the verdict", "evaluation"))
        pinned = [p.digest for entry, p in x.policies if entry.index < made.judged.index and p.model == judged.model]
        if pinned[-1:] != [judged.policy]:
            reason = f"the ledger pinned {pinned[-1] if pinned else 'none'} then: it can never promote"
            x.note("verdict", "not proven", f"the policy of {subject}", reason)
        # What is shown of it must have its form.
        list(map(cells, (*predicate["figures"], *predicate.get("anchor", ()))))
        list((*predicate["reasons"], *evaluation.get("scorers", ())))
        if predicate["run"] != judged.run:
            raise LineageError(f"it is of run {predicate['run']}, the ledger says {judged.run}")
        return predicate if said == tuple(getattr(judged, name) for name in VERDICT_SAYS) else None
    return None


def _check_samples(x: Examination, version: Registered, predicate: Mapping[str, Any]) -> Seeds:
    """There is one picture for each that was scored; gives each prompt's seeds."""
    seeds: dict[str, set[int]] = {}
    good = "one picture for each prompt and seed that was scored"
    if predicate.get("evaluation", {}).get("unusable"):
        return {}  # nothing was scored, whatever was drawn before that
    with x.checking("evaluation", beside(version, "scores/samples"), good):
        table, scored = BytesIO(x.content(version, f"scores/{TABLE_FILE}", MOST_TABLE)), set[str]()
        for row in manifest_rows(table, ["model", "prompt", "seed"], MOST_UNPACKED):
            seeds.setdefault(row["prompt"], set()).add(row["seed"])
            scored.add(f"samples/{row['model']}/{row['prompt']}-{row['seed']}.png")
        files = x.evidence(version, "scores")
        there = {name for name in files if name.startswith("samples/") and name.endswith(".png")}
        if scored - there:
            raise GoneError(f"scored and not there: {', '.join(sorted(scored - there)[:NAMED])}")
        if there - scored:
            raise LineageError(f"there and never scored: {', '.join(sorted(there - scored)[:NAMED])}")
    return {prompt: tuple(sorted(found)) for prompt, found in sorted(seeds.items())}


def _check_model(x: Examination, version: Registered) -> None:
    """The model folder and the weights in it are those that were registered and judged."""
    files, of = x.model_files(version), version.name
    with x.checking("weights", f"the weights of {of}"):
        x.claim(Claim(f"the weights of {of}", weights_digest(files), STORE, "weights"))
        x.claim(Claim(f"the model folder of {of}", folder_digest(files), STORE, "weights"))
        for one in files:
            x.claim(Claim(f"{one.name.replace(WEIGHTS_FOLDER, 'weights')} of {of}", one.digest, STORE, "weights"))
    if x.agree(f"the model folder of {of}"):
        with x.checking("weights", f"the loader of {of}", "it is ours, and no code lies beside it"):
            check_loader(x.artifacts.open(x.stored(version).source), files)


def _evaluation(x: Examination, version: Registered, content: bytes) -> Said:
    yield f"evaluation in run {version.run}", digest_json(stated(json.loads(content)))


def _bill(x: Examination, version: Registered, content: bytes) -> Said:
    """What the bill of materials says of the files of the weights: all of them."""
    listed = {one["name"]: one for one in json.loads(content)["metadata"]["component"].get("components", [])}
    for name, one in listed.items():
        yield f"weights/{name} of {version.name}", PREFIX + one["hashes"][0]["content"]
    for one in x.model_files(version):
        name = one.name.removeprefix(f"{WEIGHTS_FOLDER}/")
        if name != one.name and name not in listed:
            x.note("weights", "does not hold", f"weights/{name} of {version.name}", "it was added")


def _signed(x: Examination, version: Registered, content: bytes) -> Said:
    for name, digest in signed_files(content, x.state.keys_of("run")).items():
        yield f"weights/{name} of {version.name}", digest


def _croissant(x: Examination, version: Registered, content: bytes) -> Said:
    for one in json.loads(content)["distribution"]:
        if "sha256" in one:
            yield beside(version, one["contentUrl"]), PREFIX + one["sha256"]


def _provenance(x: Examination, version: Registered, content: bytes) -> Said:
    statement = open_statement(content, SLSA, x.state.keys_of("run"))
    yield f"candidate in run {version.run}", statement.subject_digest("candidate")
    for one in statement.predicate["runDetails"]["byproducts"]:
        yield f"record {version.run}/{one['name'].removeprefix('step record ')}.json", PREFIX + one["digest"]["sha256"]


DOCUMENTS: dict[str, tuple[Part, Any]] = {
    f"scores/{EVALUATION_FILE}": ("evaluation", _evaluation),
    "bom.cdx.json": ("version", _bill),
    "model.sig": ("weights", _signed),
    "croissant.json": ("data", _croissant),
    "provenance.dsse.json": ("version", _provenance),
}
"""What claims something of other things, and how it is read."""


def _check_registry(x: Examination, version: Registered, predicate: Mapping[str, Any] | None) -> None:
    """The registry's version, tags and champion agree with the ledger, its figures with the verdict."""
    name, model, champion = f"{version.name} in the registry", version.model, x.state.champion(version.model)

    def compare(subject: str, said: str, shown: str, part: Part = "version") -> None:
        x.claim(Claim(subject, said, LEDGER, part), Claim(subject, shown, "the registry", part))

    with x.checking("version", name, "it is there"):
        stored = x.stored(version)
        compare(f"the MLflow run of {name}", version.mlflow_run, stored.mlflow_run)
        for tag, said in tags_of(x.state, model, version.version).items():
            compare(f"tag {tag} of {name}", said, stored.tags.get(tag, ""))
        if predicate:
            found = x.registry(model).client.get_run(version.mlflow_run).data.metrics
            shown = {metric: value for metric, value in found.items() if metric.startswith(METRICS)}
            compare(f"the figures of {name}", digest_json(metrics(predicate["figures"])), digest_json(shown))
    with x.checking("moves", f"alias {CHAMPION} of {model}"):
        holder = x.registry(model).client.get_registered_model(model).aliases.get(CHAMPION, "")
        compare(f"alias {CHAMPION} of {model}", champion.version if champion else "", str(holder), "moves")
