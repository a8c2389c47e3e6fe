"""Croissant metadata of the rows a candidate was trained on (https://docs.mlcommons.org/croissant/).

Written when the candidate is registered, not into the snapshot: it describes the accepted rows rather than all that
were found, and lies beside the very ``manifest.parquet`` it names, which any Croissant reader can then load. The
pictures themselves are not stored again; each row says where they lie and what their digest is.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from lineage.digests import PREFIX, digest_file
from lineage.documents.candidate import Candidate

FIELDS = {
    "file_name": ("Name of the picture, relative to its folder", "TEXT"),
    "sha256": ("Digest of the picture's bytes, written sha256:<hex>", "TEXT"),
    "bytes": ("Size of the picture", "INTEGER"),
    "text": ("Caption", "TEXT"),
    "license": ("Licence of the picture", "TEXT"),
    "consent": ("Consent of whoever it shows", "TEXT"),
    "source": ("Where it came from", "TEXT"),
    "split": ("What it is for: train, validation, test", "TEXT"),
    "uri": ("Where it lay when it was pinned", "URL"),
    "phash": ("Perceptual hash, 64 bits in hexadecimal", "TEXT"),
}
"""Columns of the manifest: what each holds, and its Croissant type."""


def croissant(candidate: Candidate, manifest: str) -> dict[str, Any]:
    """The JSON-LD, for a reader who finds the manifest at the relative path ``manifest``."""
    import mlcroissant as mlc  # type: ignore[import-untyped]

    table = mlc.FileObject(
        id="manifest",
        name="manifest.parquet",
        description="One row a picture that was accepted for training.",
        content_url=manifest,
        content_size=f"{candidate.manifest.stat().st_size} B",
        encoding_formats=[mlc.EncodingFormat.PARQUET],
        sha256=digest_file(candidate.manifest).removeprefix(PREFIX),
    )
    suffixes = _suffixes(candidate.manifest)
    pictures = mlc.FileSet(
        id="pictures",
        name="pictures",
        description="The pictures. They stay where they were pinned, under the uri of their row.",
        encoding_formats=[f"image/{_SUBTYPES.get(suffix, suffix)}" for suffix in suffixes],
        includes=[f"*.{suffix}" for suffix in suffixes],
    )
    rows = mlc.RecordSet(
        id="rows",
        name="rows",
        description="Picture, caption and rights.",
        key="rows/file_name",
        fields=[_field(name, *described) for name, described in FIELDS.items()],
    )
    licences = list(candidate.stated("license"))
    return dict(
        mlc.Metadata(
            name=f"{candidate.model_name}-training-data",
            description=f"The {sum(candidate.stated('license').values())} pictures and captions with digest "
            f"{candidate.data_digest}, on which run {candidate.run} fine-tuned {candidate.model_name}.",
            license=licences,
            cite_as=candidate.data_digest,
            version="1.0.0",
            date_published=candidate.ended,
            url=f"urn:triptych:snapshot:{candidate.data_digest}",
            personal_sensitive_information=[f"Consent: {consent}" for consent in candidate.stated("consent")],
            data_collection="; ".join(candidate.stated("source")),
            distribution=[table, pictures],
            record_sets=[rows],
        ).to_json()
    )


_SUBTYPES = {"jpg": "jpeg", "tif": "tiff"}


def _suffixes(manifest: Path) -> list[str]:
    import pyarrow.parquet as pq

    names = pq.read_table(manifest, columns=["file_name"])["file_name"].to_pylist()
    return sorted({PurePosixPath(name).suffix.lower().lstrip(".") for name in names})


def _field(name: str, description: str, kind: str) -> Any:
    import mlcroissant as mlc  # type: ignore[import-untyped]

    return mlc.Field(
        id=f"rows/{name}",
        name=name,
        description=description,
        data_types=[getattr(mlc.DataType, kind)],
        source=mlc.Source(file_object="manifest", extract=mlc.Extract(column=name)),
    )
