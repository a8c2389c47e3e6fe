"""What repeats the ledger: the registry's tags and aliases, the channel, the witness.

The ledger decides. These only follow it, and are made again until they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lineage.artifacts import LOADER_FILE
from lineage.channel.champion import Champion, File
from lineage.channel.publisher import Publisher
from lineage.digests import LineageError, digest_bytes
from lineage.entries import Judged, LedgerError, Registered, entry_digest
from lineage.faults import boundary
from lineage.ledger import Ledger
from lineage.places import without_credentials
from lineage.registry import CHALLENGER, CHAMPION
from lineage.state import Standing, State
from lineage.statements import VERDICT, VERDICT_FILE, open_statement
from lineage.version_files import VersionFiles
from lineage.witness import WitnessWriter

DOCUMENTS = (f"verdict/{VERDICT_FILE}", "model.sig")
"""Evidence of the champion that the channel hands on."""
ROUNDS = 10
"""How often a projection is made again because something was decided meanwhile."""


class Followed(NamedTuple):
    """What following the ledger came to."""

    said: list[str]
    """In words, what had to change and what did not follow."""
    settled: bool
    """Whether everything agrees with the ledger now."""


@dataclass(frozen=True)
class Projection:
    """Makes everything else repeat what the ledger says of one model."""

    ledger: Ledger
    files: VersionFiles
    channel: Publisher | None = None
    witness: WitnessWriter | None = None

    @property
    def model(self) -> str:
        """The registered model."""
        return self.files.registry.model_name

    def follow(self, moved: str | None, usable: bool = True) -> Followed:
        """Make tags, aliases and channel repeat the ledger, and tell the witness.

        What does not follow is told and costs nothing: the ledger has decided, and reconciling tries again.

        Args:
            moved: the version that was moved; None: look at all versions, and vouch for the channel anew.
            usable: whether the champion's files are what they should be; if not, nobody is to load them by its alias.
        """
        said, settled = list[str](), True
        follows: dict[str, Callable[[], list[str]]] = {
            "registry": lambda: self._settle(lambda state: self._tell_registry(state, moved, usable)),
            "channel": lambda: self._settle(lambda state: self._tell_channel(state, renew=moved is None)),
            "witness": self._tell_witness,
        }
        for name, follow in follows.items():
            try:
                said += follow()
            except Exception as error:  # of whatever library the store behind it uses
                reason = without_credentials(str(error)) or type(error).__name__
                said.append(f"the {name} did not follow the ledger: {reason}; run: triptych reconcile")
                settled = False
        return Followed(said, settled)

    def _settle(self, project: Callable[[State], list[str]]) -> list[str]:
        """Project the ledger until nothing was decided meanwhile: reading a model takes a while."""
        said: list[str] = []
        for _ in range(ROUNDS):
            state = self.ledger.refresh()
            decided = state.decided(self.model), state.champion(self.model)
            said += project(state)
            state = self.ledger.refresh()
            if decided == (state.decided(self.model), state.champion(self.model)):
                return said
        raise LedgerError(f"the champion of {self.model} moves faster than it can be followed")

    def _tell_registry(self, state: State, moved: str | None, usable: bool) -> list[str]:
        registry, champion = self.files.registry, state.champion(self.model)
        holder = registry.aliases().get(CHAMPION)
        if moved is None:
            versions = registry.versions()
        else:
            numbers = {moved, holder, champion.version if champion else None} - {None}
            versions = [found for number in numbers if (found := registry.version(str(number)))]
        said = []
        for version in versions:
            tags = tags_of(state, self.model, version.number)
            wrong = {name: value for name, value in tags.items() if version.tags.get(name) != value}
            registry.tag(version, wrong)
            said += [f"version {version.number}: tag {name} set to {value}" for name, value in wrong.items()]
        boundary("after-tags")
        wanted = next((v.number for v in versions if usable and champion and v.number == champion.version), None)
        if holder != wanted:
            registry.point(CHAMPION, wanted)
            was, now = (f"version {number}" if number else "no version" for number in (holder, wanted))
            said.append(f"alias {CHAMPION} was on {was}, is on {now}")
        if any(version.number == wanted and CHALLENGER in version.aliases for version in versions):
            registry.point(CHALLENGER, None)
        boundary("after-alias")
        return said

    def _tell_channel(self, state: State, renew: bool) -> list[str]:
        said: list[str] = []
        if self.channel and state.decided(self.model) is not None:
            said = self.channel.publish(*self._champion(state), renew)
        boundary("after-channel")
        return said

    def _champion(self, state: State) -> tuple[Champion, Mapping[str, bytes]]:
        """What the channel says of the model, and the documents beside it."""
        entry, standing = state.decided(self.model) or 0, state.champion(self.model)
        moved = self.ledger.store.entries(entry, entry + 1)[0]
        folders = {r.folder for r in state.versions.get(self.model, {}).values() if r.candidate in state.withdrawn}
        said = {
            "model": self.model,
            "ledger": state.ledger,
            "entry": entry,
            "head": entry_digest(moved),
            "size": entry + 1,
            "time": moved.time,
            "withdrawn": sorted(state.withdrawn | folders),
        }
        if standing is None:
            return Champion.model_validate(said), {}
        registered = state.versions[self.model][standing.version]
        files, documents = self.files.check(registered), self.files.documents(registered, DOCUMENTS)
        if digest_bytes(documents[VERDICT_FILE]) != registered.verdict:
            raise LineageError(f"the verdict beside {registered.name} is not the ledger's: restore it")
        verdict = open_statement(documents[VERDICT_FILE], VERDICT, state.keys_of("gate")).predicate
        said |= {
            "version": standing.version,
            "weights": registered.candidate,
            "folder": registered.folder,
            "place": self.files.version(registered).source,
            "files": [File(name=f.name, size=f.size, digest=f.digest) for f in files if f.name != LOADER_FILE],
            "verdict": registered.verdict,
            "decision": verdict["decision"],
            "figures": verdict["figures"],
        }
        return Champion.model_validate(said), documents

    def _tell_witness(self) -> list[str]:
        if self.witness:
            self.witness.write(self.ledger.refresh())
            boundary("after-checkpoint")
        return []


def tags_of(state: State, model: str, number: str) -> dict[str, str]:
    """What our tags on a version say, as the ledger has it."""
    registered = state.registered(model, number)
    if registered is None:
        return {"standing": "not in the ledger"}
    return registration_tags(registered, state.verdicts[registered.verdict], state.standing(model, number))


def registration_tags(registered: Registered, judged: Judged, standing: Standing = "candidate") -> dict[str, str]:
    """What our tags say of a version that is, or is about to be, in the ledger, which has the rest."""
    copied = {"candidate": registered.candidate, "verdict": registered.verdict}
    return {"decision": judged.decision, "standing": standing, "incumbent": judged.incumbent, **copied}
