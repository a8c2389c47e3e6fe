"""Promote, as a pipeline step."""

from kfp.dsl import Artifact, Input

from components.image import step


@step
def promote(run: dict, job: str, registry: dict, version: str, verdict: Input[Artifact], verdict_digest: str) -> str:
    """Move ``champion`` (or set ``challenger``) if the verdict says so; returns the alias, or an empty string."""
    from components.promote.promote import promote_version
    from lineage.digests import LineageError
    from lineage.records import RunContext, recording
    from lineage.registry import RegistrySettings

    context = RunContext.of(run, job)
    with recording(context, "promote", parameters={**registry, "version": version}) as record:
        if record.input("verdict", verdict.path) != verdict_digest:
            raise LineageError(f"the verdict at {verdict.path} is not the one that the gate gave ({verdict_digest})")
        done = promote_version(context, RegistrySettings.model_validate(registry), version)
        record.facts |= {**done, "version": version}
        return done["alias"]
