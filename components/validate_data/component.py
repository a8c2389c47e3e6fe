"""The step that decides which rows may be trained on."""

from typing import NamedTuple

from kfp.dsl import HTML, Dataset, Input, Output

from components.image import step


@step
def validate_data(
    run: dict,
    job: str,
    validation: dict,
    snapshot: Input[Dataset],
    validated: Output[Dataset],
    report: Output[HTML],
) -> NamedTuple("Outputs", accepted=int, quarantined=int, digest=str):
    """Hold every image against the expectation suite: accepted rows, quarantined rows, and a report."""
    import shutil
    import sys
    from pathlib import Path

    # jsonschema, which Great Expectations' charts load, else builds a grammar of IRIs for a second or two.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

    from components.validate_data.facts import read_manifest
    from components.validate_data.settings import ValidationSettings
    from components.validate_data.validate import validate
    from lineage.digests import manifest_digest
    from lineage.records import RunContext, recording

    context = RunContext.of(run, job)
    settings, target = ValidationSettings.model_validate(validation), Path(validated.path)
    state = Path(context.state) / "data" if context.state else None
    with recording(context, "validate-data", parameters=validation) as record:
        record.input("snapshot", manifest_digest(read_manifest(Path(snapshot.path)).to_pylist()))
        record.input("suite", Path(settings.suite))
        found = validate(settings, Path(snapshot.path), target, state)
        record.output("accepted", found.digest)
        record.output("validated", target)
        shutil.copyfile(target / "report.html", report.path)
        record.output("report", Path(report.path))
        record.facts.update(rows=found.rows, accepted=found.accepted, quarantined=found.quarantined)
    return found.accepted, found.quarantined, found.digest
