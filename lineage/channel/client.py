"""Reading a channel: TUF's own client, from wherever a channel lies."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, Root, Targets, Timestamp
from tuf.ngclient import Updater
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

from lineage.channel.champion import CHAMPION, Champion
from lineage.channel.errors import ChannelError, ExpiredError, in_words
from lineage.channel.places import open_place
from lineage.files import exclusive
from lineage.places import without_credentials


class Channel:
    """A channel, followed from this machine.

    Args:
        root: bytes of a ``<n>.root.json`` of the channel, from whoever keeps the ledger's root key: never from the
            channel itself. Later ones are found from there.
        url: ``https://…``, ``file:///…``, a path or ``s3://bucket/prefix``.
        state: a folder of this channel's own. What was seen of it is kept there, so that an older channel is noticed;
            processes may share it.

    One thread at a time may use it; each may have its own.
    """

    def __init__(self, root: bytes, url: str, state: Path) -> None:
        self.root, self.url, self.state = root, url.rstrip("/"), state
        self.name = without_credentials(self.url)
        """The address without a password."""
        self.expires: datetime | None = None
        """Until when what `refresh` read is vouched for; None before the first."""
        self.timestamp, self.targets = Timestamp(), Targets()
        self._updater: Updater | None = None

    def refresh(self) -> None:
        """Read and check what the channel says now. Where this fails, what was read before stays.

        Raises:
            ExpiredError: nobody vouches for it any more.
            UnreachableError: it does not answer.
            ChannelError: it was rolled back, forked, mixed or tampered with, signed by other keys, or is no channel.
        """
        kept, fetcher = self.state / "metadata", _Fetcher(self.url)
        address = (str(kept), f"{self.url}/metadata", None, f"{self.url}/targets", fetcher)
        with in_words(self.name), exclusive(self.state / "lock"):
            updater = Updater(*address, bootstrap=self.root)
            updater.refresh()
            timestamp = Metadata[Timestamp].from_file(str(kept / "timestamp.json")).signed
            targets = Metadata[Targets].from_file(str(kept / "targets.json")).signed
        if Metadata[Timestamp].from_bytes(fetcher.timestamp).signed != timestamp:
            # TUF's client keeps what it saw first, and does not say so.
            raise ChannelError(f"the channel {self.name} was forked: another state {timestamp.version} was seen before")
        self._updater, self.targets = updater, targets
        self.timestamp, self.expires = timestamp, timestamp.expires

    def models(self) -> list[str]:
        """The models that the channel tells of."""
        return sorted(path.partition("/")[0] for path in self.targets.targets if path.endswith(f"/{CHAMPION}"))

    def champion(self, model: str) -> Champion:
        """Who is champion of ``model``; one without a version where nobody is.

        Raises:
            ChannelError: the channel does not know the model, or contradicts itself.
        """
        found = Champion.read(self.document(model, CHAMPION))
        signed = self.targets.targets[f"{model}/{CHAMPION}"].custom
        if found.model != model or signed != {"withdrawn": list(found.withdrawn)}:
            raise ChannelError(f"the channel {self.name} contradicts itself: it says of {model} {signed}, and {found}")
        return found

    def document(self, model: str, name: str) -> bytes:
        """A document of ``model``: ``champion.json``, ``verdict.dsse.json``, ``model.sig``.

        Raises:
            ExpiredError: nobody vouches for what was read last.
            ChannelError: there is no such document, or it is not the one that was signed.
        """
        if self._updater is None:
            self.refresh()
        assert self._updater
        if self.timestamp.is_expired():
            raise ExpiredError(f"what was read of the channel {self.name} expired at {self.expires}; refresh it")
        if (info := self.targets.targets.get(f"{model}/{name}")) is None:
            told = f"the channel {self.name} has no {name} of {model}"
            raise ChannelError(f"{told}; it knows {self.models() or 'nobody'}")
        with in_words(self.name), tempfile.TemporaryDirectory() as folder:
            return Path(self._updater.download_target(info, f"{folder}/document")).read_bytes()


class _Fetcher(Urllib3Fetcher):
    """Fetches from wherever a channel lies, and keeps the timestamp as it came."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.timestamp = url, b""
        self.place = None if url.startswith(("http://", "https://")) else open_place(url)

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield from self.place.chunks(url.removeprefix(f"{self.url}/")) if self.place else super()._fetch(url)
        except (FileNotFoundError, PermissionError) as error:
            raise DownloadHTTPError(f"{url} is not there", 404) from error

    def download_bytes(self, url: str, max_length: int) -> bytes:
        content = super().download_bytes(url, max_length)
        if url.endswith("/timestamp.json"):
            self.timestamp = content
        return content


def champion(root: bytes, url: str, model: str, state: Path) -> Champion:
    """Who is champion of ``model`` now, as the channel at ``url`` says; see `Channel`.

    Raises:
        ChannelError: the channel does not hold, cannot be reached, or does not know the model.
    """
    return Channel(root, url, state).champion(model)


def verify(root: bytes, url: str, state: Path | None = None) -> list[str]:
    """Read all of a channel; says in words what holds and what is not proven.

    Args:
        state: what this reader saw of it before; None: nothing.

    Raises:
        ChannelError: something does not hold; the message names it.
    """
    with tempfile.TemporaryDirectory() as folder:
        channel = Channel(root, url, state or Path(folder))
        channel.refresh()
        newest = Metadata[Root].from_file(str(channel.state / "metadata" / "root.json")).signed
        keys = ", ".join(f"{role} {' '.join(id[:12] for id in of.keyids)}" for role, of in sorted(newest.roles.items()))
        said = [f"root {newest.version} and all signatures hold; keys: {keys}"]
        said.append(f"state {channel.timestamp.version} is vouched for until {channel.expires}")
        for path in sorted(channel.targets.targets):
            model, _, name = path.partition("/")
            channel.document(model, name)
        for model in channel.models():
            found = channel.champion(model)
            standing = f"version {found.version}, {found.folder}" if found.version else "none"
            said.append(f"{model}: champion: {standing}; ledger {found.ledger}, entry {found.entry}")
            said += [f"{model}: withdrawn: {digest}" for digest in found.withdrawn]
    return said if state else [*said, "not proven: that no newer state was seen before; give a --state"]
