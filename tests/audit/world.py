"""A small real world to audit: real pictures, records, ledger, MLflow store and registrations; only no training.

Version 1 was champion and is withdrawn, 2 is champion, 3 was rejected, 4 was trained from 2, and 5 has the weights of
4, judged anew. Picture 5 is refused in every snapshot, 6 is held out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from components.close_run.close import close
from components.fine_tune.installed import installed
from components.gate.gate import VerdictContext, judge
from components.gate.settings import AXES, GateSettings
from components.register.register import create, new_attempt, register_candidate
from components.snapshot_data.settings import DataSettings
from components.snapshot_data.snapshot import take_snapshot
from components.validate_data import quarantine
from components.validate_data.facts import measure_facts, read_manifest
from components.validate_data.settings import ValidationSettings
from lineage.artifacts import WEIGHTS_FOLDER
from lineage.digests import digest_bytes, digest_file, digest_path, manifest_digest
from lineage.embedded import Embedded
from lineage.entries import Body, Entry, Recorded, Registered, entry_digest
from lineage.moves import Mover
from lineage.projection import tags_of
from lineage.records import RunContext, StepRecord, recording
from lineage.registry import Registry, RegistrySettings
from lineage.signing import Role, open_signer, sign_bytes
from pipelines.audit import Report, Sources, audit

MODEL = "portraits"
BASE, TEACHER, SET = (digest_bytes(name) for name in (b"base", b"teacher", b"set"))
HOSTILE = "<script>alert('caption')</script>\x1b[2J"
REASON = "<img src=x onerror=alert(1)> consent taken back"
REFUSED = "width of at least 16 pixels: width is 4"
PROMPTS = 14
TERMS = {"evaluation_set": SET, "limit": PROMPTS}
GATE = GateSettings(
    margins=dict.fromkeys(AXES, 0.2), ranges=dict.fromkeys(AXES, (0.0, 1.0)), alpha=0.49, life=5, minimum_prompts=2
)
SAMPLING = {"num_inference_steps": 2, "guidance_scale": 3.0, "max_sequence_length": 1, "height": 8, "width": 8}


@dataclass
class World:
    """What was made in ``folder``."""

    folder: Path
    candidates: dict[str, str] = field(default_factory=dict)
    """Number of a version -> digest of its weights."""

    @property
    def home(self) -> Embedded:
        return Embedded(self.folder / "lineage")

    @property
    def store(self) -> Registry:
        return Registry(f"sqlite:///{self.folder / 'mlflow.db'}", MODEL)

    @property
    def records(self) -> Path:
        return self.folder / "pipeline" / "records"

    def sources(self, **changes: Any) -> Sources:
        """The evidence, as an auditor would be given it."""
        home = self.home
        given: dict[str, Any] = {
            "entries": home.open("tests").entries(),
            "root": home.root,
            "records": str(self.records),
            "registry": self.store.tracking_uri,
            "model": MODEL,
            "checkpoints": list(home.witness.read()),
        }
        return Sources(**(given | changes))

    def audit(self, what: str, image: bool = False, **changes: Any) -> Report:
        return audit(what, self.sources(**changes), image)

    def registered(self, number: str) -> Registered:
        """What the ledger says of a version."""
        return self.home.open("tests").state.versions[MODEL][number]

    def model(self, number: str) -> Path:
        """Where the model folder of a version lies."""
        found = self.store.version(number)
        assert found
        return Path(found.source.removeprefix("file://"))

    def evidence(self, number: str) -> Path:
        """Where the evidence of a version lies."""
        return self.model(number).parent / "evidence"

    def weights(self, number: str) -> Path:
        return self.model(number) / WEIGHTS_FOLDER

    def mover(self) -> Mover:
        return self.home.mover(self.store, "tests")

    def picture(self, number: int) -> Path:
        return self.folder / "pictures" / f"{number}.png"

    def retrain(
        self,
        run: str,
        pictures: list[int],
        gain: float,
        incumbent: str = BASE,
        base: str = BASE,
        promote: bool = True,
        reused: str = "",
    ) -> str:
        """One run from snapshot to close, as the pipeline does it; gives the version's number."""
        context = self.home.context(run, str(self.records), self.store.tracking_uri, commit="a" * 40)
        scratch = self.folder / "pipeline" / run
        made = {name: scratch / name for name in ("candidate", "validated", "scores", "verdict", "training_record")}
        mlflow_run = self.store.open_run(run)
        snapshot = self._snapshot(context, scratch, pictures, made["validated"])
        with recording(context, "plan", {"force": False}) as record:
            record.input("snapshot", snapshot)
            record.facts["mlflow_run"] = mlflow_run
        self._train(context, made, scratch / "features", base, reused)
        _evaluate(context, made, incumbent, gain)
        with recording(context, "gate", {"alpha": 0.025}) as record:
            record.input("scores", made["scores"])
            signer = context.signer("gate")
            about = VerdictContext(run, self.store.model_name, self.store.tracking_uri, context.open_ledger().state)
            ruling, judged = judge(GATE, made["scores"], made["verdict"], about, signer)
            context.open_ledger().append(judged, signer)
            record.facts |= ruling.model_dump(mode="json")
            record.output("verdict", made["verdict"])
        number = self._register(context, made, mlflow_run)
        with recording(context, "promote", {"version": number}) as record:
            record.input("verdict", made["verdict"])
            record.facts |= {"alias": "champion" if promote else "", "version": number}
            if promote:
                replace(self.mover(), user="a person").move("promote", number)
        close(context, MODEL)
        self.candidates[number] = digest_path(made["candidate"])
        return number

    def _snapshot(self, context: RunContext, scratch: Path, pictures: list[int], validated: Path) -> str:
        source = self.folder / "pictures"
        rows = [_described(number) for number in pictures]
        (source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with recording(context, "snapshot-data", {"source": str(source)}) as record:
            taken = take_snapshot(DataSettings(source=str(source)), scratch / "snapshot")
            record.input("metadata", taken.metadata)
            record.output("snapshot", taken.digest)
        with recording(context, "validate-data", {"suite": "suite"}) as record:
            record.input("snapshot", taken.digest)
            record.output("accepted", _validate(scratch / "snapshot", validated))
            record.output("validated", validated)
            record.output("report", validated / "report.html")
        return taken.digest

    def _train(self, context: RunContext, made: dict[str, Path], features: Path, base: str, reused: str) -> None:
        with recording(context, "encode-features", {"seed": 7}) as record:
            record.input("validated", made["validated"])
            record.input("base_model", base)
            record.input("teacher", TEACHER)
            features.mkdir()
            (features / "features.json").write_text(context.id)
            record.output("features", features)
        with recording(context, "fine-tune", {"seed": 7, "steps": 90}) as record:
            record.input("features", features)
            (made["candidate"] / "transformer").mkdir(parents=True)
            (made["candidate"] / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}\n')
            (made["candidate"] / "transformer" / "weights.safetensors").write_text(reused or context.id)
            made["training_record"].write_text("{}")
            record.facts["installed"] = installed()
            if reused:
                record.facts["reused"] = "models:/portraits/4"
            record.output("candidate", made["candidate"])
            record.output("training", made["training_record"])

    def _register(self, context: RunContext, made: dict[str, Path], mlflow_run: str) -> str:
        settings = RegistrySettings(model_name=MODEL, license="Apache-2.0")
        names = {"candidate": "candidate", "verdict": "verdict", "scores": "scores", "validated": "validated"}
        paths = {name: made[where] for name, where in (names | {"training": "training_record"}).items()}
        keys = {"training_key": f"sha256:{context.id}", "evaluation_terms": "sha256:terms"}
        with recording(context, "register", settings.model_dump()) as record:
            for name, path in paths.items():
                record.input(name, path)
            registered, _ = register_candidate(context, settings, mlflow_run, paths, keys)
            record.facts["version"] = registered.version
        return registered.version


def _described(number: int) -> dict[str, Any]:
    caption = HOSTILE if number == 7 else f"a portrait, number {number}"
    rights = {"license": "CC0-1.0", "consent": "generated"} if number else {"license": "all rights reserved"}
    split = {"split": "validation"} if number == 6 else {}
    return {"file_name": f"{number}.png", "text": caption, "source": "drawn", **rights, **split}


def _validate(snapshot: Path, target: Path) -> str:
    """As step validate-data leaves it, with picture 5 refused."""
    manifest = read_manifest(snapshot)
    names = manifest["file_name"].to_pylist()
    keep = [name != "5.png" for name in names]
    target.mkdir()
    accepted = manifest.filter(pa.array(keep))
    findings = [
        {"row": row, "file_name": name, "expectation": "width", "value": "4", "reason": REFUSED}
        for row, name in enumerate(names)
        if not keep[row]
    ]
    pq.write_table(accepted, target / "manifest.parquet")
    facts = measure_facts(manifest, ValidationSettings(suite="none", faces=False))
    pq.write_table(facts, target / "facts.parquet")
    pq.write_table(pa.Table.from_pylist(findings, quarantine.SCHEMA), target / "quarantine.parquet")
    (target / "report.html").write_text("<p>report</p>")
    return manifest_digest(accepted.to_pylist())


def _evaluate(context: RunContext, made: dict[str, Path], incumbent: str, gain: float) -> None:
    scores, candidate = made["scores"], digest_path(made["candidate"])
    rows: list[dict[str, Any]] = []
    for shade, (who, better) in enumerate((("candidate", gain), ("incumbent", 0.0))):
        (scores / "samples" / who).mkdir(parents=True)
        for prompt in range(PROMPTS):
            colour = (18 * prompt, 90 * shade, sum(context.id.encode()) % 256)
            Image.new("RGB", (8, 8), colour).save(scores / "samples" / who / f"p{prompt}-7.png")
            rows += [
                {"prompt": f"p{prompt}", "seed": 7, "model": who, "measure": axis, "value": 0.5 + better + prompt / 100}
                for axis in AXES
            ]
    with recording(context, "evaluate", {"limit": PROMPTS}) as record:
        record.input("candidate", candidate)
        record.input("incumbent", incumbent)
        pd.DataFrame(rows).to_parquet(scores / "scores.parquet", index=False)
        Image.new("RGB", (320, 80), (90, 140, 120)).save(scores / "grid.png")
        facts = {
            "evaluation_set": {
                "name": "avatars",
                "version": 1,
                "digest": SET,
                "prompts": {f"p{prompt}": {"glasses": True} for prompt in range(PROMPTS)},
                "seeds": {f"p{prompt}": [7] for prompt in range(PROMPTS)},
            },
            "terms": TERMS,
            "sampling": SAMPLING,
            "scorers": [
                {"name": f"scorer {axis}", "axis": axis, "digest": digest_bytes(axis.encode())} for axis in AXES
            ],
            "scores": digest_file(scores / "scores.parquet"),
            "candidate": {"digest": candidate},
            "incumbent": {"digest": incumbent},
        }
        (scores / "evaluation.json").write_text(json.dumps(facts))
        record.facts |= facts
        record.output("scores", scores)


def draw_pictures(folder: Path) -> None:
    """Ten small pictures, one of them too narrow."""
    folder.mkdir(parents=True)
    for number in range(10):
        size = (4, 16) if number == 5 else (16, 16)
        Image.new("RGB", size, (20 * number, 255 - 20 * number, 120)).save(folder / f"{number}.png")
    # Not alike the others, who would be held out with it.
    Image.radial_gradient("L").resize((16, 16)).convert("RGB").save(folder / "6.png")


def build(folder: Path) -> World:
    """The world that this module describes."""
    world = World(folder)
    draw_pictures(folder / "pictures")
    world.home.open("tests")
    world.home.set_policy(MODEL, TERMS, GATE.model_dump(mode="json"), "for tests")
    world.retrain("run-1", [0, 1, 2, 5], 0.3)
    first = world.candidates["1"]
    world.retrain("run-2", [1, 2, 3, 5, 7], 0.3, incumbent=first)
    second = world.candidates["2"]
    world.retrain("run-3", [2, 5, 6, 8], -0.4, incumbent=second, promote=False)
    world.retrain("run-4", [4, 5], 0.0, incumbent=second, base=second, promote=False)
    world.retrain("run-5", [4, 5], 0.0, incumbent=second, base=second, promote=False, reused="run-4")
    replace(world.mover(), user="the owner").move("withdraw", "1", REASON)
    return world


@contextmanager
def changed(path: Path, content: bytes | None) -> Iterator[None]:
    """A file with other content, or gone, as long as the block lasts."""
    before = path.read_bytes() if path.exists() else None
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


@contextmanager
def lying(world: World, step: str, lie: Callable[[StepRecord], None], run: str = "run-2") -> Iterator[list[Entry]]:
    """A step's record rewritten by a holder of the run key; gives a ledger that names it, in an export."""
    path = world.records / run / f"{step}.json"
    record = StepRecord.model_validate_json(path.read_bytes())
    lie(record)
    said = Recorded(run=run, step=step, status="complete", record=record.digest())
    with changed(path, record.model_dump_json().encode()):
        yield written_on(world, said, "run")


def written_on(world: World, body: Body, role: Role) -> list[Entry]:
    """The ledger with one entry more, which is not written into it."""
    entries, signer = world.home.open("tests").entries(), open_signer(world.home.uri(role))
    made = {"ledger": entries[0].ledger, "index": len(entries), "previous": entry_digest(entries[-1])}
    entry = Entry.model_validate({**made, "time": entries[-1].time, "body": body, "key": signer.public_key.keyid})
    return [*entries, entry.model_copy(update={"signature": sign_bytes(entry.signed_bytes(), signer)})]


def registered_with(
    world: World, change: Callable[[Path], object], number: str = "2", about: Mapping[str, str] | None = None
) -> str:
    """A version registered by a dishonest holder of the run key: as another one, but with evidence that he changed.

    Args:
        about: what else he says of it.
    """
    store, before = world.store, world.registered(number)
    folder = world.model(number).parent.with_name(new_attempt())
    copytree(world.model(number).parent, folder)
    change(folder / "evidence")
    made = create(store, before.mlflow_run, (folder / "model").as_uri(), {}, "").number
    evidence = {name: digest_path(folder / "evidence" / name) for name in before.evidence}
    said = before.model_copy(update={"version": made, "evidence": evidence, **(about or {})})
    world.home.open("tests").append(said, open_signer(world.home.uri("run")))
    found = store.version(made)
    assert found
    store.tag(found, tags_of(world.home.open("tests").state, MODEL, made))
    return made
