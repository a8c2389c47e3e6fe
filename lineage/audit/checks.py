"""The checks: every digest and signature that a version rests on. Most only add claims, compared at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from lineage.artifacts import WEIGHTS_FOLDER, GoneError, folder_digest, weights_digest
from lineage.audit.claims import LEDGER, STORE, Claim
from lineage.audit.data import MOST_TABLE
from lineage.audit.examination import VERDICT_PATH, Examination, UnprovenError, beside, called
from lineage.audit.report import Part
from lineage.closing import CLOSING
from lineage.digests import LineageError, digest_json
from lineage.documents.figures import cells
from lineage.documents.model_signature import signed_files
from lineage.documents.provenance import SLSA
from lineage.entries import PolicySet, Registered
from lineage.moves import tags_of
from lineage.pictures import manifest_rows
from lineage.policy import policy_digest
from lineage.records import StepRecord
from lineage.registry import CHAMPION
from lineage.scores import EVALUATION_FILE, SETS_FILE, TABLE_FILE, stated
from lineage.statements import VERDICT, open_statement
from lineage.witness import check_against, checkpoint_keys, read_checkpoint, told_by_revoked

STEPS = ("snapshot-data", "plan", "validate-data", "encode-features", "fine-tune", "evaluate", "gate", "register")
"""The steps that every registered version has behind it."""
NAMED = 20
"""Culprits that are named one by one."""
Seeds = dict[str, tuple[int, ...]]


def check_ledger(x: Examination) -> None:
    """Chain, signatures and rules; the root; and how far the ledger is known to be complete."""
    entries, state = x.sources.entries, x.state
    if x.trouble:
        reason = f"{x.trouble}; nothing from entry {state.size} on counts here"
        x.note("ledger", "does not hold", "the ledger", reason)
    else:
        good = f"all {state.size} entries follow one another, are signed by keys that count, and keep the rules"
        x.note("ledger", "holds", "the ledger", good)
    with x.checking("ledger", "the root key", f"{x.sources.root[:12]} opened the ledger"):
        if not x.sources.root:
            raise GoneError("no root public key was given: anybody could have opened this ledger")
        if entries[0].key != x.sources.root:
            raise LineageError(f"the ledger was opened by {entries[0].key[:12]}, not by {x.sources.root[:12]}")
    for index, why in state.void.items():
        x.note("ledger", "not proven", f"ledger entry {index}", f"it does not count: {why}")
    for name in state.clock_steps:
        x.note("ledger", "not proven", f"the time of {name}", "it lies before that of the entry before it")
    if x.sources.mark and not x.trouble:
        good = "the ledger goes on from what this reader saw last"
        with x.checking("ledger", "the high-water mark", good), x.sources.mark.locked():
            x.sources.mark.check(state, x.digest_at)
    seen = max([_checkpoint(x, name, content) for name, content in x.sources.checkpoints], default=0)
    x.proven = f"consistent up to {state.size} entries; completeness not proven: no checkpoint of it was given"
    if seen:
        x.proven = f"complete up to entry {seen - 1} as the witness saw it; consistent up to {state.size}"
    x.note("ledger", "holds" if seen else "not proven", "the end of the ledger", x.proven)


def _checkpoint(x: Examination, name: str, content: bytes) -> int:
    """How many entries a checkpoint proves."""
    with x.checking("ledger", f"checkpoint {name}", "the ledger goes on from it"):
        try:
            found = read_checkpoint(content, checkpoint_keys(x.state))
        except LineageError:
            if told_by_revoked(content, x.state):
                raise UnprovenError("a key signed it that was revoked") from None
            if name.startswith(x.state.ledger):
                raise
            raise UnprovenError("it is of another ledger") from None
        if not name.startswith(found.stem):
            raise LineageError(f"it is of {found.size} entries of ledger {found.ledger}, under another name")
        check_against(x.state, x.digest_at, found, "the witness")
        return found.size
    return 0


def check_steps(x: Examination, run: str, records: Mapping[str, StepRecord], version: Registered | None) -> None:
    """All steps left records, ran the same code, and some step gave what another took."""
    for step in STEPS if version else ():
        x.record(run, step)
    if len({record.code for step, record in records.items() if step != CLOSING}) > 1:
        reason = "its steps did not all run the same code: it was changed meanwhile, or they ran in places that differ"
        x.note("records", "not proven", f"the code of run {run}", reason)
    given = {name for record in records.values() for name in record.outputs}
    taken = {name for record in records.values() for name in record.inputs}
    for name in ({"candidate", *version.evidence} & taken) - given if version else ():
        x.note("records", "missing", f"{name} in run {run}", "no record says which step gave it")


def check_version(x: Examination, version: Registered) -> tuple[dict[str, Any] | None, Seeds]:
    """Everything of a version; gives what its verdict says, and each prompt's seeds."""
    with x.checking("version", f"the evidence of {called(version)}", "nothing was added to it"):
        for name in sorted(version.evidence):
            x.evidence(version, name)
        if added := x.artifacts.names(x.stored(version).evidence) - version.evidence.keys():
            raise LineageError(f"{', '.join(sorted(added))} lies there, and the ledger does not name it")
    predicate = check_verdict(x, version)
    seeds = _check_scores(x, version, predicate or {})
    _check_model(x, version)
    with x.checking("version", f"the signature of {beside(version, 'provenance.dsse.json')}", "the run's key made it"):
        content = x.content(version, "provenance.dsse.json")
        statement, by = open_statement(content, SLSA, x.state.keys_of("run")), "the provenance"
        digest = statement.subject_digest("candidate")
        x.index.add(Claim(f"candidate in run {version.run}", digest, by, "version"))
        for one in statement.predicate["runDetails"]["byproducts"]:
            subject = f"record {version.run}/{one['name'].removeprefix('step record ')}.json"
            x.index.add(Claim(subject, "sha256:" + one["digest"]["sha256"], by, "version"))
    _check_registry(x, version)
    return predicate, seeds


def check_verdict(x: Examination, version: Registered) -> dict[str, Any] | None:
    """The verdict that a version was registered with; None where it does not hold."""
    entry, judged, by = x.judged[version.verdict], x.state.verdicts[version.verdict], "the verdict"
    with x.checking("verdict", f"the signature of {beside(version, VERDICT_PATH)}", "the gate's key made it"):
        x.evidence(version, "verdict")
        statement = open_statement(x.content(version, VERDICT_PATH), VERDICT, x.state.keys_of("gate"))
        predicate = statement.predicate
        evaluation = predicate["evaluation"]
        said = {
            "candidate": (statement.subject_digest("candidate"), judged.candidate),
            "incumbent": (evaluation["incumbent"]["digest"], judged.incumbent),
            "decision": (predicate["decision"], judged.decision),
            "policy": (policy_digest(evaluation["terms"], predicate["gate"]), judged.policy),
        }
        for name, (value, _) in said.items():
            x.index.add(Claim(f"{name} in run {judged.run}", str(value), by, "verdict"))
        x.index.add(Claim(f"evaluation in run {judged.run}", digest_json(evaluation), by, "evaluation"))
        pinned = [
            e.body
            for e in x.sources.entries[: entry.index]
            if isinstance(e.body, PolicySet) and e.body.model == judged.model
        ]
        if not pinned or pinned[-1].digest != judged.policy:
            reason = f"the ledger pinned {pinned[-1].digest if pinned else 'none'} then: it can never promote"
            x.note("verdict", "not proven", f"the policy of {beside(version, VERDICT_PATH)}", reason)
        [cells(figure) for figure in (*predicate["figures"], *predicate.get("anchor", ()))]
        if predicate["run"] != judged.run:
            raise LineageError(f"it is of run {predicate['run']}, the ledger says {judged.run}")
        return predicate if all(value == expected for value, expected in said.values()) else None
    return None


def _check_scores(x: Examination, version: Registered, predicate: Mapping[str, Any]) -> Seeds:
    """Scores and samples are those that the verdict was given on; gives each prompt's seeds."""
    said, there = predicate.get("evaluation", {}), x.evidence(version, "scores")
    files = {file: said[name] for name, file in (("scores", TABLE_FILE), ("sets", SETS_FILE)) if name in said}
    x.claim_files("the verdict", version, "evidence/scores", files, there)
    with x.checking("evaluation", beside(version, f"scores/{EVALUATION_FILE}")):
        evaluation = json.loads(x.content(version, f"scores/{EVALUATION_FILE}"))
        x.index.add(
            Claim(f"evaluation in run {version.run}", digest_json(stated(evaluation)), EVALUATION_FILE, "evaluation")
        )
    seeds: dict[str, set[int]] = {}
    good = "one picture for each prompt and seed that was scored"
    with x.checking("evaluation", beside(version, "scores/samples"), good):
        table = BytesIO(x.content(version, f"scores/{TABLE_FILE}", MOST_TABLE))
        scored = set[str]()
        for row in manifest_rows(table, ["model", "prompt", "seed"]):
            seeds.setdefault(row["prompt"], set()).add(row["seed"])
            scored.add(f"samples/{row['model']}/{row['prompt']}-{row['seed']}.png")
        samples = {name for name in there if name.startswith("samples/") and name.endswith(".png")}
        if said.get("unusable"):
            return {}  # nothing was scored, whatever was drawn before that
        if scored - samples:
            raise GoneError(f"scored and not there: {', '.join(sorted(scored - samples)[:NAMED])}")
        if samples - scored:
            raise LineageError(f"there and never scored: {', '.join(sorted(samples - scored)[:NAMED])}")
    return {prompt: tuple(sorted(found)) for prompt, found in sorted(seeds.items())}


def _check_model(x: Examination, version: Registered) -> None:
    """The model folder and the weights in it are those that were registered, judged, and signed."""
    files = x.model_files(version)
    there = {one.name.removeprefix(f"{WEIGHTS_FOLDER}/"): one for one in files if one.name.startswith(WEIGHTS_FOLDER)}
    if there:
        x.index.add(Claim(f"the weights of {called(version)}", weights_digest(files), STORE, "weights"))
        x.index.add(Claim(f"the model folder of {called(version)}", folder_digest(files), STORE, "weights"))
        for name, one in there.items():
            x.index.add(Claim(f"weights/{name} of {called(version)}", one.digest, STORE, "weights"))
    else:
        x.note("weights", "missing", f"the weights of {called(version)}", "they are not in the artifact store")
    subject = f"the signature of {beside(version, 'model.sig')}"
    with x.checking("weights", subject, "the run's key signed these files"):
        if "model.sig" not in version.evidence:
            raise UnprovenError("the weights were not signed: the run's key was not in a file")
        signed = signed_files(x.content(version, "model.sig"), x.state.keys_of("run"))
        x.claim_files("model.sig", version, "weights", signed, there)
    with x.checking("version", beside(version, "bom.cdx.json")):
        listed = json.loads(x.content(version, "bom.cdx.json"))["metadata"]["component"].get("components", [])
        digests = {one["name"]: "sha256:" + one["hashes"][0]["content"] for one in listed}
        x.claim_files("the bill of materials", version, "weights", digests, there)
        for name in there.keys() - digests.keys():
            x.note("weights", "does not hold", f"weights/{name} of {called(version)}", "it was added")
    with x.checking("version", beside(version, "croissant.json")):
        files = json.loads(x.content(version, "croissant.json"))["distribution"]
        digests = {
            one["contentUrl"].removeprefix("validated/"): "sha256:" + one["sha256"] for one in files if "sha256" in one
        }
        x.claim_files("croissant.json", version, "evidence/validated", digests, x.evidence(version, "validated"))


def _check_registry(x: Examination, version: Registered) -> None:
    """The registry's version, tags and champion agree with the ledger."""
    name, model = f"{called(version)} in the registry", version.model

    def compare(subject: str, said: str, shown: str, part: Part = "version") -> None:
        x.index.add(Claim(subject, said, LEDGER, part), Claim(subject, shown, "the registry", part))

    with x.checking("version", name, "it is there"):
        stored = x.stored(version)
        compare(f"the MLflow run of {name}", version.mlflow_run, stored.mlflow_run)
        for tag, said in tags_of(x.state, model, version.version).items():
            compare(f"tag {tag} of {name}", said, stored.tags.get(tag, ""))
    with x.checking("moves", f"alias {CHAMPION} of {model}"):
        champion = x.state.champion(model)
        holder = x.registry(model).client.get_registered_model(model).aliases.get(CHAMPION, "")
        compare(
            f"alias {CHAMPION} of {model}",
            f"version {champion.version}" if champion else "",
            f"version {holder}" if holder else "",
            "moves",
        )
