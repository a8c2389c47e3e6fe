"""`triptych gate` decides again from what is stored, and a verdict says whose it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from components.gate.gate import PAGE, PICTURE, VerdictContext, judge
from components.gate.pareto import frontier, past_versions
from lineage.digests import digest_bytes, digest_path
from lineage.embedded import Embedded
from lineage.entries import Judged, LedgerError, Registered
from lineage.policy import policy_digest
from lineage.registry import Registry
from lineage.scores import EVALUATION_FILE, SETS_FILE, TABLE_FILE, stated, write_sets
from lineage.signing import open_signer
from lineage.state import State
from lineage.statements import VERDICT, VERDICT_FILE, read_statement
from pipelines.cli import app
from tests.gate.tables import ATTRIBUTES, SEEDS, SET_RULES, scores, with_sets

CANDIDATE, INCUMBENT, SET = (digest_bytes(name) for name in (b"candidate", b"incumbent", b"set"))


@dataclass
class Desk:
    """A ledger, a registry, and stored scores with their verdict."""

    folder: Path
    home: Embedded
    store: Registry
    said: list[Judged]

    @property
    def scores(self) -> Path:
        return self.folder / "evidence" / "scores"

    @property
    def verdict(self) -> Path:
        return self.folder / "evidence" / "verdict"

    def about(self, run: str, state: State) -> VerdictContext:
        return VerdictContext(run, self.store.model_name, self.store.tracking_uri, state)

    def judge(self, run: str = "run-1") -> Judged:
        ledger, signer = self.home.open(), open_signer(self.home.uri("gate"))
        _, judged = judge(SET_RULES, self.scores, self.verdict, self.about(run, ledger.state), signer)
        ledger.append(judged, signer)
        return judged

    def predicate(self) -> dict[str, Any]:
        keys = self.home.open().state.keys_of("gate")
        return read_statement(self.verdict / VERDICT_FILE, VERDICT, keys).predicate


def store_scores(target: Path, **more: Any) -> None:
    target.mkdir(parents=True)
    made = with_sets(scores(), 0.1, 0.6)
    assert made.sets
    made.table.to_parquet(target / TABLE_FILE, index=False)
    facts = {
        "evaluation_set": {"name": "set", "version": 1, "digest": SET, "prompts": ATTRIBUTES, "seeds": SEEDS},
        "scores": digest_path(target / TABLE_FILE),
        "sets": write_sets(target, made.sets.rows, made.sets.measures),
        "candidate": {"digest": CANDIDATE},
        "incumbent": {"digest": INCUMBENT},
        "terms": {"evaluation_set": SET},
        **more,
    }
    (target / EVALUATION_FILE).write_text(json.dumps(facts))


@pytest.fixture
def desk(tmp_path: Path, migrated: bytes) -> Iterator[Desk]:
    (tmp_path / "mlflow.db").write_bytes(migrated)
    made = Desk(
        tmp_path, Embedded(tmp_path / "lineage"), Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", "portraits"), []
    )
    store_scores(made.scores)
    made.said.append(made.judge())
    yield made


def again(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["gate", *map(str, arguments)])


def test_stored_scores_give_the_same_verdict(desk: Desk) -> None:
    for place in (desk.scores, desk.scores.parent):
        result = again(place)
        assert result.exit_code == 0, result.output
        assert "verdict: promote" in result.output
        assert "the same" in result.output


def test_a_verdict_that_the_scores_do_not_give_is_told(desk: Desk) -> None:
    path = desk.verdict / VERDICT_FILE
    predicate = desk.predicate()
    shutil.rmtree(desk.scores)
    store_scores(desk.scores)
    facts = json.loads((desk.scores / EVALUATION_FILE).read_text())
    (desk.scores / EVALUATION_FILE).write_text(json.dumps({**facts, "unusable": "the champion no longer loads"}))
    result = again(desk.scores)
    assert result.exit_code == 1
    assert "the champion no longer loads" in result.output
    assert "not the same in: evaluation, decision, reasons, figures" in result.output
    assert str(path) in result.output
    assert predicate["decision"] == "promote"


@pytest.mark.parametrize("file", [TABLE_FILE, SETS_FILE])
def test_scores_that_were_changed_are_refused(desk: Desk, file: str) -> None:
    content = (desk.scores / file).read_bytes()
    (desk.scores / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = again(desk.scores)
    assert result.exit_code == 2
    assert f"{file} is not the one that {EVALUATION_FILE} names" in result.output


def test_scores_without_a_verdict_want_settings(desk: Desk) -> None:
    shutil.rmtree(desk.verdict)
    assert "--config" in (result := again(desk.scores)).output
    assert result.exit_code == 2


def test_a_verdict_says_whose_it_is_and_how_often_the_set_was_used(desk: Desk) -> None:
    first = desk.predicate()
    assert (first["model"], first["ledger"]) == ("portraits", desk.home.open().state.ledger)
    assert first["decisions"] == 1
    assert first["budget"] == "decision 1 of 20 on this evaluation set: 0.01 of 0.2 spent"
    assert first["evaluation"] == stated(json.loads((desk.scores / EVALUATION_FILE).read_text()))
    desk.judge("run-2")
    assert desk.predicate()["decisions"] == 2


def test_a_verdict_names_the_policy_that_it_was_given_under(desk: Desk) -> None:
    predicate = desk.predicate()
    assert predicate["policy"] == policy_digest({"evaluation_set": SET}, SET_RULES.model_dump(mode="json"))
    assert desk.said[0].policy == predicate["policy"]
    looser = SET_RULES.model_copy(update={"alpha": 0.3})
    about = desk.about("run-2", desk.home.open().state)
    _, judged = judge(looser, desk.scores, desk.verdict, about, open_signer(desk.home.uri("gate")))
    assert judged.policy != predicate["policy"]


def test_a_set_whose_decisions_are_spent_promotes_nothing_and_says_so_again(desk: Desk) -> None:
    rules, signer = SET_RULES.model_copy(update={"life": 2}), open_signer(desk.home.uri("gate"))

    def decided(run: str) -> str:
        ledger = desk.home.open()
        ruling, said = judge(rules, desk.scores, desk.verdict, desk.about(run, ledger.state), signer)
        ledger.append(said, signer)
        return ruling.decision

    # One decision on it is in the ledger already; parts of a set are not another set.
    evaluation = json.loads((desk.scores / EVALUATION_FILE).read_text())
    evaluation["evaluation_set"]["digest"] += ":96"
    (desk.scores / EVALUATION_FILE).write_text(json.dumps(evaluation))
    assert [decided("run-2"), decided("run-3")] == ["promote", "hold"]
    assert desk.predicate()["budget"] == "decision 3 of 2 on this evaluation set: 0.2 of 0.2 spent"
    assert "decision 3 of 2" in (desk.verdict / PAGE).read_text()
    assert again(desk.scores).exit_code == 0


def register(desk: Desk, model: str, judged: Judged, mlflow_run: str) -> None:
    body = Registered(
        run=judged.run,
        model=model,
        version="1",
        candidate=CANDIDATE,
        folder=CANDIDATE,
        verdict=judged.verdict,
        training_key="",
        evaluation_terms="",
        mlflow_run=mlflow_run,
        evidence={},
    )
    desk.home.open().append(body, open_signer(desk.home.uri("run")))


def test_a_verdict_for_one_model_registers_no_version_of_another(desk: Desk) -> None:
    with pytest.raises(LedgerError, match="for another model"):
        register(desk, "landscapes", desk.said[0], "")


def test_former_versions_judged_on_the_same_set_are_shown(desk: Desk) -> None:
    run = desk.store.open_run("run-1")
    desk.store.client.log_metric(run, "gate/alignment/candidate", 0.7)
    desk.store.client.log_metric(run, "gate/alignment/incumbent", 0.1)
    register(desk, "portraits", desk.said[0], run)
    state = desk.home.open().state
    assert past_versions(state, desk.store.tracking_uri, "portraits", SET) == {"1": {"alignment": 0.7}}
    assert past_versions(state, desk.store.tracking_uri, "portraits", "sha256:another") == {}
    before = (desk.verdict / PICTURE).read_bytes()
    desk.store.client.log_metric(run, "gate/realism/kid/candidate", 0.2)
    desk.judge("run-2")
    assert (desk.verdict / PICTURE).read_bytes() != before


def test_the_frontier_is_what_no_other_point_beats() -> None:
    assert frontier([(1, 1), (0, 3), (2, 0.5), (0.5, 0.5), (1, 2), (2, 0)]) == [(0, 3), (1, 2), (2, 0.5)]
