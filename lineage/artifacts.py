"""Places of artifacts: what lies at the URI of an MLflow store, or in a folder, and the digests of it.

Whoever reads weights or evidence reads them here. A place on this machine is read where it lies, any other is fetched
once. Only regular files and folders of them have a digest; a link, pipe, socket or device in a folder is an error, so
that nothing outside the folder is ever opened and no read waits for ever.

    artifacts = Artifacts(tracking_uri, None, scratch)
    files = listing(artifacts.open(source))  # one pass over the model folder
    assert (folder_digest(files), weights_digest(files)) == (registered.folder, registered.candidate)
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from lineage.digests import PREFIX, digest_tree
from lineage.places import ChangedError, GoneError, UnreachableError, reaching, without_credentials

WEIGHTS_FOLDER = "artifacts/weights"
"""Inside the model folder, where MLflow's own loader looks for them."""
LOADER_FILE = "registered_model_meta"
"""MLflow 3.17 writes this file (the model's name and version) into a version's model folder whenever somebody loads the
version from a store on this machine, and no code reads it: so it is no part of the folder's digest."""
LOADER = "training.portrait"
"""The module that every model folder of ours names as its loader."""
AROUND = ("MLmodel", "requirements.txt", "python_env.yaml", LOADER_FILE)
"""What a model folder holds beside its weights."""
MOST_FILES = 1_000_000
"""Files that a listing may have."""
MOST_BYTES = 2**40
"""Bytes that the files of a listing may have together, so that a sparse file does not keep its reader for days."""


class Listed(NamedTuple):
    """A file of a folder."""

    name: str
    """Relative to the folder, with slashes; empty where the place is a file itself."""
    digest: str
    size: int
    """Bytes."""


class Artifacts:
    """Reads the places of one MLflow server or store.

    Args:
        local: the folder of this machine that ``mlflow-artifacts:`` places lie in; None: the server is asked.
        scratch: where what lies elsewhere is fetched to; it must outlive what `open` gives.
        remote: whether anything is fetched at all.
    """

    def __init__(self, tracking_uri: str, local: Path | None, scratch: Path, remote: bool = True) -> None:
        self.tracking_uri, self.local, self.scratch, self.remote = tracking_uri, local, scratch, remote
        self._fetched: dict[str, Path] = {}

    def open(self, uri: str) -> Path:
        """The file or folder at ``uri``: in place where it lies on this machine, else a copy, fetched once.

        Raises:
            GoneError: nothing is there.
            ChangedError: it is a link, a pipe, a socket or a device.
            UnreachableError: the store does not answer or may not be read.
        """
        place = self._in_place(uri) or self._fetched.get(uri)
        if place is None:
            place = self._fetched[uri] = self._fetch(uri, Path(tempfile.mkdtemp(dir=self.scratch)))
        with reaching(uri):
            mode = place.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ChangedError(f"{without_credentials(uri)} is neither a file nor a folder of its own")
        return place

    def names(self, uri: str) -> set[str]:
        """The names of what lies directly in the folder at ``uri``; raises as `open` does."""
        place = self._in_place(uri)
        with reaching(uri):
            return {entry.name for entry in os.scandir(place)} if place else self._listed(uri)

    def _in_place(self, uri: str) -> Path | None:
        """Where ``uri`` lies on this machine, if it does."""
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise ChangedError(f"{without_credentials(uri)} is no place: {error}") from error
        path = Path(unquote(parts.path)) if parts.scheme else Path(uri)
        if ".." in path.parts:
            raise ChangedError(f"{without_credentials(uri)} leads out of the artifact store")
        if not parts.scheme or (parts.scheme == "file" and parts.netloc in ("", "localhost")):
            return path
        if parts.scheme == "mlflow-artifacts" and self.local:
            return self.local / str(path).lstrip("/")
        return None

    def _fetch(self, uri: str, target: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        self._check_remote(uri)
        with reaching(uri, self._is_gone):
            return Path(download_artifacts(artifact_uri=uri, tracking_uri=self.tracking_uri, dst_path=str(target)))

    def _check_remote(self, uri: str) -> None:
        if not self.remote:
            raise UnreachableError(f"{without_credentials(uri)} lies elsewhere; nothing is fetched unless asked for")

    def _listed(self, uri: str) -> set[str]:
        from mlflow.artifacts import list_artifacts

        self._check_remote(uri)
        found = list_artifacts(artifact_uri=uri, tracking_uri=self.tracking_uri)
        return {str(one.path).rstrip("/").rsplit("/", 1)[-1] for one in found}

    def _is_gone(self, uri: str) -> bool:
        """Whether the folder above ``uri`` can be listed, and does not have it."""
        above, _, name = uri.rstrip("/").rpartition("/")
        try:
            return name not in self._listed(above)
        except Exception:
            return False  # then the store does not answer, which the first error says


def listing(place: Path) -> list[Listed]:
    """Every file of the folder ``place`` in the order of the names, or the one file that it is; each is read once.

    Raises:
        GoneError: nothing is there.
        ChangedError: it holds a link, a pipe, a socket, a device, or more than is ever read.
        UnreachableError: a file cannot be read.
    """
    with reaching(str(place)):
        return [Listed(name, *_digest(place / name)) for name in sorted(_files(place))]


def digest_of(files: Iterable[Listed], under: str = "") -> str:
    """The digest of what `listing` found, as `lineage.digests.digest_path` gives it.

    Args:
        under: a folder within, of which the digest is asked; empty: all.
    """
    found = list(files)
    if len(found) == 1 and not found[0].name:
        return found[0].digest
    start = f"{under}/" if under else ""
    return digest_tree({one.name.removeprefix(start): one.digest for one in found if one.name.startswith(start)})


def folder_digest(files: Iterable[Listed]) -> str:
    """The digest of a whole model folder."""
    return digest_of(one for one in files if one.name != LOADER_FILE)


def weights_digest(files: Iterable[Listed]) -> str:
    """The digest of the weights in a model folder.

    Raises:
        GoneError: it has none.
    """
    found = list(files)
    if not any(one.name.startswith(f"{WEIGHTS_FOLDER}/") for one in found):
        raise GoneError(f"the model folder has no {WEIGHTS_FOLDER}")
    return digest_of(found, WEIGHTS_FOLDER)


def check_loader(folder: Path, files: Iterable[Listed]) -> dict[str, Any]:
    """Refuse a model folder that brings code, or names another loader than ours: MLflow runs what is in it.

    Returns:
        What ``MLmodel`` says of the loader.

    Raises:
        ChangedError: it does.
    """
    import yaml

    strange = [one.name for one in files if one.name not in AROUND and not one.name.startswith(f"{WEIGHTS_FOLDER}/")]
    try:
        flavors = yaml.safe_load(read_file(folder / "MLmodel", 2**20))["flavors"]
        loader = flavors["python_function"]
        good = set(flavors) == {"python_function"} and loader["loader_module"] == LOADER and "code" not in loader
    except (yaml.YAMLError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ChangedError(f"{folder / 'MLmodel'} describes no model of ours: {error}") from error
    if strange or not good:
        told = f"holds {', '.join(strange[:9])}" if strange else f"is loaded by something else than {LOADER}"
        raise ChangedError(f"the model folder {folder} {told}; whoever loads it would run that: do not use it")
    return dict(loader)


def read_file(place: Path, most: int) -> bytes:
    """A regular file's content, at most ``most`` bytes.

    Raises:
        GoneError, UnreachableError: it is not there or cannot be read.
        ChangedError: it is no regular file, or larger.
    """
    with reaching(str(place)), regular(place) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ChangedError(f"{place} has more than {most} bytes, so it is not read")
    return content


def fetch_weights(tracking_uri: str, uri: str, digest: str, target: Path) -> Path:
    """Copy the weights at ``uri`` (``models:/NAME/N``, or a local folder of weights) to ``target`` and check the copy.

    Raises:
        LineageError: nothing is there, or it is not what ``digest`` says; ``target`` is then left alone.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        # What is checked is what is handed on, whatever happens to the original meanwhile.
        found = _copy_weights(tracking_uri, uri, Path(scratch))
        actual = digest_of(listing(found))
        if actual != digest:
            raise ChangedError(
                f"the weights at {uri} have digest {actual}, expected {digest or 'one that is missing'}: they were "
                "changed after they were recorded; restore them, or train anew with --force"
            )
        target.mkdir(exist_ok=True)
        for path in found.iterdir():
            path.rename(target / path.name)
    return target


def _copy_weights(tracking_uri: str, uri: str, scratch: Path) -> Path:
    if not uri.startswith("models:/"):
        # A folder that a person named may be one of links, such as a cache of the Hub.
        return _copy(Path(uri), scratch / "copy", links=True)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        # Not by its models:/ name: MLflow then fetches the whole model folder and writes a file of its own into it.
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        source = client.get_model_version_download_uri(*uri.removeprefix("models:/").split("/"))
    except MlflowException as error:
        reason = without_credentials(str(error))
        raise GoneError(f"{uri} is not in the registry at {without_credentials(tracking_uri)}: {reason}") from error
    found = Artifacts(tracking_uri, None, scratch).open(f"{source}/{WEIGHTS_FOLDER}")
    return found if found.is_relative_to(scratch) else _copy(found, scratch / "copy", links=False)


def _copy(source: Path, target: Path, links: bool) -> Path:
    with reaching(str(source)):
        for name in _files(source, links):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
    return target


def _files(folder: Path, links: bool = False) -> Iterator[str]:
    """The relative names of all files, or the empty one of a file; ``links`` to regular files count as files."""
    pending, count, size = [""], 0, 0
    if stat.S_ISREG(folder.stat(follow_symlinks=links).st_mode):
        yield pending.pop()
    while pending:
        under = pending.pop()
        for entry in os.scandir(folder / under):
            name = f"{under}/{entry.name}" if under else entry.name
            facts = entry.stat(follow_symlinks=links)
            if stat.S_ISDIR(facts.st_mode) and not entry.is_symlink():
                pending.append(name)
                continue
            if not stat.S_ISREG(facts.st_mode):
                raise ChangedError(f"{folder / name} is neither a file nor a folder of its own, so there is no digest")
            count, size = count + 1, size + facts.st_size
            if count > MOST_FILES or size > MOST_BYTES:
                raise ChangedError(f"{folder} holds more than {MOST_FILES} files or {MOST_BYTES} bytes: not read")
            yield name


def _digest(path: Path) -> tuple[str, int]:
    with regular(path) as stream:
        if (size := os.fstat(stream.fileno()).st_size) > MOST_BYTES:
            raise ChangedError(f"{path} holds more than {MOST_BYTES} bytes: not read")
        return PREFIX + hashlib.file_digest(stream, "sha256").hexdigest(), size


@contextmanager
def regular(path: Path) -> Iterator[io.BufferedReader]:
    """A regular file, opened without following a link, waiting for a pipe, or touching a device."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ChangedError(f"{path} is neither a file nor a folder of its own, so there is no digest")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ChangedError(f"{path} became something else while it was read")
        yield stream
