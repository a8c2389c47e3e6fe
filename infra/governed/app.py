"""The entry point of ``mlflow server --app-name triptych``; `infra.governed.settings` lists its configuration.

The guard works in MLflow's default server, uvicorn, with any number of workers. Under gunicorn and waitress, and with
options that would open a way round it, the server does not start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from fastapi import FastAPI
from mlflow.exceptions import MlflowException
from mlflow.server import ARTIFACTS_DESTINATION_ENV_VAR, BACKEND_STORE_URI_ENV_VAR, _bootstrap_basic_auth
from mlflow.server import app as flask_app
from mlflow.server.assistant.api import assistant_router
from mlflow.server.fastapi_app import create_fastapi_app
from mlflow.server.handlers import _add_static_prefix
from mlflow.utils.uri import extract_db_type_from_uri

from infra.governed.api import channel_route, routes
from infra.governed.artifacts import place, touches
from infra.governed.guard import Guard
from infra.governed.identity import UsersOnly, by_header
from infra.governed.settings import Settings
from infra.governed.stores import install
from infra.governed.tokens import by_token, reviewer
from lineage.database import DIALECTS
from lineage.digests import LineageError
from lineage.signing import SCHEME
from lineage.stores import API

SERVER = "_MLFLOW_SGI_NAME"
"""The variable in which MLflow tells its workers which server runs them."""
JOBS = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"
REFUSED = {
    "gunicorn_opts": "the guard works under uvicorn, MLflow's default, only",
    "waitress_opts": "the guard works under uvicorn, MLflow's default, only",
    "artifacts_only": "there is no registry to guard",
    "enable_workspaces": "models of the same name in two workspaces are one in the ledger",
    "disable_security_middleware": "any website could then act for its visitors",
}
"""Options of ``mlflow server`` that a governed one does not take, and why."""


def __getattr__(name: str) -> Any:
    """MLflow looks ``create_app`` up in the command and again in each worker.

    A worker that cannot start is started again for ever, so all that can be wrong is checked in the command, which it
    ends with one message. MLflow has no other hook there: it imports the module and takes the function out of it.
    """
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if SERVER not in os.environ:
        try:
            check_start()
        except (LineageError, MlflowException) as error:
            raise click.ClickException(f"the governed server does not start: {error}") from error
    return _create_app


def _create_app() -> FastAPI:
    """The application of one worker."""
    if os.environ.get(SERVER) != "uvicorn":
        raise LineageError(f"start it with: mlflow server --app-name triptych ({REFUSED['gunicorn_opts']})")
    settings, destination = Settings.read(), os.environ[ARTIFACTS_DESTINATION_ENV_VAR]
    here = place("mlflow-artifacts:/", destination)
    backend = _database(os.environ[BACKEND_STORE_URI_ENV_VAR])
    guard = Guard(settings, backend, None if "://" in here else Path(here))
    install(guard, destination)
    flask_app.register_blueprint(routes(guard))
    # The assistant runs commands on this machine, where the promotion key is.
    assistant_router.routes.clear()
    made = _application(settings)
    if settings.channel:
        made.router.routes.insert(0, channel_route(settings.channel))
    free: dict[str, Any] = {
        "free": {_add_static_prefix(path) for path in ("/", "/health", "/version")},
        "free_below": (_add_static_prefix("/static-files/"), _add_static_prefix(f"{API}/channel/")),
    }
    if settings.authentication == "header":
        made.add_middleware(UsersOnly, admit=by_header(settings.user_header), **free)
    if settings.authentication == "kubernetes":
        known = reviewer(settings.namespace, settings.audience)
        made.add_middleware(UsersOnly, admit=by_token(known), **free)
    return made


def _application(settings: Settings) -> FastAPI:
    if settings.authentication == "basic-auth":
        from mlflow.server import auth

        # MLflow denies routes it does not know; ours decide for themselves once they know who asks.
        for rule in flask_app.url_map.iter_rules():
            if rule.endpoint.startswith("triptych."):
                known = dict.fromkeys([(rule.rule, method) for method in rule.methods], auth._allow_authenticated)
                auth.BEFORE_REQUEST_VALIDATORS.update(known)
        guarded: FastAPI = auth.create_app()
        return guarded
    plain: FastAPI = create_fastapi_app(flask_app)
    return plain


def check_start() -> None:
    """Check, in the command itself, all that would otherwise fail in every worker, and set what they need.

    Raises:
        LineageError, MlflowException: the server cannot start, and why.
    """
    settings, command = Settings.read(), click.get_current_context(silent=True)
    options = command.params if command else {}
    _check_options(options)
    _check_places(settings, options)
    guard = Guard(settings, "")
    guard.check_witness()
    guard.writes.clear()
    if settings.allowed_hosts:
        origins = [f"{scheme}://{host}" for host in settings.allowed_hosts for scheme in ("http", "https")]
        os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(settings.allowed_hosts)
        os.environ.setdefault("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", ",".join(origins))
    # Jobs run what users send, on this machine.
    if os.environ.setdefault(JOBS, "false").lower() not in ("false", "0"):
        raise LineageError(f"{JOBS} is on, but jobs run users' code beside the promotion key; unset it")
    for variable in ("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"):
        if "*" in os.environ.get(variable, ""):
            raise LineageError(f"{variable} has a '*'; any website could then act for its visitors: name them")
    if settings.authentication == "basic-auth":
        _bootstrap_basic_auth()  # MLflow does it only for its own app of that name
        os.environ["_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED"] = "true"


def _check_options(options: Mapping[str, Any]) -> None:
    for name, why in REFUSED.items():
        if options.get(name):
            raise LineageError(f"--{name.replace('_', '-')} does not go with the governed server: {why}")
    if not options.get("serve_artifacts", True):
        raise LineageError("--no-serve-artifacts does not go with it: only what the server writes can be guarded")
    if str(options.get("static_prefix") or "").startswith(("/static", "/health", "/favicon.ico")):
        raise LineageError("--static-prefix begins with a path that MLflow's log-in lets pass; choose another one")
    for name in ("allowed_hosts", "cors_allowed_origins"):
        if "*" in str(options.get(name) or ""):
            raise LineageError(f"--{name.replace('_', '-')} has a '*'; any website could then act for its visitors")
    backend = options.get("backend_store_uri")
    if options.get("registry_store_uri") not in (None, backend):
        raise LineageError("--registry-store-uri must be the backend store: runs and versions belong together")
    if backend:
        _database(backend)


def _check_places(settings: Settings, options: Mapping[str, Any]) -> None:
    """Refuse to serve as artifacts what the server keeps for itself."""
    served = options.get("artifacts_destination") or os.environ.get(ARTIFACTS_DESTINATION_ENV_VAR) or "./mlartifacts"
    keys = [key.removeprefix(SCHEME) for key in (settings.promotion_key, settings.witness_key) if SCHEME in key]
    databases = [settings.ledger, str(options.get("backend_store_uri") or "")]
    mark = [str(settings.mark), str(settings.mark.with_suffix(".writes"))]
    files = [*keys, *mark, *(u.removeprefix("sqlite:///") for u in databases if u.startswith("sqlite:"))]
    for kept in (*files, settings.witness, settings.channel):
        if kept and touches(place(kept, served), place("mlflow-artifacts:/", served)):
            raise LineageError(f"--artifacts-destination {served} holds {kept}, or lies in it: keep them apart")


def _database(uri: str) -> str:
    try:
        kind = extract_db_type_from_uri(uri)
    except MlflowException:
        kind = "no database"
    if kind not in DIALECTS:
        raise LineageError(
            f"--backend-store-uri is {kind}, but the guard needs SQLite or PostgreSQL there: a file store has no "
            "transactions, and the others take chámpion for champion"
        )
    return uri
