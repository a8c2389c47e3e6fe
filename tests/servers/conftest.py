from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lineage.registry import Version
from tests.servers.engines import database, postgresql, s3
from tests.servers.governed import EDITOR, Pipeline, Server, digest_of, governed, pin_policy, settings, signed_in


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.servers)


@pytest.fixture(scope="session")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SQLite, local files, two workers, no authentication."""
    folder = tmp_path_factory.mktemp("open")
    with governed(folder, settings(folder)) as server:
        yield server


@pytest.fixture(scope="session")
def basic_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SQLite, local files, two workers, MLflow's basic-auth."""
    folder = tmp_path_factory.mktemp("basic")
    with governed(folder, settings(folder, authentication="basic-auth")) as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A PostgreSQL cluster."""
    with postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def storage() -> Iterator[dict[str, str]]:
    """An S3 server with a bucket for artifacts and a locked one for the witness."""
    with s3(artifacts=False, witness=True) as environment:
        yield environment


@pytest.fixture(scope="session")
def large_server(cluster: str, storage: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """PostgreSQL for backend and ledger, S3 for artifacts and witness, three workers, users named by a proxy."""
    folder = tmp_path_factory.mktemp("large")
    more = storage | {"TRIPTYCH_WITNESS": "s3://witness/checkpoints", "TRIPTYCH_CHANNEL": "s3://artifacts/channel"}
    environment = settings(folder, database(cluster, "ledger"), "header", **more)
    with governed(folder, environment, 3, database(cluster, "mlflow"), "s3://artifacts/models") as server:
        yield server


@pytest.fixture(scope="session", params=["open", "basic"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(f"{request.param}_server")
    return found


@dataclass(frozen=True)
class Portraits:
    """A governed model on a server: its champion, a rejected version, and one that may follow."""

    server: Server
    model: str
    champion: Version
    rejected: Version
    next: Version


def portraits_on(server: Server, model: str) -> Portraits:
    pipeline = Pipeline(server)
    pin_policy(server, model)
    first = pipeline.candidate(model, "first")
    assert server.set_alias(model, first.number).ok
    rejected = pipeline.candidate(model, "rejected", digest_of(first), "reject")
    after = pipeline.candidate(model, "next", digest_of(first))
    allow_edits(server, model)
    return Portraits(server, model, first, rejected, after)


def allow_edits(server: Server, model: str) -> None:
    """Let the editor edit a model, where the server knows its users."""
    if server.authentication != "basic-auth":
        return
    from mlflow.server import get_app_client

    with signed_in(server):
        client = get_app_client("basic-auth", tracking_uri=server.url)
        client.grant_user_permission(EDITOR, "registered_model", model, "EDIT")


@pytest.fixture(scope="session")
def portraits(server: Server) -> Portraits:
    return portraits_on(server, "portraits")


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Server]:
    """A server of one's own, to be broken."""
    with governed(tmp_path, settings(tmp_path), workers=1) as server:
        yield server
