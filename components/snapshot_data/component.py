"""The first step: pin what is there to train on."""

from typing import NamedTuple

from kfp.dsl import Dataset, Output

from components.image import step


@step
def snapshot_data(
    run: dict,
    job: str,
    data: dict,
    snapshot: Output[Dataset],
) -> NamedTuple("Outputs", digest=str, rows=int):
    """Name every image and caption by content: the snapshot, its digest and its number of rows."""
    from dataclasses import asdict
    from pathlib import Path

    from components.snapshot_data.settings import DataSettings
    from components.snapshot_data.snapshot import take_snapshot
    from lineage.records import RunContext, recording

    context = RunContext.of(run, job)
    with recording(context, "snapshot-data", parameters=data) as record:
        state = Path(context.state) if context.state else None
        taken = take_snapshot(DataSettings.model_validate(data), Path(snapshot.path), state)
        record.input("metadata", taken.metadata)
        record.output("snapshot", taken.digest)
        record.output("refused", Path(snapshot.path) / "refused.parquet")
        record.facts |= asdict(taken)
    return taken.digest, taken.rows
