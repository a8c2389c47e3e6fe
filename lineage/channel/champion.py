"""What a channel says of one model."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from lineage.channel.errors import ChannelError
from lineage.digests import canonical, digest_json
from lineage.frozen import Frozen

CHAMPION = "champion.json"
"""The document of a model that says who its champion is."""
Digest = Annotated[str, StringConstraints(pattern=r"^(tree-)?sha256:[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]([A-Za-z0-9 ._-]*[A-Za-z0-9_.-])?$")]
"""A model's name, which is part of paths and addresses."""


class File(BaseModel):
    """A file of the model folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")

    # No part of it is empty, "." or "..": whoever fetches the folder writes to this path below another one.
    name: str = Field(pattern=r"^(?!([^\n]*/)?\.{0,2}(/|\Z))[^\\\0\n]+\Z")
    """Its path below the folder, with ``/``."""
    size: int
    """Bytes."""
    digest: Digest


class Champion(Frozen):
    """Who is champion of a model, as the ledger says; or that nobody is, where ``version`` is empty."""

    model: Name
    version: str = ""
    weights: Digest | None = None
    """Digest of the weights' folder."""
    folder: Digest | None = None
    """Digest of the whole model folder: code, requirements and weights."""
    place: str = ""
    """URI of the model folder. Whoever fetches from it checks each of ``files``."""
    files: tuple[File, ...] = ()
    """All files of the model folder, in the order of their names."""
    verdict: Digest | None = None
    decision: str = ""
    figures: tuple[dict[str, Any], ...] = ()
    """What the gate measured, for people."""
    ledger: str
    entry: int
    """Index of the ledger's entry that moved the champion."""
    head: Digest
    """Digest of that entry."""
    size: int
    """Entries of the ledger when this was said."""
    time: str
    withdrawn: tuple[Digest, ...] = ()
    """Digests of weights and folders that nobody may use any more."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        named = (self.version, self.weights, self.folder, self.place, self.files)
        if any(named) and not all(named):
            raise ValueError("a champion has version, weights, folder, place and files; no champion has none of them")
        listing = [[file.name, file.digest] for file in self.files]
        if any(named) and (listing != sorted(listing) or self.folder != f"tree-{digest_json(listing)}"):
            raise ValueError(f"its files do not give the digest of the model folder, {self.folder}")
        if {self.weights, self.folder} & {*self.withdrawn}:
            raise ValueError(f"version {self.version} is withdrawn: nobody may use it")
        return self

    @classmethod
    def read(cls, content: bytes) -> Champion:
        """A champion from its document.

        Raises:
            ChannelError: it contradicts itself, or its weights are withdrawn.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise ChannelError(f"what the channel says of a champion does not hold: {error}") from error

    def content(self) -> bytes:
        """The document: equal bytes for equal champions."""
        return canonical(self.model_dump(mode="json"))
