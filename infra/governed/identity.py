"""Who asks, as far as the server can know, and what they may do beyond MLflow's own permissions."""

from __future__ import annotations

from flask import g, has_request_context, request

from infra.governed.settings import UNAUTHENTICATED, Settings
from lineage.entries import LedgerError


def current_user(settings: Settings) -> str:
    """The user behind the current request.

    Raises:
        LedgerError: the request names several users, or none where one must be logged in.
    """
    if not has_request_context() or settings.authentication == "none":
        return UNAUTHENTICATED
    if settings.authentication == "basic-auth":
        if not g.get("mlflow_authenticated_user"):
            raise LedgerError("nobody is logged in")
        return str(g.mlflow_authenticated_user)
    user = request.headers.get(settings.user_header, "").strip()
    if "," in user:
        # The proxy's header beside one that the client sent: no telling which is which.
        raise LedgerError(f"the header {settings.user_header} names several users; the proxy must remove the client's")
    return user or UNAUTHENTICATED


def require_officer(settings: Settings, user: str, action: str) -> None:
    """Let officers pass.

    Raises:
        LedgerError: ``user`` is none.
    """
    if settings.authentication == "none":
        raise LedgerError(f"{action} is off: this server does not know its users (TRIPTYCH_AUTHENTICATION=none)")
    if user not in settings.officers:
        raise LedgerError(f"{action} is for officers, and {user} is not one of them (TRIPTYCH_OFFICERS)")


def require_update(settings: Settings, user: str, model: str) -> None:
    """Let those pass whom MLflow would let edit ``model``.

    Raises:
        LedgerError: they may not.
    """
    if settings.authentication != "basic-auth":
        return
    from mlflow.server import auth

    if not auth.sender_is_admin() and not auth._graphql_get_permission_for_model(model, user).can_update:
        raise LedgerError(f"{user} may not edit {model}; ask an administrator for the permission EDIT")
