"""Register: every judged candidate becomes a version of the registered model, with all its evidence."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from components.register.documents.bom import ml_bom
from components.register.documents.candidate import Candidate
from components.register.documents.model_card import model_card
from components.register.documents.provenance import provenance
from components.register.model_folder import write_model_folder
from lineage.artifacts import WEIGHTS_FOLDER, digest_of, folder_digest, listing
from lineage.croissant import describe_manifest
from lineage.digests import LineageError, digest_path, short
from lineage.entries import Judged, Registered
from lineage.figures import figures_table, metrics
from lineage.projection import registration_tags
from lineage.records import RunContext, check_records
from lineage.registry import EVIDENCE_FOLDER, TAG, Registry, RegistrySettings, Version
from lineage.signing import SCHEME
from lineage.statements import VERDICT, VERDICT_FILE, read_statement, write_statement

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

ATTEMPT = "candidate-"
"""Begins the name of the folder that holds a version's files; each attempt to register has its own."""
MODEL_FOLDER = "model"
DESCRIPTION_LIMIT = 5000
"""Characters that MLflow's databases keep of a description."""


def register_candidate(
    context: RunContext,
    settings: RegistrySettings,
    mlflow_run: str,
    artifacts: Mapping[str, Path],
    keys: Mapping[str, str],
) -> tuple[Registered, Judged]:
    """Store the candidate with its verdict and evidence; the decision does not matter, a rejected one is kept too.

    Every digest that the ledger gets is taken here, before anything is uploaded; nothing is believed that the store
    holds already. A step that is repeated finds its registration in the ledger.

    Args:
        artifacts: name -> what the steps before made: ``candidate``, ``verdict``, ``validated`` (the rows trained
            on), and whatever else to keep beside them.
        keys: ``training_key`` and ``evaluation_terms`` of the plan.

    Returns:
        The registration, which is in the ledger, and the verdict that it rests on.

    Raises:
        LineageError: the verdict is about other weights or not signed by the gate, or no step gave the candidate.
    """
    candidate = _candidate(context, settings, artifacts)
    state = context.open_ledger().state
    known = state.versions.get(settings.model_name, {})
    judged = state.verdicts.get(digest_path(artifacts["verdict"] / VERDICT_FILE))
    if judged is None:
        raise LineageError(f"the ledger does not know the verdict of run {context.id}; run the gate again")
    for registered in known.values():
        if registered.run == context.id and registered.candidate == candidate.digest:
            return registered, judged
    store = Registry(context.tracking_uri, settings.model_name, settings.artifacts)
    delete_leftovers(store, mlflow_run, known)
    with tempfile.TemporaryDirectory() as scratch:
        folder, attempt = Path(scratch) / "model", new_attempt()
        evidence = _evidence(candidate, artifacts, Path(scratch) / "documents", context)
        registered = Registered(
            run=context.id,
            model=store.model_name,
            version="",
            candidate=candidate.digest,
            folder=_model_folder(candidate, folder),
            verdict=judged.verdict,
            training_key=keys["training_key"],
            evaluation_terms=keys["evaluation_terms"],
            mlflow_run=mlflow_run,
            evidence={name: digest_path(path) for name, path in sorted(evidence.items())},
        )
        for name, value in metrics(candidate.figures).items():
            store.client.log_metric(mlflow_run, name, value)
        source = upload(store, mlflow_run, folder, candidate.weights, evidence, attempt)
    tags, description = registration_tags(registered, judged), describe(candidate, mlflow_run, attempt)
    version = create(store, mlflow_run, source, tags, description).number
    for tag, said in {"decision": judged.decision, "version": version}.items():
        store.client.set_tag(mlflow_run, f"{TAG}{tag}", said)
    registered = registered.model_copy(update={"version": version})
    context.open_ledger().append(registered, context.signer("run"))
    return registered, judged


def _candidate(context: RunContext, settings: RegistrySettings, artifacts: Mapping[str, Path]) -> Candidate:
    digests = {name: digest_path(path) for name, path in artifacts.items()}
    records, keys = check_records(context, digests), context.open_ledger().state.keys_of("gate")
    statement = read_statement(artifacts["verdict"] / VERDICT_FILE, VERDICT, keys)
    if statement.subject_digest("candidate") != digests["candidate"]:
        raise LineageError(
            f"the verdict is about {statement.subject_digest('candidate')}, the candidate is {digests['candidate']}"
        )
    return Candidate(
        model_name=settings.model_name,
        run=context.id,
        weights=artifacts["candidate"],
        digest=digests["candidate"],
        manifest=artifacts["validated"] / "manifest.parquet",
        records=records,
        verdict=statement,
        license=settings.license,
    )


def _model_folder(candidate: Candidate, folder: Path) -> str:
    """Write the model folder around the weights; gives the digest of both together."""
    sampling, precision = candidate.evaluation.get("sampling", {}), candidate.precision
    about = (candidate.model_name, candidate.digest, sampling, candidate.ended, candidate.installed, precision)
    write_model_folder(folder, *about)
    around, weights = listing(folder), listing(candidate.weights)
    if digest_of(weights) != candidate.digest:
        raise LineageError(f"the candidate at {candidate.weights} changed while it was registered; run again")
    return folder_digest(sorted([*around, *(one._replace(name=f"{WEIGHTS_FOLDER}/{one.name}") for one in weights)]))


def _evidence(
    candidate: Candidate, artifacts: Mapping[str, Path], documents: Path, context: RunContext
) -> dict[str, Path]:
    """Name -> file or folder of everything that is stored beside the weights."""
    write_documents(candidate, documents, context.signer("run"))
    if (key := context.keys["run"]).startswith(SCHEME):  # `model_signing` cannot ask a key service
        sign_model(candidate.weights, Path(key.removeprefix(SCHEME)), documents / "model.sig")
    beside = {name if path.is_dir() else path.name: path for name, path in artifacts.items() if name != "candidate"}
    return {**beside, **{path.name: path for path in documents.iterdir()}}


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


def croissant(candidate: Candidate, place: str) -> dict[str, Any]:
    """The JSON-LD of the rows that a candidate was trained on, for a reader who finds them at the path ``place``."""
    digest = candidate.data_digest
    description = (
        f"The data with digest {digest}, on which run {candidate.run} fine-tuned {candidate.model_name}: "
        f"{candidate.images()}. Rows whose split is not train were not trained on."
    )
    name = f"{candidate.model_name}-training-data"
    return describe_manifest(candidate.manifest, place, digest, name, description, candidate.ended, held_out=False)


def sign_model(weights: Path, key: Path, signature: Path) -> None:
    """Sign every file of ``weights`` with an unencrypted PEM private key (ECDSA P-256) and write ``signature``.

    Files of git, such as ``.gitignore``, are left out, as the command line does by default.

    Raises:
        LineageError: the key does not serve, or the weights hold a link or something else that cannot be signed.
    """
    from model_signing import signing

    try:
        signer = signing.Config()  # type: ignore[no-untyped-call]
        signer.use_elliptic_key_signer(private_key=key).sign(weights, signature)
    except (OSError, ValueError, TypeError) as error:
        raise LineageError(f"the weights at {weights} cannot be signed with {key}: {error}") from error


def describe(candidate: Candidate, mlflow_run: str, attempt: str) -> str:
    """The verdict as Markdown, with its pictures, for the page of the model version.

    Args:
        attempt: the folder of the MLflow run's artifacts that holds the version's files.
    """

    def link(path: str) -> str:
        place = f"{attempt}/{EVIDENCE_FOLDER}/{path}"
        return "get-artifact?" + urlencode({"path": place, "run_uuid": mlflow_run}, safe="/")

    predicate = candidate.verdict.predicate
    links = " · ".join(f"[{name}]({link(path)})" for name, path in DOCUMENTS.items())
    lines = [
        # The list of versions shows the first line as plain text.
        f"{predicate['decision']}: {'; '.join(predicate['reasons'])}",
        "",
        f"Against {short(predicate['evaluation']['incumbent']['digest'])}.",
        "",
        f"Evidence: {links}",
        "",
        f"![the three axes]({link('verdict/pareto.png')})",
        "",
    ]
    if candidate.figures:
        lines += [f"![samples]({link('scores/grid.png')})", "", figures_table(candidate.figures)]
    if candidate.anchor:
        lines += ["", "Against the anchor:", "", figures_table(candidate.anchor, "anchor")]
    return "\n".join(lines)[:DESCRIPTION_LIMIT]


DOCUMENTS = {
    "verdict": f"verdict/{VERDICT_FILE}",
    "model card": "README.md",
    "provenance": "provenance.dsse.json",
    "bill of materials": "bom.cdx.json",
    "data": "croissant.json",
    "data report": "validated/report.html",
}


def new_attempt() -> str:
    """A fresh name for the folder of a version's files, which nobody can know beforehand."""
    return f"{ATTEMPT}{secrets.token_hex(8)}"


def upload(
    store: Registry, mlflow_run: str, folder: Path, weights: Path, evidence: Mapping[str, Path], attempt: str
) -> str:
    """Store a candidate's files in a fresh folder of an MLflow run; gives the URI of its model folder.

    Args:
        folder: an MLflow model folder without its weights, which are stored in its `WEIGHTS_FOLDER`.
        evidence: name -> a file of that name, or a folder.
        attempt: name of the fresh folder, of `new_attempt`.
    """
    store.client.log_artifacts(mlflow_run, str(folder), f"{attempt}/{MODEL_FOLDER}")
    store.client.log_artifacts(mlflow_run, str(weights), f"{attempt}/{MODEL_FOLDER}/{WEIGHTS_FOLDER}")
    for name, path in evidence.items():
        if path.is_dir():
            store.client.log_artifacts(mlflow_run, str(path), f"{attempt}/{EVIDENCE_FOLDER}/{name}")
        else:
            store.client.log_artifact(mlflow_run, str(path), f"{attempt}/{EVIDENCE_FOLDER}")
    return f"{store.client.get_run(mlflow_run).info.artifact_uri}/{attempt}/{MODEL_FOLDER}"


def create(store: Registry, mlflow_run: str, source: str, tags: Mapping[str, str], description: str) -> Version:
    """Make a new version of the model folder at ``source``."""
    if not store.client.search_registered_models(f"name = '{store.model_name}'"):
        store.client.create_registered_model(store.model_name)
    made = store.client.create_model_version(
        store.model_name,
        source,
        run_id=mlflow_run,
        tags={f"{TAG}{name}": value for name, value in tags.items()},
        description=description,
    )
    return store.read(made, {})


def delete_leftovers(store: Registry, mlflow_run: str, known: Collection[str]) -> None:
    """Delete versions of an MLflow run that are not ``known``: of attempts that died, or strangers'."""
    for version in store.versions():
        if version.mlflow_run == mlflow_run and version.number not in known:
            store.client.delete_model_version(store.model_name, version.number)
