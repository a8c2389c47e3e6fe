from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.channel.worlds import World, champion
from tests.servers.engines import s3


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A channel that says nothing yet."""
    world = World(tmp_path)
    assert world.root
    return world


@pytest.fixture
def one(world: World) -> World:
    """A channel that says: version 1. Nobody read it."""
    world.publish(champion("1"))
    return world


@pytest.fixture(scope="module")
def storage() -> Iterator[None]:
    """An S3 server, in whose environment the tests run, with an empty bucket."""
    with s3(channels=False):
        yield


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def http_server(handler: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def served() -> Iterator[Callable[[str | Path, Any], str]]:
    """Serves a folder over HTTP; gives the address."""
    with ExitStack() as open_servers:

        def serve(folder: str | Path, handler: Any = Quiet) -> str:
            return open_servers.enter_context(http_server(partial(handler, directory=str(folder))))

        yield serve
