"""Promote, as a pipeline step."""

from kfp.dsl import Artifact, Input

from components.image import step


@step
def promote(
    run: dict, registry: dict, version: str, base_digest: str, verdict: Input[Artifact], verdict_digest: str
) -> str:
    """Move ``champion`` (or set ``challenger``) if the verdict says so; returns the alias, or an empty string."""
    from pathlib import Path

    from components.promote.promote import promote_version
    from lineage.records import recording
    from lineage.registry import Registry, RegistrySettings

    with recording(run, "promote", parameters={**registry, "version": version}) as record:
        record.input("verdict", verdict.path)
        settings = RegistrySettings.model_validate(registry)
        store = Registry(run["tracking_uri"], settings.model_name)
        alias = promote_version(store, settings, version, Path(verdict.path), verdict_digest, base_digest)
        record.facts |= {"alias": alias, "version": version}
        return alias
