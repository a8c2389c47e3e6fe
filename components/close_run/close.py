"""Close a run: derive its status from the records its steps left.

A run is ``promoted``, ``judged`` (registered, not promoted), ``stale`` (another champion came while it ran: its
candidate has to be judged anew), ``nothing-new``, ``busy`` (another run had the model's lease) or ``failed``.
Steps that died left no record, so a run that neither registered a version nor found nothing new has failed, whatever
its steps' exit codes said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lineage.digests import LineageError
from lineage.entries import Closed
from lineage.records import CLOSING, RunContext, StepRecord, check_records, read_records, recording

Outcome = Literal["promoted", "judged", "stale", "nothing-new", "busy", "failed"]


def outcome(records: Mapping[str, StepRecord]) -> Outcome:
    """What a run came to, from its records."""
    done = {name for name, record in records.items() if record.status == "complete"}
    if any(record.status == "failed" for record in records.values()):
        return "failed"
    if "promote" in done and records["promote"].facts.get("stale"):
        return "stale"
    if "promote" in done:
        return "promoted" if records["promote"].facts.get("alias") == "champion" else "judged"
    if "nothing-new" in done:
        return "busy" if "plan" in records and records["plan"].facts.get("busy") else "nothing-new"
    return "failed"


def close(context: RunContext, model_name: str, killed: bool = False) -> Outcome:
    """Write the closing record and end the MLflow run, if the run opened one. Safe to repeat.

    Args:
        killed: the run was interrupted.
    """
    records, ledger = read_records(context.records, context.id), context.open_ledger()
    records.pop(CLOSING, None)
    result, trouble = outcome(records), ""
    try:
        check_records(context, {})
    except LineageError as error:
        result, trouble = "failed", str(error)
    plan, named = records.get("plan"), ledger.refresh().records.get(context.id, {})
    with recording(context, CLOSING, parameters={"killed": killed}) as record:
        record.facts |= {"outcome": result, **({"trouble": trouble} if trouble else {})}
        # By no record that was changed, or a stranger's MLflow run would be closed.
        if plan and plan.facts.get("mlflow_run") and plan.digest() == named.get("plan"):
            from lineage.registry import Registry

            ended = "FAILED" if result == "failed" else "FINISHED"
            store = Registry(context.tracking_uri, model_name)
            store.client.set_terminated(plan.facts["mlflow_run"], "KILLED" if killed else ended)
    if ledger.refresh().outcomes.get(context.id) != result:
        ledger.append(Closed(run=context.id, outcome=result), context.signer("run"))
    return result


def unclosed(context: RunContext) -> list[str]:
    """The runs that the ledger heard of and that nobody closed: they were lost, or still run."""
    state = context.open_ledger().refresh()
    begun = {*state.records, *(lease.run for lease in state.leases.values())}
    return sorted(begun - state.outcomes.keys() | {lease.run for lease in state.leases.values()})
