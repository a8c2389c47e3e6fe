"""The registry on a real MLflow store (SQLite and local files), with a real ledger."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography.hazmat.primitives import serialization as pem
from moto.server import ThreadedMotoServer
from pydantic import ValidationError

from components.close_run.close import close, unclosed
from components.fine_tune.installed import installed
from components.plan.overview import log_dataset
from components.plan.plan import Plan, Sections, make_plan, plan_run, take_lease
from components.register.documents.candidate import Candidate
from components.register.register import DESCRIPTION_LIMIT, describe, register_candidate, upload
from lineage.artifacts import fetch_weights, folder_digest, listing, weights_digest
from lineage.digests import LineageError, digest_path
from lineage.embedded import Embedded
from lineage.entries import Judged, Registered
from lineage.projection import tags_of
from lineage.records import RunContext, recording
from lineage.registry import Registry, RegistrySettings
from lineage.signing import read_public
from lineage.statements import SLSA, VERDICT_FILE, read_statement, write_statement
from tests.documents import example
from tests.runs import run_context

SETTINGS = RegistrySettings(model_name="portraits", license="Apache-2.0")
KEYS = {"snapshot": example.SNAPSHOT, "training_key": "sha256:t", "evaluation_terms": "sha256:e"}


@dataclass
class Run:
    """A run up to the gate, ready to register."""

    context: RunContext
    store: Registry
    mlflow_run: str
    artifacts: dict[str, Path]

    @property
    def candidate(self) -> Path:
        return self.artifacts["candidate"]

    def register(self, settings: RegistrySettings = SETTINGS, keys: dict[str, str] = KEYS) -> Registered:
        return register_candidate(self.context, settings, self.mlflow_run, self.artifacts, keys)[0]

    def evidence(self) -> Path:
        """The folder of the last version's evidence, in the store."""
        return Path(self.store.versions()[-1].evidence.removeprefix("file://"))


def prepare(
    folder: Path,
    migrated: bytes,
    candidate: Path,
    decision: str = "promote",
    incumbent: str = example.BASE,
    artifacts: str | None = None,
) -> Run:
    (folder / "mlflow.db").write_bytes(migrated)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    context, store = run_context(folder, example.RUN, uri), Registry(uri, "portraits", artifacts)
    digest = digest_path(candidate)
    with recording(context, "fine-tune", {"seed": 7}) as record:
        record.input("base_model", example.BASE)
        record.facts["installed"] = installed()
        record.output("candidate", candidate)
        (folder / "training_record").write_text("{}")
        record.output("training", folder / "training_record")
    verdict, scores = folder / "verdict", folder / "scores"
    for path in (verdict, scores):
        path.mkdir()
    statement = example.verdict(digest, incumbent, decision)
    envelope = write_statement(statement, verdict / VERDICT_FILE, context.signer("gate"))
    (verdict / "pareto.png").write_bytes(b"picture")
    (scores / "grid.png").write_bytes(b"picture")
    validated = example.validated(folder)
    given = {"validate-data": {"validated": validated}, "evaluate": {"scores": scores}, "gate": {"verdict": verdict}}
    for step, outputs in given.items():
        with recording(context, step, {}) as record:
            for name, path in outputs.items():
                record.output(name, path)
    said = {"model": "portraits", "evaluation": example.SET, "policy": "sha256:p"}
    judged = Judged(run=example.RUN, candidate=digest, incumbent=incumbent, decision=decision, verdict=envelope, **said)
    context.open_ledger().append(judged, context.signer("gate"))
    paths = {"candidate": candidate, "verdict": verdict, "scores": scores, "training": folder / "training_record"}
    return Run(context, store, store.open_run(example.RUN), {**paths, "validated": validated})


@pytest.fixture
def run(tmp_path: Path, migrated: bytes) -> Run:
    return prepare(tmp_path, migrated, example.weights(tmp_path))


def test_the_weights_come_out_as_they_went_in(run: Run, tmp_path: Path) -> None:
    uri, digest = f"models:/portraits/{run.register().version}", digest_path(run.candidate)
    fetched = fetch_weights(run.store.tracking_uri, uri, digest, tmp_path / "fetched")
    assert digest_path(fetched) == digest
    next((tmp_path / "artifacts").rglob("weights.safetensors")).write_text("swapped")
    with pytest.raises(LineageError, match="they were changed after they were recorded"):
        fetch_weights(run.store.tracking_uri, uri, digest, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_version_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(LineageError, match=r"models:/portraits/9 is not in the registry"):
        fetch_weights(run.store.tracking_uri, "models:/portraits/9", "sha256:0", tmp_path / "fetched")


def test_all_its_evidence_is_stored_and_named_by_digest(run: Run) -> None:
    registered = run.register()
    assert {path.name: digest_path(path) for path in run.evidence().iterdir()} == registered.evidence
    assert registered.evidence.keys() == {
        *("verdict", "scores", "validated", "training_record", "records"),
        *("provenance.dsse.json", "bom.cdx.json", "croissant.json", "README.md", "model.sig"),
    }
    assert run.context.open_ledger().refresh().registered("portraits", registered.version) == registered


def test_the_whole_model_folder_is_named_by_digest_and_brings_no_code(run: Run) -> None:
    registered = run.register()
    folder = Path(run.store.versions()[-1].source.removeprefix("file://"))
    files = listing(folder)
    assert folder_digest(files) == registered.folder
    assert weights_digest(files) == registered.candidate
    assert not [file.name for file in files if file.name.endswith((".py", ".pkl"))]


def test_provenance_and_weights_are_signed_with_the_run_key(run: Run, tmp_path: Path) -> None:
    run.register()
    stored = run.evidence()
    key = read_public(Path(run.context.keys["run"].removeprefix("file2:")).with_suffix(".pub"))
    provenance = read_statement(stored / "provenance.dsse.json", SLSA, [key])
    assert provenance.subject_digest("candidate") == digest_path(run.candidate)
    public = tmp_path / "run.pub.pem"
    spki = pem.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key._crypto_key().public_bytes(pem.Encoding.PEM, spki))  # type: ignore[attr-defined]
    example.verify_model(run.candidate, public, stored / "model.sig")


def test_a_rejected_candidate_is_kept_too(tmp_path: Path, migrated: bytes) -> None:
    made = prepare(tmp_path, migrated, example.weights(tmp_path), decision="reject")
    registered = made.register()
    (version,) = made.store.versions()
    assert version.aliases == ()
    state = made.context.open_ledger().refresh()
    assert version.tags == tags_of(state, "portraits", registered.version)
    assert version.tags["decision"] == "reject"


def test_registering_twice_in_one_run_makes_one_version(run: Run) -> None:
    assert run.register() == run.register()
    assert len(run.store.versions()) == 1


def test_a_version_that_somebody_made_first_is_not_taken_over(run: Run, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    (planted / "evidence").mkdir(parents=True)
    (planted / "evidence" / "model.sig").write_text("not ours")
    run.store.client.log_artifacts(run.mlflow_run, str(planted), "candidate-0")
    run.store.client.create_registered_model("portraits")
    source = f"{run.store.client.get_run(run.mlflow_run).info.artifact_uri}/candidate-0/model"
    tags = {"triptych.decision": "promote", "triptych.candidate": digest_path(run.candidate)}
    strange = run.store.client.create_model_version("portraits", source, run_id=run.mlflow_run, tags=tags)
    registered = run.register()
    assert registered.version != str(strange.version)
    (version,) = run.store.versions()
    assert version.source != source
    assert registered.evidence["model.sig"] != digest_path(planted / "evidence" / "model.sig")


def test_what_was_written_while_it_was_uploaded_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_stranger(*given: Any) -> str:
        source = upload(*given)
        (Path(source.removeprefix("file://")) / "evil.py").write_text("import os")
        return source

    monkeypatch.setattr("components.register.register.upload", with_a_stranger)
    registered = run.register()
    folder = Path(run.store.versions()[-1].source.removeprefix("file://"))
    assert folder_digest(listing(folder)) != registered.folder, "the ledger names what was meant, not what lies there"


def test_a_record_that_is_gone_registers_nothing(run: Run) -> None:
    (Path(run.context.records) / example.RUN / "evaluate.json").unlink()
    with pytest.raises(LineageError, match="the record of step evaluate in run retraining-1 is not the one"):
        run.register()
    assert run.store.versions() == []


def test_an_artifact_that_no_step_gave_registers_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "stray").write_text("from nowhere")
    run.artifacts["stray"] = tmp_path / "stray"
    with pytest.raises(LineageError, match="no record of run retraining-1 says where stray came from"):
        run.register()


def test_exchanged_weights_register_nothing(run: Run, tmp_path: Path) -> None:
    run.artifacts["candidate"] = example.weights(tmp_path, "another")
    with pytest.raises(LineageError, match="exchanged between the two"):
        run.register()
    assert run.store.versions() == []


def test_a_verdict_about_other_weights_registers_nothing(run: Run) -> None:
    other = example.verdict("sha256:" + "7" * 64, decision="promote")
    write_statement(other, run.artifacts["verdict"] / VERDICT_FILE, run.context.signer("gate"))
    with pytest.raises(LineageError, match="exchanged between the two"):
        run.register()
    with recording(run.context, "gate", {}) as record:
        record.output("verdict", run.artifacts["verdict"])
    with pytest.raises(LineageError, match="the verdict is about sha256:777"):
        run.register()
    assert run.store.versions() == []


def test_a_changed_verdict_registers_nothing(run: Run) -> None:
    forged = example.verdict(digest_path(run.candidate), decision="promote")
    write_statement(forged, run.artifacts["verdict"] / VERDICT_FILE, run.context.signer("run"))
    with recording(run.context, "gate", {}) as record:
        record.output("verdict", run.artifacts["verdict"])
    with pytest.raises(LineageError, match="signature does not hold"):
        run.register()
    assert run.store.versions() == []


def test_the_description_shows_verdict_figures_and_pictures(run: Run) -> None:
    shown = run.store.client.get_model_version("portraits", run.register().version).description
    assert shown.splitlines()[0] == "promote: because", "a list of versions shows this line, and no Markdown"
    assert "| alignment | 0.800 | 0.900 | +0.100 | +0.080 to +0.120 | 0.02 |" in shown
    for picture in ("verdict/pareto.png", "scores/grid.png"):
        attempt = run.evidence().parent.name
        assert f"(get-artifact?path={attempt}/evidence/{picture}&run_uuid={run.mlflow_run})" in shown


def test_a_long_description_keeps_its_pictures(tmp_path: Path) -> None:
    subject: Candidate = example.candidate(tmp_path)
    subject.figures.extend(subject.figures * 40)
    shown = describe(subject, "run", "candidate-1")
    assert len(shown) == DESCRIPTION_LIMIT
    assert "grid.png" in shown


def test_figures_are_metrics_of_the_run(run: Run) -> None:
    run.register()
    assert run.store.client.get_run(run.mlflow_run).data.metrics["gate/no_glasses_asked/difference"] == 0.1


def test_the_run_shows_its_data(run: Run) -> None:
    digest = "sha256:" + "ab" * 32
    for _ in range(2):
        log_dataset(run.store, run.mlflow_run, digest, "/data/portraits", {"rows": 7})
    (shown,) = run.store.client.get_run(run.mlflow_run).inputs.dataset_inputs
    assert (shown.dataset.name, shown.dataset.digest, shown.dataset.source_type) == ("portraits", "ab" * 18, "file")
    assert json.loads(shown.dataset.profile) == {"digest": digest, "rows": 7}
    assert [(tag.key, tag.value) for tag in shown.tags] == [("mlflow.data.context", "training")]


def test_files_go_where_the_settings_say(run: Run, tmp_path: Path) -> None:
    place = (tmp_path / "bucket").as_uri()
    store = Registry(run.store.tracking_uri, "others", place)
    opened = store.open_run("run-1")
    assert store.client.get_run(opened).info.artifact_uri.startswith(place)
    assert store.open_run("run-2") != opened, "the same place again is no contradiction"
    with pytest.raises(LineageError, match="not in s3://elsewhere, and MLflow cannot move it"):
        Registry(run.store.tracking_uri, "others", "s3://elsewhere").open_run("run-3")


def test_weights_go_straight_to_an_object_store(
    tmp_path: Path, migrated: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    variables = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**variables, "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="models")
    settings = SETTINGS.model_copy(update={"artifacts": "s3://models/portraits"})
    made = prepare(tmp_path, migrated, example.weights(tmp_path), artifacts=settings.artifacts)
    registered = made.register(settings)
    assert any(stored.key.endswith("/model/artifacts/weights/model_index.json") for stored in bucket.objects.all())
    uri = f"models:/portraits/{registered.version}"
    fetch_weights(made.store.tracking_uri, uri, digest_path(made.candidate), tmp_path / "fetched")
    assert made.register(settings) == registered
    server.stop()


def test_a_judged_candidate_is_nothing_new_and_other_terms_judge_it_anew(tmp_path: Path, migrated: bytes) -> None:
    base = example.weights(tmp_path, "base")
    made = prepare(tmp_path, migrated, example.weights(tmp_path), "hold", digest_path(base))

    def plan(snapshot: str = example.SNAPSHOT, suite: str = "one", **gate: float) -> Plan:
        state, training = made.context.open_ledger().refresh(), {"base_model": str(base)}
        sections = {"validation": {"suite": suite}, "training": training, "evaluation": {}, "gate": gate}
        return make_plan(state, "portraits", snapshot, sections, force=False)

    first = plan()
    assert first.needed and not first.reuse_uri and first.incumbent_digest == digest_path(base)
    keys = {**KEYS, "training_key": first.training_key, "evaluation_terms": first.evaluation_terms}
    uri = f"models:/portraits/{made.register(keys=keys).version}"
    assert not plan().needed and "judged on the same terms: hold" in plan().reason
    anew = plan(alpha=0.05)
    assert anew.needed
    assert (anew.reuse_uri, anew.reuse_digest) == (uri, digest_path(made.candidate))
    assert plan(snapshot="sha256:another").reuse_uri == "" == plan(suite="another").reuse_uri


def test_an_approved_candidate_whose_run_ended_before_it_promoted_is_judged_anew(
    tmp_path: Path, migrated: bytes
) -> None:
    base = example.weights(tmp_path, "base")
    made = prepare(tmp_path, migrated, example.weights(tmp_path), "promote", digest_path(base))

    def plan(automatic: bool, *used: str) -> Plan:
        state, training = made.context.open_ledger().refresh(), {"base_model": str(base)}
        state.used.update(used)
        sections: Sections = {"validation": {}, "training": training, "evaluation": {}, "gate": {}}
        return make_plan(state, "portraits", example.SNAPSHOT, sections, force=False, automatic=automatic)

    first = plan(automatic=True)
    keys = {**KEYS, "training_key": first.training_key, "evaluation_terms": first.evaluation_terms}
    registered = made.register(keys=keys)
    anew = plan(automatic=True)
    assert anew.needed and anew.reuse_digest == digest_path(made.candidate)
    assert "version 1 was approved, and its run ended before it became champion" in anew.reason
    assert not plan(automatic=False).needed, "a person decides"
    assert not plan(True, registered.verdict).needed, "it was champion, and is no more: somebody went back"


def test_a_run_that_was_lost_is_found_and_closed(run: Run) -> None:
    with recording(run.context, "plan", {}) as record:
        record.facts["mlflow_run"] = run.mlflow_run
    assert unclosed(run.context) == [example.RUN]
    assert close(run.context, "portraits", killed=True) == "failed"
    assert unclosed(run.context) == []
    assert run.store.client.get_run(run.mlflow_run).info.status == "KILLED"


def test_settings_hold_no_null() -> None:
    assert None not in RegistrySettings(model_name="portraits").model_dump().values()
    assert RegistrySettings(model_name="p", artifacts="s3://b/p").model_dump()["artifacts"] == "s3://b/p"


@pytest.mark.parametrize("name", ["porträts", "ｐortraits", "a b", "../x", "", "portraits/1", "portraits@1"])
def test_a_model_s_name_is_ascii(name: str) -> None:
    with pytest.raises(ValidationError):
        RegistrySettings(model_name=name)


def test_a_run_waits_for_the_model_or_ends_as_told(run: Run) -> None:
    other = run.context.model_copy(update={"id": "another"})
    take_lease(run.context, "portraits", 1, wait=False)
    settings = RegistrySettings(model_name="portraits", busy="end")
    made = plan_run(other, settings, example.SNAPSHOT, {}, force=False)
    assert (made.needed, made.busy) == (False, True)
    assert "run retraining-1 has portraits to itself" in made.reason
    close(run.context, "portraits")
    take_lease(other, "portraits", 1, wait=True)
    assert other.open_ledger().refresh().leases["portraits"].run == "another"


def test_a_run_under_another_policy_ends_before_it_trains(run: Run, tmp_path: Path) -> None:
    settings = RegistrySettings(model_name="portraits")
    home = Embedded(tmp_path / "lineage")

    def planned(**gate: float) -> Plan:
        training = {"base_model": str(run.candidate)}
        sections = {"validation": {}, "training": training, "evaluation": {}, "gate": gate}
        return plan_run(run.context, settings, example.SNAPSHOT, sections, force=False)

    with pytest.raises(LineageError, match="pins no policy for portraits"):
        planned(alpha=0.025)
    home.set_policy("portraits", {}, {"alpha": 0.025}, "first")
    assert planned(alpha=0.025).needed
    with pytest.raises(LineageError, match=r"gate\.alpha: 0\.025 -> 0\.5"):
        planned(alpha=0.5)
    assert home.set_policy("portraits", {}, {"alpha": 0.5}, "looser") == ["gate.alpha: 0.025 -> 0.5"]
    assert planned(alpha=0.5).needed
