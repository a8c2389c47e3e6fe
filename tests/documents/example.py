"""A small judged candidate with everything that a run leaves about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from model_signing import verifying

from components.fine_tune.installed import installed
from components.register.documents.candidate import Candidate
from lineage.digests import TREE, digest_bytes, digest_path, hex_of
from lineage.records import StepRecord
from lineage.statements import VERDICT, Statement, make_statement

RUN = "retraining-1"
SNAPSHOT, METADATA = digest_bytes(b"snapshot"), digest_bytes(b"metadata")
BASE, TEACHER, FEATURES, SET = (
    TREE + hex_of(digest_bytes(name)) for name in (b"base", b"teacher", b"features", b"set")
)
"""Of folders."""
SAMPLING = {"num_inference_steps": 2, "guidance_scale": 3.0, "max_sequence_length": 1, "height": 32, "width": 32}


def weights(folder: Path, name: str = "candidate") -> Path:
    path = folder / name
    (path / "transformer").mkdir(parents=True)
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}\n')
    (path / "transformer" / "weights.safetensors").write_text(name)
    return path


def verify_model(weights: Path, public: Path, signature: Path) -> None:
    """As ``model_signing verify key`` does."""
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(weights, signature)  # type: ignore[no-untyped-call]


def validated(folder: Path) -> Path:
    path = folder / "validated"
    path.mkdir(exist_ok=True)
    rows = [
        {
            "file_name": f"sub/{i}.png",
            "sha256": digest_bytes(str(i).encode()),
            "bytes": 10 + i,
            "text": f"a portrait, “{i}”, glasses",
            "license": (None, "CC0-1.0", "an artist's own words: free for all")[i],
            "consent": "generated" if i else None,
            "source": "drawn",
            "split": "train",
            "uri": f"file:///data/sub/{i}.png",
            "phash": f"{i:016x}",
        }
        for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path / "manifest.parquet")
    return path


def hold_out(manifest: Path, place: int) -> None:
    """Let one row of a manifest be for validation."""
    rows = pq.read_table(manifest).to_pylist()
    rows[place]["split"] = "validation"
    pq.write_table(pa.Table.from_pylist(rows), manifest)


def verdict(candidate: str, incumbent: str = BASE, decision: str = "promote") -> Statement:
    figure: dict[str, Any] = {
        "name": "alignment",
        "measure": "alignment",
        "kind": "axis",
        "prompts": 40,
        "incumbent": 0.8,
        "candidate": 0.9,
        "difference": 0.1,
        "lower": 0.08,
        "upper": 0.12,
        "lower_gain": 0.07,
        "upper_loss": 0.13,
        "margin": 0.02,
        "detectable": 0.01,
    }
    predicate = {
        "run": RUN,
        "decision": decision,
        "reasons": ["because"],
        "figures": [figure, {**figure, "name": "no glasses asked", "kind": "slice", "measure": "alignment/glasses"}],
        "evaluation": {
            "evaluation_set": {"name": "avatars", "version": "1", "digest": SET},
            "sampling": SAMPLING,
            "scorers": [{"name": "avatars-alignment", "axis": "alignment", "digest": digest_bytes(b"scorer")}],
            "candidate": {"digest": candidate},
            "incumbent": {"digest": incumbent},
            "scores": digest_bytes(b"scores"),
        },
        "gate": {},
    }
    return make_statement(VERDICT, {"candidate": candidate}, predicate)


def invalid(candidate: str) -> Statement:
    """A verdict on scores that could not be used: it has no figures."""
    made = verdict(candidate, decision="invalid")
    return make_statement(VERDICT, {"candidate": candidate}, {**made.predicate, "figures": []})


def record(step: str, second: int, **more: Any) -> StepRecord:
    """The record of a step that began ``second`` seconds after midnight."""
    common: dict[str, Any] = {
        "run": RUN,
        "step": step,
        "status": "complete",
        "started": f"2026-01-02T00:00:{second:02d}.250+00:00",
        "ended": f"2026-01-02T02:00:{second + 1:02d}.500+02:00",
        "user": "someone",
        "host": {"platform": "Linux", "python": "3.11.7"},
        "commit": "a" * 40,
        "code": digest_bytes(b"code"),
        "packages": digest_bytes(b"packages"),
        "parameters": {"seed": 7.0},
    }
    return StepRecord(**{**common, **more})


def records(candidate: str) -> dict[str, StepRecord]:
    judged = verdict(candidate).predicate
    found = [
        record("snapshot-data", 1, inputs={"metadata": METADATA}, outputs={"snapshot": SNAPSHOT}),
        record("validate-data", 2, inputs={"snapshot": SNAPSHOT}, outputs={"validated": SNAPSHOT}),
        record("encode-features", 3, inputs={"base_model": BASE, "teacher": TEACHER}, outputs={"features": FEATURES}),
        record(
            "fine-tune",
            4,
            inputs={"features": FEATURES},
            outputs={"candidate": candidate},
            facts={"installed": {**installed(), "trained-with": {"version": "1.2", "license": "MIT"}}},
        ),
        record("evaluate", 5, inputs={"candidate": candidate, "incumbent": BASE}, facts=judged["evaluation"]),
        record("gate", 6, facts={k: judged[k] for k in ("decision", "reasons", "figures")}),
    ]
    return {each.step: each for each in found}


def candidate(folder: Path, license: str | None = "Apache-2.0", judged: Statement | None = None) -> Candidate:
    made = weights(folder)
    digest = digest_path(made)
    return Candidate(
        model_name="portraits",
        run=RUN,
        weights=made,
        digest=digest,
        manifest=validated(folder) / "manifest.parquet",
        records=records(digest),
        verdict=judged or verdict(digest),
        license=license,
    )
