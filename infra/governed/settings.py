"""What a governed server is told, all of it by environment variables.

==========================  =========================================================================================
``TRIPTYCH_LEDGER``         the ledger's database: ``postgresql+psycopg://…`` or ``sqlite:////…``
``TRIPTYCH_ROOT``           id of the root key that must have opened the ledger
``TRIPTYCH_PROMOTION_KEY``  URI of the promotion key, such as ``file2:/keys/promotion.pem``
``TRIPTYCH_WITNESS``        where checkpoints go: a folder, or ``s3://bucket/prefix`` with object lock
``TRIPTYCH_WITNESS_KEY``    URI of the key that signs checkpoints, and the channel's timestamp
``TRIPTYCH_MARK``           file in which this server remembers how long the ledger was; shared by its workers
``TRIPTYCH_CHANNEL``        where the promotion channel is, a folder or ``s3://bucket/prefix``; none by default
``TRIPTYCH_CHANNEL_LIFE``   hours for which the channel's timestamp counts, 24 by default
``TRIPTYCH_AUTHENTICATION`` ``none``, ``basic-auth`` (MLflow's own, on top of which the guard runs), ``header`` or
                            ``kubernetes`` (tokens, see `infra.governed.tokens`)
``TRIPTYCH_USER_HEADER``    with ``header``: the one in which the proxy names the user, and which it never lets through
``TRIPTYCH_NAMESPACE``      with ``kubernetes``: whose RBAC says who may use the registry
``TRIPTYCH_AUDIENCE``       with ``kubernetes``: for whom tokens must have been made; by default for the API server
``TRIPTYCH_OFFICERS``       users who may withdraw, override and set the policy, with commas between; none by default
``TRIPTYCH_ALLOWED_HOSTS``  names under which the server is reached, with commas between; MLflow refuses others
==========================  =========================================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from lineage.environment import Environment

UNAUTHENTICATED = "unauthenticated"
"""How the ledger calls a user whom nobody checked."""
USER = "x-triptych-kubernetes-user"
"""The header in which this server names a token's user to what stands behind; a client's own is taken away."""


def _names(value: Any) -> Any:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]


class Settings(Environment):
    """The variables above."""

    model_config = SettingsConfigDict(env_prefix="TRIPTYCH_")

    ledger: str
    root: str
    promotion_key: str
    witness: str
    witness_key: str
    mark: Path
    channel: str = ""
    channel_life: float = Field(default=24.0, gt=0)
    authentication: Literal["none", "basic-auth", "header", "kubernetes"]
    # An underscore would be the same header as a dash to WSGI, and not to the proxy.
    user_header: str = Field(default="", pattern=r"^[A-Za-z0-9-]*$")
    namespace: str = ""
    audience: str = ""
    officers: Names = ()
    allowed_hosts: Names = ()

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        if self.ledger.startswith("http"):
            raise ValueError("TRIPTYCH_LEDGER names a server, but this is the server: name the database")
        if (self.authentication == "header") != bool(self.user_header):
            raise ValueError("TRIPTYCH_USER_HEADER goes with TRIPTYCH_AUTHENTICATION=header, and only with that")
        if (self.authentication == "kubernetes") != bool(self.namespace):
            raise ValueError("TRIPTYCH_NAMESPACE goes with TRIPTYCH_AUTHENTICATION=kubernetes, and only with that")
        if self.officers and self.authentication == "none":
            raise ValueError("TRIPTYCH_OFFICERS needs authentication: without it nobody can be told from an officer")
        if UNAUTHENTICATED in self.officers:
            raise ValueError(f"TRIPTYCH_OFFICERS names {UNAUTHENTICATED!r}, which is nobody")
        if self.mark.suffix != ".json":
            raise ValueError("TRIPTYCH_MARK must name a .json file")
        if "*" in self.allowed_hosts:
            raise ValueError("TRIPTYCH_ALLOWED_HOSTS must name the hosts; '*' lets any website act for its visitors")
        return self

    @property
    def named_in(self) -> str:
        """The header that names the user, whom somebody in front checked; empty: MLflow does."""
        return USER if self.authentication == "kubernetes" else self.user_header
