"""Who asks, as far as the server can know, and what they may do beyond MLflow's own permissions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from flask import g, has_request_context, request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.governed.settings import UNAUTHENTICATED, USER, Settings
from lineage.entries import LedgerError

Admit = Callable[[Scope], Awaitable[None]]
"""Raises `HTTPException` for a request that nobody stands behind who may use the server."""


class UsersOnly:
    """An ASGI layer that lets a request through only where ``admit`` does.

    It stands before WSGI, which makes one header of ``X-User`` and ``X_User``, and before MLflow's routes that are
    not Flask's, such as the upload of artifacts.
    """

    def __init__(self, app: ASGIApp, admit: Admit, free: Collection[str], free_below: tuple[str, ...]) -> None:
        """Guard ``app``.

        Args:
            free: paths that need no user.
            free_below: beginnings of such paths.
        """
        self.app, self.admit, self.free, self.free_below = app, admit, free, free_below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] in ("http", "websocket"):
                scope = {**scope, "headers": [one for one in scope["headers"] if not _is(one[0], USER)]}
                if scope["path"] not in self.free and not scope["path"].startswith(self.free_below):
                    await self.admit(scope)
        except HTTPException as refused:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": refused.detail})
            else:  # as MLflow ends a request that is not permitted
                content = {"error_code": "PERMISSION_DENIED", "message": refused.detail}
                await JSONResponse(content, refused.status_code, refused.headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def by_header(header: str) -> Admit:
    """Admits whom the proxy's header names, exactly one user."""
    header = header.lower()

    async def admit(scope: Scope) -> None:
        given = [(name, value) for name, value in scope["headers"] if _is(name, header)]
        if not given:
            raise HTTPException(401, f"nobody is named in the header {header}: log in at the proxy")
        (name, value), *others = given
        if others or name.decode("latin1").lower() != header or b"," in value or not value.strip():
            # The proxy's header beside one that the client sent: no telling which is which.
            told = f"the header {header} names several users, or none, or is spelled in another way"
            raise HTTPException(403, f"{told}; the proxy must remove the client's")

    return admit


def _is(name: bytes, header: str) -> bool:
    """Whether a header has this name to WSGI, to which a dash and an underscore are one."""
    return name.decode("latin1").upper().replace("-", "_") == header.upper().replace("-", "_")


def current_user(settings: Settings) -> str:
    """The user behind the current request.

    Raises:
        LedgerError: nobody is named where somebody must be.
    """
    if settings.authentication == "none":
        return UNAUTHENTICATED
    user = ""
    if has_request_context():
        named = settings.named_in
        user = request.headers.get(named, "") if named else g.get("mlflow_authenticated_user") or ""
    user = user.strip(" ")
    if not user:
        raise LedgerError("nobody is logged in")
    if not user.isprintable():
        raise LedgerError(f"{user!r} is no name of a user")
    return user


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
    if settings.authentication == "kubernetes":
        from infra.governed.tokens import GROUP, reviewer, shown_token

        asked = reviewer(settings.namespace, settings.audience)
        known = asked.user(shown_token([request.headers.get("Authorization", "").encode("latin1")]))
        if known is None or known["username"] != user or not asked.may(known, "update", "registeredmodels", model):
            raise LedgerError(f"{user} may not update registeredmodels of {GROUP} in namespace {settings.namespace}")
    if settings.authentication == "basic-auth":
        from mlflow.server import auth

        if not auth.sender_is_admin() and not auth._graphql_get_permission_for_model(model, user).can_update:
            raise LedgerError(f"{user} may not edit {model}; ask an administrator for the permission EDIT")
