"""Moving the champion of a model: into the ledger first, then into the registry's tags and aliases and the channel.

The entry decides. What follows it only repeats the ledger, and is made again by `reconcile` until it agrees.

    mover = open_mover(context, registry)
    mover.move("promote", "3")
    mover.move("rollback", "2", "version 3 draws no glasses")
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from securesystemslib.signer import Signer

from lineage.artifacts import (
    Artifacts,
    ChangedError,
    Listed,
    UnreachableError,
    check_loader,
    digest_of,
    folder_digest,
    listing,
    read_file,
    weights_digest,
    without_credentials,
)
from lineage.digests import LineageError, digest_bytes
from lineage.entries import Action, Judged, LedgerError, Moved, Registered
from lineage.faults import boundary
from lineage.ledger import Ledger
from lineage.registry import CHALLENGER, CHAMPION, Registry, Version
from lineage.rules import Standing, State
from lineage.stores import ServerStore
from lineage.witness import WitnessWriter

if TYPE_CHECKING:
    from lineage.channel.publisher import Publisher

BOUNDARIES = ("before-moved", "after-moved", "after-tags", "after-alias", "after-channel", "after-checkpoint")
MOVE_PATIENCE = 600.0
"""Seconds: a server reads and checks all weights before it moves."""
MOST_DOCUMENT = 16 * 2**20
"""Bytes of a document that the channel hands on."""
ROUNDS = 10
"""How often the projections are made again because the champion moved meanwhile."""


class Mover(Protocol):
    """Moves the champion of one model."""

    def move(self, action: Action, version: str, reason: str = "") -> list[str]:
        """Make ``version`` champion, or withdraw it. Repeating it changes nothing.

        Args:
            reason: why; all but ``promote`` need one.

        Returns:
            What was done, in words, and what did not follow.

        Raises:
            StaleError: the verdict was given against another incumbent than today's champion.
            LedgerError: the ledger's rules refuse it.
            LineageError: the version's files are not those that were registered.
        """
        ...

    def reconcile(self) -> list[str]:
        """Make registry and channel agree with the ledger; says in words what did not, and what cannot be trusted."""
        ...


@dataclass
class LocalMover:
    """Moves by the holder of the promotion key."""

    ledger: Ledger
    signer: Signer
    registry: Registry
    user: str
    witness: WitnessWriter | None = None
    channel: Publisher | None = None
    artifacts: Path | None = None
    """Where ``mlflow-artifacts:`` places lie on this machine."""
    run: str = ""
    """The run that promotes its own candidate; empty: a person moves the champion."""
    _checked: dict[str, list[Listed]] = field(default_factory=dict)
    """Digest of a model folder -> its files."""

    @property
    def model(self) -> str:
        """The registered model."""
        return self.registry.model_name

    def move(self, action: Action, version: str, reason: str = "") -> list[str]:
        """See `Mover`."""
        state = self.ledger.refresh()
        self._checked.clear()
        registered = state.registered(self.model, version)
        if registered is None:
            raise LedgerError(
                f"version {version} of {self.model} is not in the ledger; register it through the pipeline"
            )
        what, champion = f"{action} of version {version} of {self.model}", state.champion(self.model)
        standing = state.standing(self.model, version)
        if standing == ("withdrawn" if action == "withdraw" else "champion"):
            if action != "withdraw":
                self._check_files(registered)  # no alias is set on files that were not looked at
            return [f"{what}: it is {standing} already", *self._follow(version)]
        judged = state.verdicts[registered.verdict]
        moved = Moved(
            action=action,
            model=self.model,
            version=version,
            candidate=registered.candidate,
            previous_version=champion.version if champion else "",
            previous=champion.candidate if champion else (judged.incumbent if action == "promote" else ""),
            verdict=registered.verdict if action == "promote" else "",
            user=self.user,
            reason=reason,
            run=self.run,
        )
        state.check_move(moved)  # before all its files are read
        if action != "withdraw":
            self._check_files(registered)
        boundary("before-moved")
        self.ledger.append(moved, self.signer)
        boundary("after-moved")
        said = [f"{what}: done", *self._follow(version)]
        for model, versions in self.ledger.state.versions.items() if action == "withdraw" else ():
            if model != self.model and any(one.candidate == registered.candidate for one in versions.values()):
                other = Registry(self.registry.tracking_uri, model)
                said += replace(self, registry=other, _checked={})._follow(None)
        return said

    def reconcile(self) -> list[str]:
        """See `Mover`."""
        self._checked.clear()
        state = self.ledger.refresh()
        champion, said, usable = state.champion(self.model), list[str](), True
        if champion:
            try:
                self._check_files(state.versions[self.model][champion.version])
            except LineageError as error:
                said.append(f"the champion, version {champion.version}, cannot be trusted: {error}")
                usable = isinstance(error, UnreachableError)
        said += self._follow(None, usable)
        known = state.versions.get(self.model, {})
        strangers = [version.number for version in self.registry.versions() if version.number not in known]
        return said + [f"version {n} of {self.model} is in the registry but not in the ledger" for n in strangers]

    def _check_files(self, registered: Registered) -> list[Listed]:
        """The files of a version's model folder, which are those that were registered.

        Raises:
            LineageError: they are not, or they cannot be read.
        """
        if registered.folder in self._checked:
            return self._checked[registered.folder]
        version = self._version(registered)
        with self._reader() as reader:
            folder = reader.open(version.source)
            files = listing(folder)
            self._compare(registered, version, files)
            check_loader(folder, files)
        self._checked[registered.folder] = files
        return files

    def _compare(self, registered: Registered, version: Version, files: list[Listed]) -> None:
        what = f"version {registered.version} of {self.model}"
        if weights_digest(files) != registered.candidate:
            raise ChangedError(
                f"the weights of {what} were changed: digest {weights_digest(files)}, the ledger says "
                f"{registered.candidate}; restore them"
            )
        if folder_digest(files) != registered.folder:
            raise ChangedError(
                f"what lies around the weights of {what} was changed: digest {folder_digest(files)}, the ledger says "
                f"{registered.folder}; whoever loads the version would run it: restore {version.source}"
            )

    def _version(self, registered: Registered) -> Version:
        found = self.registry.version(registered.version)
        if found is None:
            raise LineageError(f"version {registered.version} of {self.model} is not in the registry any more")
        if found.mlflow_run != registered.mlflow_run:
            raise LineageError(
                f"version {registered.version} of {self.model} was deleted and made again from another run"
            )
        loaded = self.registry.client.get_model_version_download_uri(self.model, registered.version)
        if loaded != found.source:
            raise LineageError(
                f"MLflow shows version {registered.version} of {self.model} at {found.source} and loads it from "
                f"{loaded}: its row was changed; restore it"
            )
        return found

    @contextmanager
    def _reader(self) -> Iterator[Artifacts]:
        with tempfile.TemporaryDirectory() as scratch:
            yield Artifacts(self.registry.tracking_uri, self.artifacts, Path(scratch))

    def _follow(self, moved: str | None, usable: bool = True) -> list[str]:
        """Make tags, aliases and channel repeat the ledger, and tell the witness; gives what had to change.

        What does not follow is told and costs nothing: the ledger has decided, and `reconcile` tries again.

        Args:
            moved: the version that was moved; None: look at all versions, and vouch for the channel anew.
            usable: whether the champion's files are what they should be; if not, nobody is to load them by its alias.
        """
        said: list[str] = []
        follows: dict[str, Callable[[], list[str]]] = {
            "registry": lambda: self._project(moved, usable),
            "channel": lambda: self._publish(renew=moved is None),
            "witness": self._tell_witness,
        }
        for name, follow in follows.items():
            try:
                said += follow()
            except Exception as error:  # of whatever library the store behind it uses
                reason = without_credentials(str(error)) or type(error).__name__
                said.append(f"the {name} did not follow the ledger: {reason}; run: triptych reconcile")
        return said

    def _project(self, moved: str | None, usable: bool) -> list[str]:
        said: list[str] = []
        for _ in range(ROUNDS):
            state = self.ledger.refresh()
            champion = state.champion(self.model)
            said += self._project_once(state, moved, usable)
            if self.ledger.refresh().champion(self.model) == champion:
                return said
        raise LedgerError(f"the champion of {self.model} moves faster than its alias")

    def _project_once(self, state: State, moved: str | None, usable: bool) -> list[str]:
        champion, holder = state.champion(self.model), self.registry.aliases().get(CHAMPION)
        if moved is None:
            versions = self.registry.versions()
        else:
            numbers = {moved, holder, champion.version if champion else None} - {None}
            versions = [found for number in numbers if (found := self.registry.version(str(number)))]
        said = []
        for version in versions:
            tags = tags_of(state, self.model, version.number)
            wrong = {name: value for name, value in tags.items() if version.tags.get(name) != value}
            self.registry.tag(version, wrong)
            said += [f"version {version.number}: tag {name} set to {value}" for name, value in wrong.items()]
        boundary("after-tags")
        wanted = next((v.number for v in versions if usable and champion and v.number == champion.version), None)
        if holder != wanted:
            self.registry.point(CHAMPION, wanted)
            was, now = (f"version {number}" if number else "no version" for number in (holder, wanted))
            said.append(f"alias {CHAMPION} was on {was}, is on {now}")
        if any(version.number == wanted and CHALLENGER in version.aliases for version in versions):
            self.registry.point(CHALLENGER, None)
        boundary("after-alias")
        return said

    def _publish(self, renew: bool) -> list[str]:
        if self.channel is None:
            return []
        from lineage.announcement import announce

        said: list[str] = []
        for _ in range(ROUNDS):
            decided = self.ledger.refresh().decided(self.model)
            said += announce(self.ledger, self.model, self.channel, self._released, renew)
            if self.ledger.refresh().decided(self.model) == decided:
                break  # else what was announced is old: reading a model takes a while
        boundary("after-channel")
        return said

    def _released(self, registered: Registered, names: Sequence[str]) -> tuple[str, list[Listed], dict[str, bytes]]:
        """Where a version's model folder lies, its files, and the evidence called ``names``, all checked."""
        version, files = self._version(registered), self._check_files(registered)
        documents: dict[str, bytes] = {}
        with self._reader() as reader:
            for name in names:
                top = name.split("/", 1)[0]
                if top not in registered.evidence:
                    continue
                place, inner = reader.open(f"{version.evidence}/{top}"), name.partition("/")[2]
                found = listing(place)
                content = read_file(place / inner if inner else place, MOST_DOCUMENT)
                known = next((one.digest for one in found if one.name == inner), "")
                if digest_of(found) != registered.evidence[top] or digest_bytes(content) != known:
                    raise ChangedError(f"evidence {name!r} of version {version.number} was changed: restore it")
                documents[Path(name).name] = content
        return version.source, files, documents

    def _tell_witness(self) -> list[str]:
        if self.witness:
            self.witness.write(self.ledger.refresh())
            boundary("after-checkpoint")
        return []


@dataclass(frozen=True)
class ServerMover:
    """Moves by a governed MLflow server, which alone holds the promotion key and knows who asks."""

    url: str
    model: str
    run: str = ""
    """As in `LocalMover`."""

    def move(self, action: Action, version: str, reason: str = "") -> list[str]:
        """See `Mover`."""
        asked = {"action": action, "model": self.model, "version": version, "reason": reason, "run": self.run}
        return self._ask("/moves", asked)

    def reconcile(self) -> list[str]:
        """See `Mover`."""
        return self._ask("/reconcile", {"model": self.model})

    def _ask(self, path: str, asked: dict[str, str]) -> list[str]:
        answer = ServerStore(self.url).ask("POST", path, json.dumps(asked), MOVE_PATIENCE)
        return [str(line) for line in json.loads(answer)["said"]]


def tags_of(state: State, model: str, number: str) -> dict[str, str]:
    """What our tags on a version say, as the ledger has it."""
    registered = state.registered(model, number)
    if registered is None:
        return {"standing": "not in the ledger"}
    return registration_tags(registered, state.verdicts[registered.verdict], state.standing(model, number))


def registration_tags(registered: Registered, judged: Judged, standing: Standing = "candidate") -> dict[str, str]:
    """What our tags say of a version that is, or is about to be, in the ledger, which has the rest."""
    return {
        "decision": judged.decision,
        "standing": standing,
        "candidate": registered.candidate,
        "incumbent": judged.incumbent,
        "verdict": registered.verdict,
    }
