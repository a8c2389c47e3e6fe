"""What the ledger decided, put into the promotion channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from lineage.artifacts import LOADER_FILE, Listed
from lineage.digests import LineageError, digest_bytes
from lineage.entries import Registered, entry_digest
from lineage.ledger import Ledger
from lineage.rules import State
from lineage.statements import VERDICT, VERDICT_FILE, open_statement

if TYPE_CHECKING:
    from lineage.channel.champion import Champion
    from lineage.channel.publisher import Publisher

DOCUMENTS = (f"verdict/{VERDICT_FILE}", "model.sig")
"""Evidence of the champion that the channel hands on."""


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
    if published == champion and not renew:
        return []
    told = channel.publish(champion, documents)  # where all is there already, it is vouched for anew
    if published == champion:
        return told
    return [f"channel: {f'version {champion.version}' if champion.version else 'no version'} is champion of {model}"]


def _champion(ledger: Ledger, state: State, model: str, release: Release) -> tuple[Champion, Mapping[str, bytes]]:
    from lineage.channel.champion import Champion, File

    entry, standing = state.decided(model) or 0, state.champion(model)
    moved = ledger.store.entries(entry, entry + 1)[0]
    folders = {r.folder for r in state.versions.get(model, {}).values() if r.candidate in state.withdrawn}
    said = {
        "model": model,
        "ledger": state.ledger,
        "entry": entry,
        "head": entry_digest(moved),
        "size": entry + 1,
        "time": moved.time,
        "withdrawn": sorted(state.withdrawn | folders),
    }
    if standing is None:
        return Champion.model_validate(said), {}
    registered = state.versions[model][standing.version]
    place, files, documents = release(registered, DOCUMENTS)
    if digest_bytes(documents[VERDICT_FILE]) != registered.verdict:
        raise LineageError(f"the verdict beside version {standing.version} of {model} is not the ledger's: restore it")
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
