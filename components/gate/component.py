"""The gate, as a pipeline step."""

from typing import NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from components.image import step


@step
def gate(run: dict, gate: dict, scores: Input[Dataset], verdict: Output[Artifact], pareto: Output[HTML]) -> NamedTuple(
    "Outputs", decision=str, digest=str
):
    """Rule on the scores; gives the decision and the digest of the verdict that binds it."""
    from collections import namedtuple
    from pathlib import Path

    from components.gate.gate import judge
    from components.gate.settings import GateSettings
    from lineage.records import RunContext, check_records, recording

    context = RunContext.model_validate(run)
    with recording(run, "gate", parameters=gate) as record:
        check_records(context, {"scores": record.input("scores", scores.path)})
        settings = GateSettings.model_validate(gate)
        paths = Path(scores.path), Path(verdict.path), Path(pareto.path)
        ruling, judged = judge(settings, *paths, context.id, context.signer("gate"))
        context.open_ledger().append(judged, context.signer("gate"))
        record.facts |= ruling.model_dump(mode="json")
        digest = record.output("verdict", verdict.path)
        return namedtuple("Outputs", "decision digest")(ruling.decision, digest)
