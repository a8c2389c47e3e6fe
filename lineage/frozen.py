"""The pydantic models of the house: they take no field that they do not know, and nobody changes them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Frozen(BaseModel):
    """A value that is checked when it is made, and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Section(Frozen):
    """A section of the configuration, which is also a KFP parameter."""

    @model_serializer(mode="wrap")
    def _without_nulls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not set: a KFP parameter cannot hold a null."""
        return {name: value for name, value in serialize(self).items() if value is not None}
