"""Croissant metadata of a manifest (https://docs.mlcommons.org/croissant/), and the rights that its rows state.

It lies beside the very ``manifest.parquet`` it names, which any Croissant reader can then load. The pictures
themselves are not stored again; each row says where they lie and what their digest is.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import mlcroissant as mlc  # type: ignore[import-untyped]

from lineage.digests import digest_file, hex_of
from lineage.pictures import manifest_rows, trained_on

NOT_STATED = "not stated"
"""Stands for an empty licence, consent or source."""
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


def describe_manifest(
    manifest: Path, place: str, digest: str, name: str, description: str, published: str, held_out: bool = True
) -> dict[str, Any]:
    """The JSON-LD of a manifest.

    Args:
        place: path of the manifest, relative to where the JSON-LD lies.
        digest: of the manifest's rows.
        published: date or time, ISO 8601.
        held_out: name the rights of rows that are not for training too.
    """
    table = mlc.FileObject(
        id="manifest",
        name="manifest.parquet",
        description="One row a picture.",
        content_url=place,
        content_size=f"{manifest.stat().st_size} B",
        encoding_formats=[mlc.EncodingFormat.PARQUET],
        sha256=hex_of(digest_file(manifest)),
    )
    rights = rights_of(manifest, held_out)
    names = (PurePosixPath(row["file_name"]) for row in manifest_rows(manifest, ["file_name"]))
    suffixes = sorted({name.suffix.lower().lstrip(".") for name in names} - {""})
    pictures = mlc.FileSet(
        id="pictures",
        name="pictures",
        description="The pictures. They stay where they were pinned, under the uri of their row.",
        encoding_formats=[f"image/{_SUBTYPES.get(suffix, suffix)}" for suffix in suffixes] or ["image/*"],
        includes=[f"*.{suffix}" for suffix in suffixes] or ["*"],
    )
    rows = mlc.RecordSet(
        id="rows",
        name="rows",
        description="Picture, caption and rights.",
        key="rows/file_name",
        fields=[_field(name, *described) for name, described in FIELDS.items()],
    )
    return dict(
        mlc.Metadata(
            name=name,
            description=description,
            license=list(rights["license"]),
            cite_as=digest,
            version="1.0.0",
            date_published=published,
            url=f"urn:triptych:snapshot:{digest}",
            personal_sensitive_information=[f"Consent: {consent}" for consent in rights["consent"]],
            data_collection="; ".join(rights["source"]),
            distribution=[table, pictures],
            record_sets=[rows],
        ).to_json()
    )


_SUBTYPES = {"jpg": "jpeg", "tif": "tiff"}


def _field(name: str, description: str, kind: str) -> Any:
    return mlc.Field(
        id=f"rows/{name}",
        name=name,
        description=description,
        data_types=[getattr(mlc.DataType, kind)],
        source=mlc.Source(file_object="manifest", extract=mlc.Extract(column=name)),
    )


def rights_of(manifest: Path, held_out: bool = True) -> dict[str, dict[str, int]]:
    """``license``, ``consent`` and ``source`` -> what the rows of a manifest say there -> images, most frequent first.

    Args:
        held_out: count the rows that are not for training too.
    """
    found = {column: Counter[str]() for column in ("license", "consent", "source")}
    for row in manifest_rows(manifest, [*found, "split"]):
        if held_out or trained_on(row):
            for column, counted in found.items():
                counted[row[column] or NOT_STATED] += 1
    return {column: dict(counted.most_common()) for column, counted in found.items()}
