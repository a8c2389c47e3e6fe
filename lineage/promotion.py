"""Moving the champion: into the ledger first, then into the registry's aliases and tags, which only repeat it.

A move is written as intended, projected onto the registry, and written as completed. Whatever dies in between is
finished or given up by `Promotions.reconcile`; until then the ledger says who is champion.
"""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer

from lineage.digests import LineageError
from lineage.entries import (
    Abandoned,
    Action,
    BusyError,
    Completed,
    Intended,
    LedgerError,
    Registered,
    StaleError,
    Standing,
    State,
)
from lineage.ledger import Ledger
from lineage.records import RunContext
from lineage.registry import CHALLENGER, CHAMPION, Registry, Version, fetch_weights
from lineage.witness import Witness, checkpoint, open_witness

FAULT_VARIABLE = "TRIPTYCH_FAULT"
"""Names a boundary at which the process kills itself, for tests of what a crash leaves."""
BOUNDARIES = ("before-intended", "after-intended", "after-tags", "after-alias", "after-completed", "after-checkpoint")
PATIENCE = 20.0
"""Seconds to wait for another move of the same model."""


def boundary(name: str) -> None:
    """A point between two steps of a move."""
    if os.environ.get(FAULT_VARIABLE) == name:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Vigil:
    """Who tells the witness how long the ledger is."""

    witness: Witness
    signer: Signer


class Promotions:
    """Moves of one model's champion, for whoever holds the promotion key."""

    def __init__(self, ledger: Ledger, signer: Signer, registry: Registry, vigil: Vigil | None = None) -> None:
        self.ledger, self.signer, self.registry, self.vigil = ledger, signer, registry, vigil
        self.model = registry.model_name

    def promote(self, version: str, user: str) -> Standing:
        """Make ``version`` champion, as its verdict says. Repeating it changes nothing.

        Raises:
            StaleError: the verdict was given against another incumbent than today's champion.
            LedgerError: there is no such verdict, or the registry could not follow.
            LineageError: the version's weights are not those that were registered.
        """
        return self._move("promote", version, user, "")

    def rollback(self, version: str, user: str, reason: str) -> Standing:
        """Make a former champion champion again."""
        return self._move("rollback", version, user, reason)

    def override(self, version: str, user: str, reason: str) -> Standing:
        """Make a version champion that the gate did not approve: break-glass, and the ledger says so."""
        return self._move("override", version, user, reason)

    def withdraw(self, version: str, user: str, reason: str) -> None:
        """Revoke a version's weights for good, for law or consent; if it is champion, there is none afterwards."""
        self._move("withdraw", version, user, reason)

    def reconcile(self) -> list[str]:
        """Make registry and ledger agree; says in words what did not, and what was done.

        Moves left open are completed, or given up where their version or weights are gone.
        """
        said: list[str] = []
        state = self.ledger.refresh()
        for move in [move for move in state.pending.values() if move.model == self.model]:
            trouble = "" if move.action == "withdraw" else self._trouble(state, move.version)
            if trouble:
                self.ledger.append(Abandoned(move=move.move, reason=trouble), self.signer)
                said.append(f"gave up the {move.action} of version {move.version}: {trouble}")
                continue
            self._project()
            self._complete(move)
            said.append(f"completed the {move.action} of version {move.version} that was left open")
        said += self._project()
        champion = self.ledger.state.champion(self.model)
        if champion:
            trouble = self._trouble(self.ledger.state, champion.version)
            said += [f"the champion, version {champion.version}, cannot be trusted: {trouble}"] if trouble else []
        said += [
            f"version {version.number} of {self.model} is in the registry but not in the ledger"
            for version in self.registry.versions()
            if (self.model, version.number) not in self.ledger.state.versions
        ]
        self._witness()
        return said

    def _move(self, action: Action, number: str, user: str, reason: str) -> Standing:
        checked = action == "withdraw"
        until = time.monotonic() + PATIENCE
        while True:
            state = self.ledger.refresh()
            move = self._intention(state, action, number, user, reason)
            if isinstance(move, Standing):
                self._project()
                return move
            if not checked and (trouble := self._trouble(state, number)):
                raise LineageError(trouble)
            checked = True
            boundary("before-intended")
            try:
                self.ledger.append(move, self.signer)
                break
            except BusyError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
        boundary("after-intended")
        try:
            self._project()
        except Exception as error:
            raise LedgerError(
                f"the {action} of version {number} of {self.model} is in the ledger, but the registry did not follow: "
                f"{error}; run: triptych reconcile"
            ) from error
        self._complete(move)
        boundary("after-completed")
        self._witness()
        boundary("after-checkpoint")
        return Standing(number, move.candidate, move.move)

    def _intention(self, state: State, action: Action, number: str, user: str, reason: str) -> Intended | Standing:
        """The move as the ledger stands now, or the standing that is already what is asked for."""
        registered = state.versions.get((self.model, number))
        if registered is None:
            raise LedgerError(
                f"version {number} of {self.model} is not in the ledger; register it through the pipeline"
            )
        champion = state.champion(self.model)
        if action == "withdraw" and registered.candidate in state.withdrawn:
            return Standing(number, registered.candidate, "")
        if action != "withdraw" and champion and champion.version == number:
            return champion
        judged = state.verdicts.get(registered.verdict)
        return Intended(
            move=secrets.token_hex(8),
            action=action,
            model=self.model,
            version=number,
            candidate=registered.candidate,
            previous_version=champion.version if champion else "",
            previous=champion.candidate if champion else (judged.incumbent if judged and action == "promote" else ""),
            verdict=registered.verdict if action == "promote" else "",
            user=user,
            reason=reason,
        )

    def _complete(self, move: Intended) -> None:
        try:
            self.ledger.append(Completed(move=move.move), self.signer)
        except LedgerError:
            if move.move in self.ledger.refresh().pending:
                raise  # otherwise somebody else completed it

    def _trouble(self, state: State, number: str) -> str:
        """Why a version cannot be champion as far as the registry goes; empty if it can."""
        registered = state.versions[self.model, number]
        found = next((version for version in self.registry.versions() if version.number == number), None)
        if found is None:
            return f"version {number} of {self.model} is not in the registry any more"
        if found.run != registered.mlflow_run:
            return f"version {number} of {self.model} was deleted and made again from another run"
        return self._weights_trouble(found, registered)

    def _weights_trouble(self, version: Version, registered: Registered) -> str:
        with tempfile.TemporaryDirectory() as folder:
            try:
                # By the weights themselves, not by tags: anyone may edit those.
                fetch_weights(self.registry.tracking_uri, version.uri, registered.candidate, Path(folder) / "weights")
            except LineageError as error:
                return str(error)
        return ""

    def _project(self) -> list[str]:
        """Bring tags and aliases in line with the ledger; gives in words what had to change."""
        state = self.ledger.refresh()
        champion = state.champion(self.model)
        said = []
        versions = self.registry.versions()
        for version in versions:
            tags = self._tags(state, version.number)
            stored = {"standing": "candidate", **version.tags}
            shown = {name: value for name, value in self._shown(state, version.number).items() if name in stored}
            wrong = {name: value for name, value in (tags | shown).items() if stored.get(name) != value}
            if wrong:
                self.registry.tag(version, wrong)
                said += [f"version {version.number}: tag {name} set to {value}" for name, value in wrong.items()]
        boundary("after-tags")
        holder = next((version for version in versions if CHAMPION in version.aliases), None)
        wanted = next((v for v in versions if champion and v.number == champion.version), None)
        if holder != wanted:
            self._point(CHAMPION, wanted)
            was, now = (f"version {v.number}" if v else "no version" for v in (holder, wanted))
            said.append(f"alias {CHAMPION} was on {was}, is on {now}")
        if wanted and CHALLENGER in wanted.aliases:
            self._point(CHALLENGER, None)
        boundary("after-alias")
        return said

    def _tags(self, state: State, number: str) -> dict[str, str]:
        """What a version's tags are to say."""
        registered, champion = state.versions.get((self.model, number)), state.champion(self.model)
        if registered is None:
            return {"standing": "not in the ledger"}
        past = {standing.version for standing in state.champions.get(self.model, [])}
        standing = "former champion" if number in past else "candidate"
        if champion and number == champion.version:
            standing = CHAMPION
        if registered.candidate in state.withdrawn:
            standing = "withdrawn"
        return {"standing": standing, "candidate": registered.candidate, "verdict": registered.verdict}

    def _shown(self, state: State, number: str) -> dict[str, str]:
        """What else a version's page tells of it, where it does."""
        registered = state.versions.get((self.model, number))
        if registered is None:
            return {}
        judged = state.verdicts[registered.verdict]
        keys = {"training_key": registered.training_key, "evaluation_key": registered.evaluation_key}
        return {"decision": judged.decision, "incumbent": judged.incumbent, **keys}

    def _point(self, alias: str, version: Version | None) -> None:
        client: Any = self.registry.client
        if version is None:
            client.delete_registered_model_alias(self.model, alias)
        else:
            client.set_registered_model_alias(self.model, alias, version.number)

    def _witness(self) -> None:
        if self.vigil:
            checkpoint(self.ledger.refresh(), self.vigil.witness, self.vigil.signer)


def open_promotions(context: RunContext, registry: Registry) -> Promotions:
    """Moves decided in this process, for a run that holds the promotion key itself."""
    vigil = Vigil(open_witness(context.witness), context.signer("witness")) if context.witness else None
    return Promotions(context.open_ledger(), context.signer("promotion"), registry, vigil)


def request_promotion(registry: Registry, version: str) -> None:
    """Ask a governed server to promote ``version``: setting the alias there is the request.

    Raises:
        StaleError: the verdict was given against another incumbent than today's champion.
        LedgerError: the server refuses for another reason.
    """
    from mlflow.exceptions import MlflowException

    try:
        registry.client.set_registered_model_alias(registry.model_name, CHAMPION, version)
    except MlflowException as error:
        reason = error.message.removeprefix(f"{error.error_code}: ")
        kind = StaleError if reason.startswith("stale") else LedgerError
        raise kind(f"{registry.tracking_uri} refuses: {reason}") from error
