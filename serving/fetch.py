"""Bringing a champion's model folder here, file by file, each by its digest.

Files that a fetch left half done are taken up again where their digest is right. A folder gets its name, which is its
digest, once all of it was checked; a folder that is there is checked again before it is loaded.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lineage.artifacts import WEIGHTS_FOLDER, Listed, check_loader, listing, weights_digest
from lineage.channel.champion import Champion, File
from lineage.digests import PREFIX, LineageError, hex_of
from lineage.places import without_credentials
from lineage.statements import signed_files
from training.families.drawing import PRECISION

SPARE = 64 * 2**20
"""Bytes of disk that are left free."""


class FetchError(LineageError):
    """A champion cannot be brought here now: its place, the network or the disk; trying again may help."""


class UntrueError(LineageError):
    """What lies at a champion's place is not what the channel names, or nobody who counts signed it."""


def fetch(champion: Champion, store: Path, artifacts: str, stop: threading.Event) -> Path:
    """Bring the model folder of ``champion`` to ``store`` and check it; gives its path.

    Args:
        artifacts: what stands for ``mlflow-artifacts:`` in the champion's place.
        stop: set by another thread that does not want it any more.

    Raises:
        FetchError: it cannot be had, or there is no room for it.
        UntrueError: a file is not the one that the channel names.
    """
    assert champion.folder
    target = store / hex_of(champion.folder)
    partial = target.with_suffix(".partial")
    if target.exists():
        if listing(target) == _named(champion):
            return target
        shutil.rmtree(target)  # it was changed where it lay; what is loaded is fetched anew
    partial.mkdir(parents=True, exist_ok=True)
    missing = [file for file in champion.files if not _holds(partial / file.name, file)]
    needed = sum(file.size for file in missing)
    if (free := shutil.disk_usage(partial).free - SPARE) < needed:
        raise FetchError(f"version {champion.version} needs {needed} bytes of disk, {store} has {free}: make room")
    for file in missing:
        _bring(champion, file, partial / file.name, artifacts, stop)
    if listing(partial) != _named(champion):
        shutil.rmtree(partial)
        raise UntrueError(f"{partial} holds files that version {champion.version} does not have; removed")
    partial.rename(target)
    return target


def _bring(champion: Champion, file: File, target: Path, artifacts: str, stop: threading.Event) -> None:
    """Copy one file; a half or a wrong one is not left behind."""
    place = champion.place.rstrip("/")
    if artifacts and place.startswith("mlflow-artifacts:"):
        place = artifacts.rstrip("/") + "/" + place.removeprefix("mlflow-artifacts:").lstrip("/")
    where = without_credentials(f"{place}/{file.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size, done = hashlib.sha256(), 0, False
    try:
        with target.open("wb") as stream:
            for chunk in _chunks(place, file.name):
                if stop.is_set():
                    raise FetchError(f"version {champion.version} is not wanted any more")
                size += len(chunk)
                if size > file.size:
                    break
                digest.update(chunk)
                stream.write(chunk)
        done = size == file.size and PREFIX + digest.hexdigest() == file.digest
        if not done:
            raise UntrueError(f"{where} is not the file that the channel names ({file.size} bytes, {file.digest})")
    except LineageError:
        raise
    except Exception as error:
        # Stores raise classes of their own libraries, which are not imported here.
        reason = without_credentials(f"{type(error).__name__}: {error}".splitlines()[0])
        raise FetchError(f"{where} cannot be fetched: {reason}") from error
    finally:
        if not done:
            target.unlink(missing_ok=True)


def _chunks(place: str, name: str) -> Iterator[bytes]:
    from urllib.parse import quote

    from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

    from lineage.channel.places import open_place

    if place.startswith(("http://", "https://")):
        yield from Urllib3Fetcher().fetch(f"{place}/{quote(name)}")
    else:
        yield from open_place(place).chunks(name)


def _named(champion: Champion) -> list[Listed]:
    return [Listed(one.name, one.digest, one.size) for one in champion.files]


def _holds(path: Path, file: File) -> bool:
    return path.is_file() and listing(path) == [Listed("", file.digest, file.size)]


def check_model(champion: Champion, folder: Path, signature: bytes | None, keys: Sequence[Any]) -> dict[str, Any]:
    """Check what digests do not say: that it is a model of ours and was signed; gives how it was judged.

    Args:
        signature: the channel's ``model.sig``.
        keys: those of which one must have signed; none: nobody has to.

    Raises:
        UntrueError: the signature does not hold, or the folder brings code.
    """
    files = _named(champion)
    inner = {one.name.removeprefix(f"{WEIGHTS_FOLDER}/"): one.digest for one in files if WEIGHTS_FOLDER in one.name}
    try:
        if weights_digest(files) != champion.weights:
            raise UntrueError(f"the weights of version {champion.version} have not the digest {champion.weights}")
        loader = check_loader(folder, files)
        if keys:
            signed = signed_files(signature or b"", keys)
            if signed != {name: digest for name, digest in inner.items() if not Path(name).name.startswith(".git")}:
                raise UntrueError(f"the model's signature is about other files than version {champion.version} has")
        config = loader["config"]
        sampling: dict[str, Any] = {"precision": config.get("precision", PRECISION)} | config["sampling"]
        return sampling | {
            name: sampling[name] for name in ("num_inference_steps", "guidance_scale", "height", "width")
        }
    except UntrueError:
        raise
    except LineageError as error:
        raise UntrueError(f"version {champion.version} of {champion.model}: {error}") from error
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise UntrueError(f"MLmodel of version {champion.version} does not say how it was judged: {error}") from error


def tidy(store: Path, keep: set[str]) -> None:
    """Remove fetched folders, whole and half, but those of the digests ``keep``."""
    names = {hex_of(digest) for digest in keep}
    for path in store.iterdir() if store.exists() else ():
        if path.is_dir() and path.name.partition(".")[0] not in names:
            shutil.rmtree(path)
