"""Digests: the names by which evidence is bound together.

A digest is written ``<kind>:<hex>``. ``sha256:`` is of bytes: a file's, or a value's canonical JSON. ``tree-sha256:``
is of a folder: of the sorted list of its files (relative path and file digest), as canonical JSON. Folders have a kind
of their own because a file could hold such a list. Equal digests mean equal content, wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PREFIX = "sha256:"
TREE = "tree-sha256:"


class LineageError(Exception):
    """Evidence is missing, malformed or does not match; the message says which and what to do."""


def digest_bytes(content: bytes) -> str:
    """The digest of ``content``."""
    return PREFIX + hashlib.sha256(content).hexdigest()


def digest_file(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as stream:
        return PREFIX + hashlib.file_digest(stream, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """The digest of a JSON value in its RFC 8785 form."""
    return digest_bytes(canonical(value))


def canonical(value: Any) -> bytes:
    """RFC 8785 canonical JSON: sorted keys, no white space, one form for each number.

    Raises:
        LineageError: the value has no JSON form (NaN, an integer beyond 53 bits, an unknown type).
    """
    # Here, so that a machine that only trains need not have it.
    import rfc8785

    try:
        if _same_in_json(value):  # the ledger has thousands of such values, and rfc8785 is slow
            return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise LineageError(f"this has no canonical JSON: {error}") from error


def _same_in_json(value: Any) -> bool:
    """Whether the standard library writes ``value`` as RFC 8785 does: floats, large integers and the order of keys
    beyond ASCII are what they differ in."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and key.isascii() and _same_in_json(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_same_in_json, value))
    return value is None or isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**53)


def hex_of(digest: str) -> str:
    """The 64 hexadecimal digits of a digest, for a file's name; it does not say any more of what it is the digest."""
    return digest.rpartition(":")[2]


def short(digest: str) -> str:
    """A digest cut for people to read: its kind and 12 digits."""
    return f"{digest[: len(digest) - len(hex_of(digest)) + 12]}…"


def digest_set(digest: str) -> dict[str, str]:
    """A digest as in-toto and SLSA write it: kind -> hex.

    https://github.com/in-toto/attestation/blob/main/spec/v1/digest_set.md allows kinds of one's own.
    """
    return {digest.rpartition(":")[0]: hex_of(digest)}


def digest_path(path: Path | str) -> str:
    """The digest of a file, ``sha256:``, or of a folder as the sorted list of its files, ``tree-sha256:``.

    Raises:
        LineageError: nothing is there, or something that has no digest: a link to a directory, a pipe, a socket.
    """
    path = Path(path)
    if path.is_file():
        return digest_file(path)
    if not path.is_dir():
        raise LineageError(f"nothing to take a digest of at {path}")
    files = []
    for inner in path.rglob("*"):
        if inner.is_file():
            files.append(inner.relative_to(path).as_posix())
        elif inner.is_symlink() or not inner.is_dir():
            raise LineageError(f"{inner} is neither a file nor a directory of its own, so {path} has no digest")
    return digest_tree({name: digest_file(path / name) for name in files})


def digest_tree(files: Mapping[str, str]) -> str:
    """The digest of a folder that holds ``files``: relative path -> digest."""
    return TREE + hex_of(digest_json([[name, files[name]] for name in sorted(files)]))


def manifest_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """The digest of manifest rows, in whatever order they come and wherever the images lie.

    A row's leaf is the digest of its RFC 8785 JSON without `DERIVED`; the manifest's is of its leaves, sorted.
    """
    leaves = [hashlib.sha256(canonical({k: v for k, v in row.items() if k not in DERIVED})).digest() for row in rows]
    return digest_bytes(b"".join(sorted(leaves)))


DERIVED = frozenset({"uri", "phash"})
"""Columns of a manifest that say where an image lies, or follow from its bytes."""


@cache
def code_digest(*packages: str) -> str:
    """The digest of the Python sources of installed ``packages`` or modules, the same in a checkout and in an image.

    Raises:
        LineageError: a package is not installed.
    """
    sources: list[list[str]] = []
    for package in sorted(packages):
        spec = find_spec(package)
        if spec is None or not (spec.submodule_search_locations or spec.origin):
            raise LineageError(f"package {package!r} is not installed; its code has no digest")
        if not spec.submodule_search_locations:
            sources.append([package, digest_file(Path(str(spec.origin)))])
            continue
        root = Path(next(iter(spec.submodule_search_locations)))
        for source in root.rglob("*.py"):
            sources.append([f"{package}/{source.relative_to(root).as_posix()}", digest_file(source)])
    return digest_json(sorted(sources))


def packages_digest() -> str:
    """The digest of what is installed: the sorted list of (distribution, version)."""
    return digest_json(sorted({(d.metadata["Name"].lower(), d.version) for d in distributions()}))
