"""Register: every judged candidate becomes a version of the registered model, with all its evidence."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from components.register.model_folder import write_model_folder
from lineage.digests import LineageError, digest_path, short
from lineage.documents.bom import ml_bom
from lineage.documents.candidate import Candidate
from lineage.documents.croissant import croissant
from lineage.documents.model_card import figures_table, model_card
from lineage.documents.model_signature import sign_model
from lineage.documents.provenance import provenance
from lineage.entries import Registered
from lineage.keys import evaluation_key
from lineage.records import RunContext, check_records
from lineage.registry import EVIDENCE_FOLDER, Registry, RegistrySettings, Version
from lineage.signing import SCHEME
from lineage.statements import VERDICT, VERDICT_FILE, read_statement, write_statement

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

DESCRIPTION_LIMIT = 5000
"""Characters that MLflow's databases keep of a description."""


def register_candidate(
    context: RunContext,
    settings: RegistrySettings,
    mlflow_run: str,
    artifacts: Mapping[str, Path],
    keys: Mapping[str, str],
) -> tuple[Version, Registered]:
    """Store the candidate with its verdict and evidence; the decision does not matter, a rejected one is kept too.

    Args:
        artifacts: name -> what the steps before made: ``candidate``, ``verdict``, ``validated`` (the rows trained
            on), and whatever else to keep beside them.
        keys: ``snapshot``, ``training_key``, ``evaluation_terms`` of the plan.

    Returns:
        The version, the one already there where this run registered before, and what the ledger is to say of it.

    Raises:
        LineageError: the verdict is about other weights or not signed by the gate, or no step gave the candidate.
    """
    verdict = artifacts["verdict"] / VERDICT_FILE
    statement = read_statement(verdict, VERDICT, context.open_ledger().state.verdict_keys())
    candidate = Candidate(
        model_name=settings.model_name,
        run=context.id,
        weights=artifacts["candidate"],
        digest=digest_path(artifacts["candidate"]),
        manifest=artifacts["validated"] / "manifest.parquet",
        records=check_records(context, {name: digest_path(path) for name, path in artifacts.items()}),
        verdict=statement,
        license=settings.license,
    )
    if statement.subject_digest("candidate") != candidate.digest:
        raise LineageError(
            f"the verdict is about {statement.subject_digest('candidate')}, the candidate is {candidate.digest}"
        )
    tags = _tags(candidate, digest_path(verdict), keys)
    store = Registry(context.tracking_uri, settings.model_name, settings.artifacts)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        version = store.version_of(mlflow_run)
        if version is None:
            evidence = _evidence(candidate, artifacts, scratch / "documents", context)
            version = _store(store, mlflow_run, candidate, evidence, tags, scratch / "model")
        else:
            evidence = {path.name: path for path in store.fetch_evidence(mlflow_run, scratch).iterdir()}
        return version, Registered(
            run=context.id,
            model=settings.model_name,
            version=version.number,
            candidate=candidate.digest,
            verdict=tags["verdict"],
            training_key=tags["training_key"],
            evaluation_key=tags["evaluation_key"],
            mlflow_run=mlflow_run,
            evidence={name: digest_path(path) for name, path in sorted(evidence.items())},
        )


def _tags(candidate: Candidate, verdict: str, keys: Mapping[str, str]) -> dict[str, str]:
    incumbent = candidate.evaluation["incumbent"]["digest"]
    return {
        "candidate": candidate.digest,
        "incumbent": incumbent,
        "decision": candidate.verdict.predicate["decision"],
        "verdict": verdict,
        "snapshot": keys["snapshot"],
        "training_key": keys["training_key"],
        "evaluation_key": evaluation_key(candidate.digest, incumbent, keys["evaluation_terms"]),
    }


def _evidence(
    candidate: Candidate, artifacts: Mapping[str, Path], documents: Path, context: RunContext
) -> dict[str, Path]:
    """Name -> file or folder of everything that is stored beside the weights."""
    write_documents(candidate, documents, context.signer("run"))
    if key := _key_file(context.keys["run"]):
        sign_model(candidate.weights, key, documents / "model.sig")
    beside = {name if path.is_dir() else path.name: path for name, path in artifacts.items() if name != "candidate"}
    return {**beside, **{path.name: path for path in documents.iterdir()}}


def _store(
    store: Registry,
    mlflow_run: str,
    candidate: Candidate,
    evidence: Mapping[str, Path],
    tags: Mapping[str, str],
    folder: Path,
) -> Version:
    sampling = candidate.evaluation.get("sampling", {})
    write_model_folder(folder, candidate.model_name, candidate.digest, sampling, candidate.ended)
    for figure in candidate.figures:
        for part in ("incumbent", "candidate", "difference", "lower", "upper"):
            name = f"gate/{figure['name']}/{part}"
            store.client.log_metric(mlflow_run, name.replace(" ", "_"), figure[part])
    return store.register(mlflow_run, candidate.weights, folder, evidence, tags, describe(candidate, mlflow_run))


def _key_file(uri: str) -> Path | None:
    """A private key's file; None where it lies in a key service, which `model_signing` cannot ask."""
    return Path(uri.removeprefix(SCHEME)) if uri.startswith(SCHEME) else None


def write_documents(candidate: Candidate, target: Path, signer: Signer) -> None:
    """Write what other tools read about ``candidate``, and the records it rests on, into the folder ``target``."""
    (target / "records").mkdir(parents=True)
    stated = provenance(candidate.run, candidate.records, candidate.digest)
    write_statement(stated, target / "provenance.dsse.json", signer)
    (target / "bom.cdx.json").write_text(ml_bom(candidate), "utf-8")
    described = croissant(candidate, "validated/manifest.parquet")
    (target / "croissant.json").write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (target / "README.md").write_text(model_card(candidate), "utf-8")
    for step, record in candidate.records.items():
        (target / "records" / f"{step}.json").write_text(record.model_dump_json(indent=2), "utf-8")


def describe(candidate: Candidate, mlflow_run: str) -> str:
    """The verdict as Markdown, with its pictures, for the page of the model version."""
    predicate = candidate.verdict.predicate
    links = " · ".join(f"[{name}]({_artifact(mlflow_run, path)})" for name, path in DOCUMENTS.items())
    lines = [
        f"**{predicate['decision']}** against `{short(predicate['evaluation']['incumbent']['digest'])}`",
        "",
        *(f"- {reason}" for reason in predicate["reasons"]),
        "",
        f"Evidence: {links}",
        "",
        f"![the three axes]({_artifact(mlflow_run, 'verdict/pareto.png')})",
        "",
    ]
    if candidate.figures:
        lines += [f"![samples]({_artifact(mlflow_run, 'scores/grid.png')})", "", figures_table(candidate.figures)]
    if candidate.anchor:
        lines += ["", "Against the last approved version:", "", figures_table(candidate.anchor, "approved")]
    return "\n".join(lines)[:DESCRIPTION_LIMIT]


DOCUMENTS = {
    "verdict": f"verdict/{VERDICT_FILE}",
    "model card": "README.md",
    "provenance": "provenance.dsse.json",
    "bill of materials": "bom.cdx.json",
    "data": "croissant.json",
    "data report": "validated/report.html",
}


def _artifact(mlflow_run: str, path: str) -> str:
    """Where MLflow's server gives a file of the evidence, relative to its page."""
    return "get-artifact?" + urlencode({"path": f"{EVIDENCE_FOLDER}/{path}", "run_uuid": mlflow_run}, safe="/")


def summary(version: Version) -> dict[str, Any]:
    """What the record keeps of a registered version."""
    return {"version": version.number, "name": version.name, "tags": dict(version.tags)}
