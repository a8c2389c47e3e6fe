"""Docker engines: finding one, or running one of our own."""

from __future__ import annotations


class ContainerError(Exception):
    """An engine, an image or a container is not as it must be; the message says which and what to do."""
