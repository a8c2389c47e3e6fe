"""The gate, as a pipeline step."""

from typing import NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from components.image import step


@step
def gate(
    run: dict,
    job: str,
    gate: dict,
    registry: dict,
    scores: Input[Dataset],
    verdict: Output[Artifact],
    pareto: Output[HTML],
) -> NamedTuple("Outputs", decision=str, digest=str):
    """Rule on the scores; gives the decision and the digest of the verdict that binds it."""
    from collections import namedtuple
    from pathlib import Path

    from components.gate.gate import PAGE, VerdictContext, judge
    from components.gate.settings import GateSettings
    from lineage.records import RunContext, check_records, recording

    context, target = RunContext.of(run, job), Path(verdict.path)
    with recording(context, "gate", parameters=gate) as record:
        check_records(context, {"scores": record.input("scores", scores.path)})
        ledger, signer = context.open_ledger(), context.signer("gate")
        about = VerdictContext(context.id, registry["model_name"], context.tracking_uri, ledger.state)
        ruling, judged = judge(GateSettings.model_validate(gate), Path(scores.path), target, about, signer)
        ledger.append(judged, signer)
        Path(pareto.path).write_bytes((target / PAGE).read_bytes())
        record.facts |= ruling.model_dump(mode="json")
        digest = record.output("verdict", target)
        return namedtuple("Outputs", "decision digest")(ruling.decision, digest)
