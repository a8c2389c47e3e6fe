"""MEDIUM: one client keeps everybody else waiting."""

from __future__ import annotations

import contextlib
import json
import time
from threading import Thread

import requests

from infra.governed.writes import Writes
from tests.servers.governed import READER, Pipeline, Server, pin_policy


def entry_of(server: Server, numbers: int) -> str:
    """An entry that would be the next one, unsigned, with a large policy."""
    state = server.ask("GET", "/api/2.0/triptych/state").json()
    policy = {"kind": "policy-set", "model": "m", "digest": "x", "evaluation": {}, "user": "u", "reason": "r"}
    body = {**policy, "gate": {"a": [0.5] * numbers}}
    head = {"ledger": state["ledger"], "index": state["size"], "previous": state["head"], "time": "2026"}
    return json.dumps({**head, "key": "0" * 64, "signature": "", "body": body})


def test_a_large_unsigned_entry_of_a_reader_keeps_all_others_out(basic_server: Server) -> None:
    # It is written as canonical JSON, in Python, within the ledger's exclusive lock, before its signature is looked at.
    content = entry_of(basic_server, 6_000_000)
    answers: list[requests.Response] = []

    def send() -> None:
        path = "/api/2.0/triptych/entries"
        answers.append(
            basic_server.ask("POST", path, user=READER, data=content, headers={"Content-Type": "text/plain"})
        )

    sending = Thread(target=send)
    sending.start()
    longest = 0.0
    while sending.is_alive():
        begun = time.monotonic()
        with contextlib.suppress(requests.RequestException):
            basic_server.ask("GET", "/api/2.0/triptych/state")
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.05)
    assert answers[0].status_code in (400, 413), f"{len(content)} bytes were read; others waited {longest:.1f} s"


def test_moves_that_wait_leave_no_thread_for_anybody(victim: Server) -> None:
    pin_policy(victim, "portraits")
    version = Pipeline(victim).candidate("portraits", "first")

    def ask() -> None:
        with contextlib.suppress(requests.RequestException):
            victim.move("promote", "portraits", version.number)

    # As a worker holds it that copies a large file to a bucket; a large model that is read does the same.
    with Writes(victim.folder / "mark.writes").into([version.mlflow_run]):
        asked = [Thread(target=ask, daemon=True) for _ in range(60)]
        for thread in asked:
            thread.start()
        time.sleep(3)
        try:
            answered = requests.get(f"{victim.url}/api/2.0/triptych/state", timeout=10).ok
        except requests.Timeout:
            answered = False
    for thread in asked:
        thread.join()
    assert answered


def test_an_upload_into_another_run_keeps_a_move_waiting(victim: Server) -> None:
    # Locks go by two digits of whatever looks like a run in a path, in any experiment: six clients that upload
    # 24 MB each, into runs that do not exist, held a promotion for 12 s, and it fails after 120.
    pin_policy(victim, "portraits")
    version = Pipeline(victim).candidate("portraits", "first")
    strange = version.mlflow_run[:2] + "0" * 30
    with Writes(victim.folder / "mark.writes").into([strange]):
        try:
            body = {"action": "promote", "model": "portraits", "version": version.number}
            answered = requests.post(f"{victim.url}/api/2.0/triptych/moves", json=body, timeout=10).ok
        except requests.Timeout:
            answered = False
    assert answered
