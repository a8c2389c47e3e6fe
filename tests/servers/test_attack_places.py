"""HIGH: an experiment's location is any place that the server's process can write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lineage.ledger import Ledger
from tests.servers.governed import BASE, READER, Pipeline, Server, governed, judgement, pin_policy, settings

MLFLOW = "/api/2.0/mlflow"


def write_at(server: Server, name: str, location: str, files: int = 1, **more: str) -> None:
    """Upload files to the run of an experiment that lies at ``location``, as far as the server lets us."""
    body = {"name": name, "artifact_location": location}
    made = server.ask("POST", f"{MLFLOW}/experiments/create", json=body, **more)
    if not made.ok:
        return
    body = {"experiment_id": made.json()["experiment_id"]}
    run = server.ask("POST", f"{MLFLOW}/runs/create", json=body, **more).json()["run"]["info"]["run_id"]
    for number in range(files):
        path = f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path=x{number}"
        server.ask("POST", path, data=b"x", **more)


def workers_of(server: Server) -> list[str]:
    """The numbers of the server's processes."""
    found, mark = [], server.environment["TRIPTYCH_MARK"].encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes():
                found.append(process.name)
    return found


@pytest.mark.parametrize("place", ["ledger.db-journal", "mlflow.db-journal"])
def test_a_folder_where_a_database_wants_its_journal_stops_the_server(victim: Server, place: str) -> None:
    write_at(victim, "squatter", str(victim.folder / place))
    assert victim.ask("GET", "/api/2.0/triptych/state").ok
    assert victim.ask("POST", f"{MLFLOW}/experiments/create", json={"name": "another"}).ok


def test_a_folder_where_the_mark_is_written_stops_the_server(victim: Server) -> None:
    # A client tries all numbers: there are few in a container.
    for process in workers_of(victim):
        write_at(victim, f"squatter-{process}", str(victim.folder / f"mark.json.{process}.partial"))
    pin_policy(victim, "portraits")  # anything that makes the mark move
    answer = victim.ask("GET", "/api/2.0/triptych/state")
    assert answer.ok, answer.text


def test_a_reader_stops_uploads_and_moves_of_all_runs(basic_server: Server) -> None:
    prefixes = [f"{number:02x}" for number in range(256)]
    taken = {path.name for path in (basic_server.folder / "mark.writes").iterdir()}
    free = next(prefix for prefix in prefixes if prefix not in taken)
    write_at(basic_server, "squatter", str(basic_server.folder / "mark.writes" / free), user=READER)
    assert not (basic_server.folder / "mark.writes" / free).is_dir(), "who may only read took a lock's place"


@pytest.fixture
def on_s3(storage: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    with governed(
        tmp_path,
        settings(tmp_path, **storage | {"TRIPTYCH_WITNESS": "s3://witness/checkpoints"}),
        1,
        destination="s3://artifacts/models",
    ) as server:
        yield server


def test_anybody_writes_into_the_witness_through_the_server(on_s3: Server) -> None:
    # Each entry reads all that lies under the next checkpoint's name, and the start all under the ledger's.
    import boto3

    state = on_s3.ledger().state
    write_at(on_s3, "squatter", f"s3://witness/checkpoints/{state.ledger}-{state.size + 1:010d}", files=3)
    ledger = Ledger.open(on_s3.url, on_s3.root)
    ledger.append(judgement("portraits", "r", BASE, BASE, "reject", "sha256:r"), Pipeline(on_s3).gate_signer)
    listed = boto3.client("s3").list_objects_v2(Bucket="witness").get("Contents", [])
    assert [row["Key"] for row in listed if not row["Key"].endswith(".json")] == []
