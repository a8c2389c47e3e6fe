"""What the ledger decided, put into the promotion channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from lineage.artifacts import LOADER_FILE, Listed
from lineage.entries import Registered
from lineage.ledger import Ledger, now
from lineage.rules import State
from lineage.statements import VERDICT, VERDICT_FILE, open_statement

if TYPE_CHECKING:
    from lineage.channel.champion import Champion
    from lineage.channel.publisher import Publisher

DOCUMENTS = (f"verdict/{VERDICT_FILE}", "model.sig")
"""Evidence of the champion that the channel hands on."""
CHANGING = {"size", "time"}
"""Fields that say when something was announced, not what."""


class Release(Protocol):
    """Gives what a version consists of, checked against its registration."""

    def __call__(
        self, registered: Registered, names: Sequence[str]
    ) -> tuple[str, Sequence[Listed], Mapping[str, bytes]]:
        """URI of the model folder, its files, and the evidence called ``names`` by file name."""
        ...


def announce(ledger: Ledger, model: str, channel: Publisher, release: Release, renew: bool) -> list[str]:
    """Have the channel say who is champion of ``model``; says in words what had to change.

    Args:
        renew: also where nothing changed, for another while.

    Raises:
        LineageError: the champion's files are not those that were registered, or the channel cannot be written.
    """
    from lineage.channel.errors import ChannelError, UnreachableError

    state = ledger.refresh()
    if state.decided(model) is None:
        return []
    champion, documents = _champion(ledger, state, model, release)
    try:
        published = channel.published(model)
    except UnreachableError:
        raise
    except ChannelError:
        published = None  # by other keys than today's, or damaged: publishing begins anew
    if published and published.model_dump(exclude=CHANGING) == champion.model_dump(exclude=CHANGING):
        if renew:
            channel.renew()
        return []
    channel.publish(champion, documents)
    return [f"channel: {f'version {champion.version}' if champion.version else 'no version'} is champion of {model}"]


def _champion(ledger: Ledger, state: State, model: str, release: Release) -> tuple[Champion, Mapping[str, bytes]]:
    from lineage.channel.champion import Champion, File

    entry, standing = state.decided(model) or 0, state.champion(model)
    withdrawn = [r for r in state.versions.get(model, {}).values() if r.candidate in state.withdrawn]
    said = {
        "model": model,
        "ledger": state.ledger,
        "entry": entry,
        "head": ledger.digest_at(entry),
        "size": state.size,
        "time": now(),
        "withdrawn": sorted({digest for one in withdrawn for digest in (one.candidate, one.folder)}),
    }
    if standing is None:
        return Champion.model_validate(said), {}
    registered = state.versions[model][standing.version]
    place, files, documents = release(registered, DOCUMENTS)
    verdict = open_statement(documents[VERDICT_FILE], VERDICT, state.keys_of("gate")).predicate
    said |= {
        "version": standing.version,
        "weights": registered.candidate,
        "folder": registered.folder,
        "place": place,
        "files": [File(name=f.name, size=f.size, digest=f.digest) for f in files if f.name != LOADER_FILE],
        "verdict": registered.verdict,
        "decision": verdict["decision"],
        "figures": verdict["figures"],
    }
    return Champion.model_validate(said), documents
