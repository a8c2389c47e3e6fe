"""Moving the champion of a model: into the ledger first, then into whatever repeats it.

mover = open_mover(context, registry, context.open_ledger())
mover.move("promote", "3")
mover.move("rollback", "2", "version 3 draws no glasses")
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer

from lineage.channel.publisher import Publisher
from lineage.digests import LineageError
from lineage.entries import Action, LedgerError, Moved
from lineage.faults import boundary
from lineage.ledger import Ledger
from lineage.places import UnreachableError
from lineage.projection import Followed, Projection
from lineage.records import RunContext
from lineage.registry import Registry
from lineage.rules import check_move
from lineage.stores import ServerStore
from lineage.version_files import VersionFiles
from lineage.witness import WitnessWriter, open_witness

CHANNEL_LIFE = timedelta(days=30)
"""How long a channel that a run publishes to says who is champion without being renewed."""
MOVE_PATIENCE = 600.0
"""Seconds: a server reads and checks all weights before it moves."""


@dataclass
class LocalMover:
    """Moves of one model's champion, by the holder of the promotion key."""

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
        state, model, projection = self.ledger.refresh(), self.registry.model_name, self._projection(self.registry)
        registered, champion = state.registered(model, version), state.champion(model)
        if registered is None:
            raise LedgerError(f"version {version} of {model} is not in the ledger; register it through the pipeline")
        what, standing = f"{action} of {registered.name}", state.standing(model, version)
        if standing == ("withdrawn" if action == "withdraw" else "champion"):
            if action != "withdraw":
                projection.files.check(registered)  # no alias is set on files that were not looked at
            return [f"{what}: it is {standing} already", *projection.follow(version).said]
        judged = state.verdicts[registered.verdict]
        moved = Moved(
            action=action,
            model=model,
            version=version,
            candidate=registered.candidate,
            previous_version=champion.version if champion else "",
            previous=champion.candidate if champion else (judged.incumbent if action == "promote" else ""),
            verdict=registered.verdict if action == "promote" else "",
            user=self.user,
            reason=reason,
            run=self.run,
        )
        check_move(state, moved)  # before all its files are read
        if action != "withdraw":
            projection.files.check(registered)
        boundary("before-moved")
        self.ledger.append(moved, self.signer)
        boundary("after-moved")
        said = [f"{what}: done", *projection.follow(version).said]
        for other, versions in self.ledger.state.versions.items() if action == "withdraw" else ():
            if other != model and any(one.candidate == registered.candidate for one in versions.values()):
                said += self._projection(Registry(self.registry.tracking_uri, other)).follow(None).said
        return said

    def reconcile(self) -> Followed:
        """Make registry and channel agree with the ledger; not settled where the champion cannot be trusted."""
        state, model, projection = self.ledger.refresh(), self.registry.model_name, self._projection(self.registry)
        champion, distrust, usable = state.champion(model), list[str](), True
        known = state.versions.get(model, {})
        if champion:
            try:
                projection.files.check(known[champion.version])
            except LineageError as error:
                distrust = [f"the champion, version {champion.version}, cannot be trusted: {error}"]
                usable = isinstance(error, UnreachableError)
        followed = projection.follow(None, usable)
        strangers = [version.number for version in self.registry.versions() if version.number not in known]
        said = [f"version {n} of {model} is in the registry but not in the ledger" for n in strangers]
        return Followed([*distrust, *followed.said, *said], followed.settled and not distrust)

    def _projection(self, registry: Registry) -> Projection:
        return Projection(self.ledger, VersionFiles(registry, self.artifacts), self.channel, self.witness)


@dataclass(frozen=True)
class ServerMover:
    """Moves by a governed MLflow server, which alone holds the promotion key and knows who asks."""

    url: str
    model: str
    run: str = ""
    """As in `LocalMover`."""

    def move(self, action: Action, version: str, reason: str = "") -> list[str]:
        """See `LocalMover.move`."""
        asked = {"action": action, "model": self.model, "version": version, "reason": reason, "run": self.run}
        return [str(line) for line in self._ask("/moves", asked)["said"]]

    def reconcile(self) -> Followed:
        """See `LocalMover.reconcile`."""
        answer = self._ask("/reconcile", {"model": self.model})
        return Followed([str(line) for line in answer["said"]], bool(answer["settled"]))

    def _ask(self, path: str, asked: dict[str, str]) -> dict[str, Any]:
        return dict(json.loads(ServerStore(self.url).ask("POST", path, json.dumps(asked), MOVE_PATIENCE)))


Mover = LocalMover | ServerMover


def open_mover(context: RunContext, registry: Registry, ledger: Ledger, artifacts: Path | None = None) -> Mover:
    """Moves decided here where ``context`` holds the promotion key, else by the governed server.

    Args:
        context: of the run that moves its own candidate; without an id, of a person.
        artifacts: where ``mlflow-artifacts:`` places of the registry lie on this machine.
    """
    if "promotion" not in context.keys:
        return ServerMover(context.ledger, registry.model_name, context.id)
    promotion, witness = (ledger.signer(role, context.keys[role]) for role in ("promotion", "witness"))
    writer = WitnessWriter(open_witness(context.witness), witness) if context.witness else None
    mark = Path(context.marks) / "channel"
    channel = Publisher(context.channel, promotion, witness, CHANNEL_LIFE, mark) if context.channel else None
    user = context.user or context.id
    return LocalMover(ledger, promotion, registry, user, writer, channel, artifacts, context.id)
