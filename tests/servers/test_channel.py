"""The promotion channel over HTTP: every move is announced, and who follows it needs no log-in and trusts no server."""

from __future__ import annotations

import http.client
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lineage.channel.client import champion
from lineage.moves import ServerMover
from tests.servers.conftest import portraits_on
from tests.servers.governed import OFFICER, Server, digest_of, signed_in

CHANNEL = "/api/2.0/triptych/channel"


@pytest.mark.parametrize("name", ["basic_server", "large_server"])
def test_every_move_is_announced_to_who_is_not_logged_in(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(name)
    portraits = portraits_on(server, "announced")
    root, url = (server.folder / "channel-root.json").read_bytes(), f"{server.behind}{CHANNEL}"

    def told() -> tuple[str, str | None]:
        now = champion(root, url, "announced", tmp_path / "client")
        return now.version, now.weights

    assert told() == (portraits.champion.number, digest_of(portraits.champion))
    assert server.set_alias("announced", portraits.next.number).ok
    assert told() == (portraits.next.number, digest_of(portraits.next))
    with signed_in(server, OFFICER):
        mover = ServerMover(server.url, "announced")
        assert mover.move("withdraw", portraits.next.number, "a person took back consent") == [
            f"withdraw of version {portraits.next.number} of announced: done",
            f"version {portraits.next.number}: tag standing set to withdrawn",
            f"alias champion was on version {portraits.next.number}, is on no version",
            "channel: no version is champion of announced",
        ]
        assert told() == ("", None)
    with signed_in(server):
        assert mover.move("rollback", portraits.champion.number, "it was good")[0].endswith("done")
        assert mover.reconcile().said == []
    assert told() == (portraits.champion.number, digest_of(portraits.champion))


@pytest.mark.parametrize(
    "path",
    [
        "../mark.json",
        "%2e%2e/mark.json",
        "..%2fmark.json",
        "metadata/../../mark.json",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "metadata",
        "",
        ".lock",
        "metadata/.timestamp.json.partial",
        "metadata%00/timestamp.json",
        "metadata//timestamp.json",
        "metadata/../targets",
        "a" * 5000,
        "a " * 2000 + "!",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
def test_nothing_but_the_channels_files_is_served(open_server: Server, path: str, method: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(open_server.url).netloc, timeout=60)
    connection.request(method, f"{CHANNEL}/{path.replace(' ', '%20')}")
    assert connection.getresponse().status in (404, 405)
