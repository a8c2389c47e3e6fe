"""Settings that a server is told by environment variables."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from lineage.digests import LineageError


class Environment(BaseSettings):
    """The variables, without their prefix and in capitals; one that is empty counts as not set."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="forbid", frozen=True)

    @classmethod
    def read(cls, **given: Any) -> Self:
        """The settings in the environment, and those ``given``, which count first.

        Raises:
            LineageError: one is missing or wrong; the message names its variable, never its value.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            prefix = str(cls.model_config["env_prefix"])
            faults = [": ".join([*[prefix + str(at).upper() for at in f["loc"][:1]], f["msg"]]) for f in error.errors()]
            raise LineageError("; ".join(faults).replace("Field required", "is not set")) from error
