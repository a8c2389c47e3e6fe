"""The server's own routes, under `lineage.ledger.API`: the ledger's entries, and moves that need a reason.

======================  =============================================================================================
``GET /entries?after``  the entries from that index on, as JSON lines
``POST /entries``       append an entry signed by the run, gate or root key; 409 where another came first
``POST /moves``         ``{action, model, version, reason}``; action is rollback, withdraw or override
``POST /reconcile``     make the registry agree with the ledger; says what did not
``GET /state``          the ledger's size and head, and the champion of each governed model
======================  =============================================================================================

A refusal is HTTP 403 with a ``message``. With basic-auth all of them want a user who is logged in.
"""

from __future__ import annotations

from typing import Annotated, Literal

from flask import Blueprint, Response, jsonify, request
from mlflow.server.handlers import _add_static_prefix
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from infra.governed.guard import Guard
from infra.governed.identity import current_user, require_officer, require_update
from lineage.digests import LineageError
from lineage.ledger import API, ConflictError, export, read_entry

Answer = tuple[Response, int] | Response
Said = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Move(BaseModel):
    """A move that somebody asks for and says why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["rollback", "withdraw", "override"]
    model: Said
    version: Said
    reason: Said


def routes(guard: Guard) -> Blueprint:
    """The routes, for MLflow's Flask application, whose authentication then holds for them."""
    api = Blueprint("triptych", __name__, url_prefix=_add_static_prefix(API))

    @api.get("/entries")
    def entries() -> Answer:
        after = request.args.get("after", default=0, type=int)
        return Response(export(guard.entries(after)), content_type="application/jsonl; charset=utf-8")

    @api.post("/entries")
    def append() -> Answer:
        guard.accept(read_entry(request.get_data(as_text=True)))
        return jsonify({})

    @api.post("/moves")
    def move() -> Answer:
        asked = Move.model_validate_json(request.get_data())
        user = current_user(guard.settings)
        if asked.action == "rollback":
            require_update(guard.settings, user, asked.model)
        else:
            require_officer(guard.settings, user, asked.action)
        guard.move(asked.action, asked.model, asked.version, user, asked.reason)
        return jsonify({"message": f"{asked.action} of version {asked.version} of {asked.model}: done"})

    @api.post("/reconcile")
    def reconcile() -> Answer:
        return jsonify({"said": guard.reconcile()})

    @api.get("/state")
    def state() -> Answer:
        with guard.state() as now:
            champions = {model: champion.version for model in now.champions if (champion := now.champion(model))}
            return jsonify({"ledger": now.ledger, "size": now.size, "head": now.head, "champions": champions})

    @api.errorhandler(LineageError)
    def refused(error: LineageError) -> Answer:
        status = 409 if isinstance(error, ConflictError) else 403
        return jsonify({"error_code": "PERMISSION_DENIED", "message": str(error)}), status

    @api.errorhandler(ValidationError)
    def malformed(error: ValidationError) -> Answer:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the request"
        return jsonify({"error_code": "INVALID_PARAMETER_VALUE", "message": f"{where}: {fault['msg']}"}), 400

    return api
