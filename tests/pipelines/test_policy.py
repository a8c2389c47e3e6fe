"""The policy that a run on this machine enters is, byte for byte, the one that its steps put into a verdict."""

import sys
from pathlib import Path

from kfp import dsl

from components.image import step
from lineage.policy import policy_digest
from pipelines.configuration import policy_of, read_configuration
from pipelines.processes import processes
from tests.runs import AVATARS, cut_down, some_portraits


@step
def judged_under(evaluation: dict, gate: dict) -> list:  # type: ignore[type-arg]
    """The policy as evaluate and gate name it in a verdict, and as plan holds it against the ledger's."""
    from components.evaluate.evaluate import _terms
    from components.evaluate.settings import EvaluationSettings
    from components.gate.settings import GateSettings
    from lineage.policy import by_content, policy_digest

    rules = GateSettings.model_validate(gate).model_dump(mode="json")
    said = policy_digest(_terms(EvaluationSettings.model_validate(evaluation)), rules)
    return [said, policy_digest(by_content(evaluation), gate)]


@dsl.pipeline(name="judging")
def judging(evaluation: dict, gate: dict) -> list:  # type: ignore[type-arg]
    return judged_under(evaluation=evaluation, gate=gate).output  # type: ignore[no-any-return]


def test_plan_evaluate_and_gate_name_the_policy_that_was_entered(tmp_path: Path) -> None:
    """Although KFP turns each number of a parameter into a float, and drops what is null."""
    weights = str(AVATARS / "models" / "scorers" / "alignment.safetensors")
    options = {"whole": 7, "half": 0.5, "one": 1.0, "tiny": 1e-9, "command": [sys.executable, "x.py"]}
    scorers = [{"scorer": "avatars-alignment", "weights": weights, "options": options}]
    portraits = some_portraits("new", tmp_path / "portraits", 4)
    configuration = read_configuration(cut_down(tmp_path, portraits, evaluation={"scorers": scorers, "limit": None}))
    entered = policy_digest(**policy_of(configuration.evaluation, configuration.gate))
    sections = configuration.arguments()
    with processes("retraining-1", tmp_path / "root"):
        found = judging(evaluation=sections["evaluation"], gate=sections["gate"])
    assert found.output == [entered, entered]


def test_a_changed_scorer_is_another_policy(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"one")
    scorers = [{"scorer": "avatars-alignment", "weights": str(weights)}]
    path = cut_down(tmp_path, some_portraits("new", tmp_path / "portraits", 4), evaluation={"scorers": scorers})

    def digest() -> str:
        read = read_configuration(path)
        return policy_digest(**policy_of(read.evaluation, read.gate))

    before = digest()
    assert digest() == before
    weights.write_bytes(b"two")
    assert digest() != before
