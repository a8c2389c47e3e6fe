"""Who asks, as far as the server can know, and what they may do beyond MLflow's own permissions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from flask import g, has_request_context, request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.governed.settings import UNAUTHENTICATED, Settings
from lineage.entries import LedgerError


async def refuse(
    status: int, message: str, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str] | None = None
) -> None:
    """End a request as MLflow ends one that is not permitted, or close a websocket."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": message})
        return
    content = {"error_code": "PERMISSION_DENIED", "message": message}
    await JSONResponse(content, status, headers)(scope, receive, send)


class NamedUsersOnly:
    """An ASGI layer that lets a request through only if the proxy's header names exactly one user.

    It stands before WSGI, which makes one header of ``X-User`` and ``X_User``, and before MLflow's routes that are
    not Flask's, such as the upload of artifacts.
    """

    def __init__(self, app: ASGIApp, header: str, free: Collection[str], free_below: tuple[str, ...]) -> None:
        """Guard ``app``.

        Args:
            free: paths that need no user.
            free_below: beginnings of such paths.
        """
        self.app, self.header, self.free, self.free_below = app, header.lower().encode(), free, free_below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trouble = self._trouble(scope) if scope["type"] in ("http", "websocket") else None
        if trouble is None:
            await self.app(scope, receive, send)
        else:
            await refuse(*trouble, scope, receive, send)

    def _trouble(self, scope: Scope) -> tuple[int, str] | None:
        if scope["path"] in self.free or scope["path"].startswith(self.free_below):
            return None
        given = [(name, value) for name, value in scope["headers"] if as_wsgi(name) == as_wsgi(self.header)]
        if not given:
            return 401, f"nobody is named in the header {self.header.decode()}: log in at the proxy"
        (name, value), *others = given
        if others or name.lower() != self.header or b"," in value or not value.strip():
            # The proxy's header beside one that the client sent: no telling which is which.
            return 403, (
                f"the header {self.header.decode()} names several users, or none, or is spelled in another way; "
                "the proxy must remove the client's"
            )
        return None


def as_wsgi(name: bytes) -> str:
    """A header's name as WSGI has it, to which a dash and an underscore are one."""
    return name.decode("latin1").upper().replace("-", "_")


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
        _require_move(settings, user, model)
    if settings.authentication != "basic-auth":
        return
    from mlflow.server import auth

    if not auth.sender_is_admin() and not auth._graphql_get_permission_for_model(model, user).can_update:
        raise LedgerError(f"{user} may not edit {model}; ask an administrator for the permission EDIT")


def _require_move(settings: Settings, user: str, model: str) -> None:
    from infra.governed.tokens import GROUP, reviewer, shown_token

    asked = reviewer(settings.namespace, settings.audience)
    known = asked.user(shown_token([request.headers.get("Authorization", "").encode("latin1")]))
    if known is None or known["username"] != user or not asked.may(known, "update", "registeredmodels", model):
        raise LedgerError(f"{user} may not update registeredmodels of {GROUP} in namespace {settings.namespace}")
