"""Where a channel is written: a folder or ``s3://bucket/prefix``.

Everything is written by one operation, compare and swap: files that never change are swapped with nothing, and the one
that does, timestamp.json, with what was read before. So of two publishers one wins, and the other reads again. fsspec,
which the rest of the house uses, has no such operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lineage.files import exclusive, write_whole

CHUNK = 64 * 1024
LARGEST = 64 * 1024 * 1024
"""Bytes of the largest file that a publisher reads."""


class Folder:
    """A folder on this machine or a mounted one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's bytes.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
        """
        path = self._inside(name)
        if path.exists() and not path.is_file():
            raise OSError(f"{path} is no regular file")  # a pipe would hold its reader for ever
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk

    def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        """Write ``new``, whole or not at all, where ``old`` (None: nothing) is there; whether it was.

        Raises:
            OSError: it cannot be written.
        """
        with exclusive(self.path / ".lock"):
            same = read(self, name) == old
            if same:
                write_whole(self._inside(name), new, 0o644)
            return same

    def _inside(self, name: str) -> Path:
        """Where a file lies, which no link leads out of the channel."""
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise OSError(f"{path} leads out of the channel")
        return path


class Bucket:
    """``s3://bucket/prefix``. Credentials and endpoint come from the AWS environment."""

    def __init__(self, uri: str) -> None:
        import boto3

        self.bucket, _, self.prefix = uri.removeprefix("s3://").rstrip("/").partition("/")
        self.client = boto3.client("s3")

    def chunks(self, name: str) -> Iterator[bytes]:
        """As a folder's."""
        with _as_of_files():
            yield from self.client.get_object(**self._named(name))["Body"].iter_chunks(CHUNK)

    def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        """As a folder's, by conditional writes."""
        condition = {"IfNoneMatch": "*"}
        try:
            with _as_of_files():
                if old is not None:
                    found = self.client.get_object(**self._named(name))
                    if found["Body"].read(len(old) + 1) != old:
                        return False
                    condition = {"IfMatch": found["ETag"]}
                self.client.put_object(**self._named(name), Body=new, **condition)
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def _named(self, name: str) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{name}".lstrip("/")}


Place = Folder | Bucket
S3_ERRORS = {
    "NoSuchKey": FileNotFoundError,
    "AccessDenied": PermissionError,
    "PreconditionFailed": FileExistsError,
    "ConditionalRequestConflict": FileExistsError,
}


@contextmanager
def _as_of_files() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise S3_ERRORS.get(error.response["Error"]["Code"], OSError)(str(error)) from error
    except BotoCoreError as error:
        raise OSError(str(error)) from error


def open_place(uri: str) -> Place:
    """The place at ``uri``: a path, ``file:///…`` or ``s3://bucket/prefix``."""
    if uri.startswith("s3://"):
        return Bucket(uri)
    return Folder(Path(unquote(urlsplit(uri).path) if uri.startswith("file:") else uri))


def read(place: Place, name: str) -> bytes | None:
    """A file's bytes; None where there is none.

    Raises:
        OSError: it cannot be read, or has more than `LARGEST` bytes.
    """
    content = bytearray()
    try:
        for chunk in place.chunks(name):
            content += chunk
            if len(content) > LARGEST:
                raise OSError(f"{name} has more than {LARGEST} bytes; nothing in a channel has")
    except FileNotFoundError:
        return None
    return bytes(content)
