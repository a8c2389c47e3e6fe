"""Several writers at once: real processes against a real database, and a server with several workers."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from lineage.digests import LineageError
from lineage.embedded import Embedded
from lineage.entries import Recorded, StaleError
from lineage.ledger import Ledger, open_database
from lineage.moves import ServerMover
from lineage.signing import make_keys, open_signer
from tests.servers.conftest import portraits_on
from tests.servers.engines import database
from tests.servers.governed import BASE, Pipeline, Server, digest_of, signed_in

WRITERS, EACH, ROUNDS = 8, 100, 3


def processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def write(url: str, root: str, key: str, writer: int) -> None:
    ledger, signer = Ledger.open(url, root), open_signer(key)
    for number in range(EACH):
        ledger.append(Recorded(run=f"run-{writer}", step=f"step-{number}", status="complete", record=BASE), signer)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_entry_is_lost(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    home = Embedded(tmp_path)
    url = home.url if kind == "sqlite" else database(request.getfixturevalue("cluster"), "appends")
    open_database(url, make_keys(home.keys), lambda: open_signer(home.uri("root")))
    with processes(WRITERS) as pool:
        for done in [pool.submit(write, url, home.root, home.uri("run"), writer) for writer in range(WRITERS)]:
            done.result()
    state = Ledger.open(url, home.root).state  # checks every signature and link
    assert state.size == 1 + WRITERS * EACH
    assert sum(len(steps) for steps in state.records.values()) == WRITERS * EACH


def ask(url: str, model: str, version: str) -> str:
    try:
        ServerMover(url, model).move("promote", version)
    except StaleError:
        return "stale"
    except LineageError as error:
        return str(error)
    return "promoted"


@pytest.mark.parametrize("name", ["open_server", "large_server"])
def test_of_two_promotions_at_once_one_wins(name: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(name)
    pipeline = Pipeline(server)
    portraits = portraits_on(server, "raced")
    incumbent = portraits.champion
    with signed_in(server), processes(2) as pool:
        for lap in range(ROUNDS):
            rivals = [pipeline.candidate("raced", f"{lap}-{rival}", digest_of(incumbent)) for rival in "ab"]
            asked = [pool.submit(ask, server.url, "raced", rival.number) for rival in rivals]
            answers = [done.result() for done in asked]
            assert Counter(answers) == {"promoted": 1, "stale": 1}
            incumbent = rivals[answers.index("promoted")]
            assert server.champion("raced") == incumbent.number
    state = server.ledger().state
    assert [champion.version for champion in state.champions["raced"]][-1] == incumbent.number
    assert len(state.champions["raced"]) == 1 + ROUNDS
