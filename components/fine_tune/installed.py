"""What is installed, by name."""

from __future__ import annotations

from importlib.metadata import distributions

from packaging.utils import canonicalize_name


def installed() -> dict[str, dict[str, str]]:
    """Each installed distribution -> its version, and its licence, empty where it states none by name."""
    found = {}
    for metadata in (one.metadata for one in distributions()):  # parsed each time that they are asked for
        stated = next((metadata[key] for key in ("License-Expression", "License") if key in metadata), "")
        # Some packages put the whole text of their licence where its name belongs.
        license = "" if "\n" in stated else stated
        found[canonicalize_name(metadata["Name"])] = {"version": metadata["Version"], "license": license}
    return dict(sorted(found.items()))
