"""What a governed server is told, all of it by environment variables.

==========================  =========================================================================================
``TRIPTYCH_LEDGER``         the ledger's database: ``postgresql+psycopg://…`` or ``sqlite:////…``
``TRIPTYCH_ROOT``           id of the root key that must have opened the ledger
``TRIPTYCH_PROMOTION_KEY``  URI of the promotion key, such as ``file2:/keys/promotion.pem``
``TRIPTYCH_WITNESS``        where checkpoints go: a folder, or ``s3://bucket/prefix`` with object lock
``TRIPTYCH_WITNESS_KEY``    URI of the key that signs checkpoints
``TRIPTYCH_MARK``           file in which this server remembers how long the ledger was; shared by its workers
``TRIPTYCH_AUTHENTICATION`` ``none``, ``basic-auth`` (MLflow's own, on top of which the guard runs) or ``header``
``TRIPTYCH_USER_HEADER``    with ``header``: the one in which the proxy names the user, and which it never lets through
``TRIPTYCH_OFFICERS``       users who may withdraw and override, with commas between; none by default
``TRIPTYCH_ALLOWED_HOSTS``  names under which the server is reached, with commas between; MLflow refuses others
==========================  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lineage.digests import LineageError

UNAUTHENTICATED = "unauthenticated"
"""How the ledger calls a user whom nobody checked."""


def _names(value: Any) -> Any:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Said = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class Settings(BaseModel):
    """The variables above, without their prefix."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ledger: Said
    root: Said
    promotion_key: Said
    witness: Said
    witness_key: Said
    mark: Path
    authentication: Literal["none", "basic-auth", "header"]
    user_header: str = ""
    officers: Names = ()
    allowed_hosts: Names = ()

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        if self.ledger.startswith("http"):
            raise ValueError("TRIPTYCH_LEDGER names a server, but this is the server: name the database")
        if (self.authentication == "header") != bool(self.user_header):
            raise ValueError("TRIPTYCH_USER_HEADER goes with TRIPTYCH_AUTHENTICATION=header, and only with that")
        if self.officers and self.authentication == "none":
            raise ValueError("TRIPTYCH_OFFICERS needs authentication: without it nobody can be told from an officer")
        if UNAUTHENTICATED in self.officers:
            raise ValueError(f"TRIPTYCH_OFFICERS names {UNAUTHENTICATED!r}, which is nobody")
        if "*" in self.allowed_hosts:
            raise ValueError("TRIPTYCH_ALLOWED_HOSTS must name the hosts; '*' lets any website act for its visitors")
        return self


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings in ``environment``.

    Raises:
        LineageError: one is missing or wrong; the message names its variable.
    """
    variables = {name: f"TRIPTYCH_{name.upper()}" for name in Settings.model_fields}
    given = {name: environment[variable] for name, variable in variables.items() if environment.get(variable)}
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        faults = [
            f"{variables[str(fault['loc'][0])]}: {fault['msg']}" if fault["loc"] else fault["msg"]
            for fault in error.errors()
        ]
        raise LineageError("; ".join(faults).replace("Field required", "is not set")) from error
