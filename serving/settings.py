"""What the server is told: by environment variables that begin with ``TRIPTYCH_SERVE_``, or by `triptych serve`.

Secrets stand in files, never in variables: ``TRIPTYCH_SERVE_API_KEY=/run/secrets/key``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from lineage.channel.champion import Name
from lineage.environment import Environment


class Settings(Environment):
    """What a server of the champion is told."""

    model_config = SettingsConfigDict(env_prefix="TRIPTYCH_SERVE_")

    channel: str
    """Where the promotion channel is: ``https://…``, ``file:///…``, a path or ``s3://bucket/prefix``."""
    root: Path
    """A ``root.json`` of the channel, from whoever keeps the ledger's root key."""
    state: Path
    """A folder of this server's own: what it saw of the channel, the models it fetched, keys that it made."""
    model: Name | Literal[""] = ""
    """Which model to draw with; empty: the only one that the channel tells of."""
    mode: Literal["follow", "pinned"] = "follow"
    version: str = Field(default="", pattern=r"^\d*$")
    """The one version that a pinned server draws with."""
    poll: float = Field(default=30.0, gt=0)
    """Seconds between two looks at the channel."""
    max_staleness: float = Field(default=3600.0, ge=0)
    """Seconds after the channel's expiry for which the server still draws."""
    artifacts: str = ""
    """What stands for ``mlflow-artifacts:`` in the place of a model, such as ``s3://bucket/models``."""
    model_keys: tuple[Path, ...] = ()
    """Public keys (role ``run``) of which one must have signed the model; empty: the promotion key's word counts."""
    backend: str = "built-in"
    """Its name in the entry-point group ``triptych.backends``, or ``module:Class``."""
    backend_options: dict[str, Any] = Field(default_factory=dict)
    """What it is made with, as JSON: ``{"threads": 8}``."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_key: Path | None = None
    """File of the key that callers give as ``Authorization: Bearer …``; None: nobody is asked."""
    content_key: Path | None = None
    """The content-signing key, PEM; None: one is made in the state folder, with an authority of this machine's own."""
    content_chain: Path | None = None
    """Its certificate and those that lead to the authority, PEM."""
    content_timestamps: str = ""
    """URL of an RFC 3161 service that dates signatures."""
    picture_log: Path | None = None
    """File of perceptual hashes, by which a picture without credentials is found; None: none is kept."""
    log_prompts: bool = False
    most_waiting: int = Field(default=64, ge=0)
    """Pictures that may wait for a place; a request beyond that is refused at once."""
    most_prompt: int = Field(default=4000, ge=1)
    """Characters."""
    most_side: int = Field(default=2048, ge=8)
    """Pixels."""
    most_steps: int = Field(default=100, ge=1)
    most_pictures: int = Field(default=8, ge=1)
    """Of one request."""
    most_body: int = Field(default=65536, ge=1024)
    """Bytes."""
    deadline: float = Field(default=300.0, gt=0)
    """Seconds after which nobody wants a picture any more."""
    drain: float = Field(default=60.0, ge=0)
    """Seconds that requests in work get when the server is told to end."""
    leave: float = Field(default=0.0, ge=0)
    """Seconds between saying "not ready" and taking no more connections, so that a balancer looks elsewhere first."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.mode == "pinned") != bool(self.version):
            raise ValueError("a version goes with mode=pinned, and only with that")
        if (self.content_key is None) != (self.content_chain is None):
            raise ValueError("content_key and content_chain go together")
        if not self.root.is_file():
            raise ValueError(f"there is no {self.root} to trust the channel with; get it from who keeps the root key")
        return self

    @property
    def models(self) -> Path:
        """Where models are fetched to."""
        return self.state / "models"
