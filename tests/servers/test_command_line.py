"""`triptych` with a governed server on a work folder, as the containers runner and `triptych ui` start it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lineage.registry import Registry
from pipelines.cli import app
from pipelines.commands.request import remembered
from pipelines.server import tracking_server
from pipelines.workspace import Workspace
from tests.lineage.worlds import MODEL, World

pytestmark = pytest.mark.servers


@dataclass(frozen=True)
class Served(World):
    """A work folder whose versions were made by way of its server, so that they name places of the server's."""

    url: str = ""

    @property
    def store(self) -> Registry:
        return Registry(self.url or f"sqlite:///{self.folder / 'mlflow.db'}", MODEL)


@pytest.fixture
def served(tmp_path: Path, migrated: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Version 1 was approved against the base, version 2 rejected against version 1."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "work"
    (folder / "logs").mkdir(parents=True)
    (folder / "mlflow.db").write_bytes(migrated)
    with tracking_server(Workspace(folder)) as url:
        made = Served(folder, url)
        made.candidate("one", made.base)
        made.candidate("two", made.digest("one"), "reject")
        yield made


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_server_is_asked_and_what_was_seen_of_it_is_remembered(served: Served) -> None:
    done = call("promote", "1", "--server", served.url)
    assert done.exit_code == 0, done.output
    assert served.agrees() == "1"
    refused = call("promote", "2", "--server", served.url)
    assert refused.exit_code == 1 and "the gate's verdict on version 2 of portraits is reject" in refused.output
    officers = call("promote", "2", "--override", "--reason", "incident 7", "--server", served.url)
    assert officers.exit_code == 1, "without authentication nobody is an officer"
    assert call("reconcile", "--server", served.url).exit_code == 0
    (mark,) = remembered(served.url).glob("*.json")
    seen = json.loads(mark.read_text())
    assert seen["size"] == served.state.size
    mark.write_text(json.dumps(seen | {"size": seen["size"] + 1}))
    for command in (("promote", "1"), ("reconcile",), ("ledger", "show"), ("policy", "show")):
        cut = call(*command, "--server", served.url)
        assert cut.exit_code == 1 and "taken off its end" in cut.output, command


def test_a_containers_work_folder_is_moved_without_its_server(served: Served) -> None:
    for version in served.store.versions():
        assert version.source.startswith("mlflow-artifacts:")
    alone = Served(served.folder)
    assert call("promote", "1", "--work-dir", alone.folder).exit_code == 0
    moved = call("promote", "2", "--override", "--reason", "incident 7", "--work-dir", alone.folder)
    assert moved.exit_code == 0 and alone.agrees() == "2", moved.output
    assert call("rollback", "1", "--reason", "complaints", "--work-dir", alone.folder).exit_code == 0
    assert alone.agrees() == "1"
    held = call("reconcile", "--work-dir", alone.folder)
    assert held.exit_code == 0 and "cannot be trusted" not in held.output
    for path in (alone.folder / "artifacts").rglob("weights.safetensors"):
        path.write_text("mine")
    changed = call("reconcile", "--work-dir", alone.folder)
    assert changed.exit_code == 1 and "the champion, version 1, cannot be trusted" in changed.output


def test_the_servers_channel_is_the_work_folders(served: Served) -> None:
    call("promote", "1", "--server", served.url)
    held = call("channel", "verify", "--work-dir", served.folder)
    assert held.exit_code == 0 and "portraits: champion: version 1" in held.output
    assert call("policy", "set", "--reason", "x", "--server", served.url).exit_code == 1, "that is an officer's"
