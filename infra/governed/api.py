"""The server's own routes, under `lineage.stores.API`: the ledger's entries, moves, policies and the channel.

===================================  ================================================================================
``GET /entries?after=N&before=M``    the entries from index N on, up to M, as JSON lines
``POST /entries``                    append an entry signed by the run, gate or root key; 409 where another came first
``POST /moves``                      ``{action, model, version, reason}``; only ``promote`` needs no reason
``POST /policy``                     ``{model, gate, evaluation, reason}``: what candidates are judged by from now on
``POST /reconcile``                  ``{model}``: make registry and channel agree with the ledger; says what did not
``GET /state``                       the ledger's size and head, champions, policies, leases, the witness
``GET /channel/PATH``                the files of the promotion channel, without log-in: they are signed
===================================  ================================================================================

A refusal is HTTP 403 with a ``message``, and the ``kind`` of error. With basic-auth all but the channel want a user who
is logged in. Promotion, rollback and reconciling want one who may edit the model; the rest of the moves, and the
policy, are an officer's.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from flask import Blueprint, Response, jsonify, request
from mlflow.server.handlers import _add_static_prefix
from pydantic import Field, StringConstraints, ValidationError, model_validator
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.responses import Response as Served
from starlette.routing import Route

from infra.governed.guard import Guard
from infra.governed.identity import current_user, require_officer, require_update
from lineage.channel.places import open_place, read
from lineage.digests import LineageError
from lineage.entries import Action, PolicySet, read_entry
from lineage.frozen import Frozen
from lineage.policy import policy_digest
from lineage.stores import API, ConflictError, export

Answer = tuple[Response, int] | Response
Said = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Index = Annotated[int, Field(ge=0, lt=2**31)]
MOST = 2**20
"""Bytes of a request."""
FILE = re.compile(r"(metadata|targets)(/[A-Za-z0-9_][A-Za-z0-9_. -]{0,200}){1,9}")
"""Names of files in a channel: no part of one is empty or begins with a dot."""


class Range(Frozen):
    """Entries by index."""

    after: Index = 0
    before: Index | None = None


class Move(Frozen):
    """A move of the champion."""

    action: Action
    model: Said
    version: Said
    reason: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    run: str = ""
    """The run that asks to promote its own candidate; empty: a person asks."""

    @model_validator(mode="after")
    def _has_reason(self) -> Self:
        if self.action != "promote" and not self.reason:
            raise ValueError(f"{self.action} needs a reason")
        return self


class Policy(Frozen):
    """A policy, as `lineage.entries.PolicySet` has it."""

    model: Said
    gate: dict[str, Any]
    evaluation: dict[str, Any]
    reason: Said


class Reconciling(Frozen):
    """The model to reconcile."""

    model: Said


def routes(guard: Guard) -> Blueprint:
    """The routes, for MLflow's Flask application, whose authentication then holds for them."""
    api = Blueprint("triptych", __name__, url_prefix=_add_static_prefix(API))

    @api.before_request
    def bound() -> None:
        request.max_content_length = MOST  # werkzeug answers 413 beyond it

    @api.get("/entries")
    def entries() -> Answer:
        asked = Range.model_validate(request.args.to_dict())
        return Response(export(guard.ledger.store.entries(asked.after, asked.before)), content_type="application/jsonl")

    @api.post("/entries")
    def append() -> Answer:
        guard.accept(read_entry(request.get_data(as_text=True)))
        return jsonify({})

    @api.post("/moves")
    def move() -> Answer:
        asked = Move.model_validate_json(request.get_data())
        user = current_user(guard.settings)
        if asked.action in ("promote", "rollback"):
            require_update(guard.settings, user, asked.model)
        else:
            require_officer(guard.settings, user, asked.action)
        return jsonify({"said": guard.move(asked.action, asked.model, asked.version, user, asked.reason, asked.run)})

    @api.post("/policy")
    def policy() -> Answer:
        asked = Policy.model_validate_json(request.get_data())
        user = current_user(guard.settings)
        require_officer(guard.settings, user, "setting a policy")
        digest = policy_digest(asked.evaluation, asked.gate)
        guard.set_policy(PolicySet(**asked.model_dump(), digest=digest, user=user))
        return jsonify({"digest": digest})

    @api.post("/reconcile")
    def reconcile() -> Answer:
        asked = Reconciling.model_validate_json(request.get_data())
        user = current_user(guard.settings)
        require_update(guard.settings, user, asked.model)
        return jsonify(guard.reconcile(asked.model, user)._asdict())

    @api.get("/state")
    def state() -> Answer:
        with guard.state() as now:
            champions = {model: champion.version for model in now.champions if (champion := now.champion(model))}
            shown = now.model_dump(mode="json", include={"ledger", "size", "head", "policies", "leases"})
            return jsonify({**shown, "champions": champions, "witness": guard.witness.report})

    @api.errorhandler(LineageError)
    def refused(error: LineageError) -> Answer:
        content = {"error_code": "PERMISSION_DENIED", "message": str(error), "kind": type(error).__name__}
        return jsonify(content), 409 if isinstance(error, ConflictError) else 403

    @api.errorhandler(ValidationError)
    def malformed(error: ValidationError) -> Answer:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the request"
        return jsonify({"error_code": "INVALID_PARAMETER_VALUE", "message": f"{where}: {fault['msg']}"}), 400

    return api


def channel_route(uri: str) -> Route:
    """The route that serves the channel at ``uri``, outside Flask and so outside of MLflow's log-in."""
    place = open_place(uri)

    def serve(request: Request) -> Served:
        name = request.path_params["name"]
        try:
            content = read(place, name) if FILE.fullmatch(name) else None
        except OSError:
            return PlainTextResponse("the place of the channel does not answer", 503)
        if content is None:
            return PlainTextResponse("there is no such file in the channel", 404)
        return Served(content, media_type="application/octet-stream")

    return Route(_add_static_prefix(f"{API}/channel/{{name:path}}"), serve, methods=["GET"])
