"""The champion slot: what it takes up, what it refuses, and what it does while the channel is silent or lies."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lineage.artifacts import WEIGHTS_FOLDER
from lineage.channel.publisher import init
from lineage.digests import LineageError, hex_of
from tests.channel.worlds import DAY, MODEL, new_key
from tests.serving.backends import Painter, Slow
from tests.serving.world import World, serving, until


def refused(status: dict[str, Any]) -> str:
    return " ".join(status["problems"])


def test_a_promotion_reaches_the_next_picture(world: World) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        world.promote("2")
        status = server.wait(version="2")
        assert (status["previous"], status["state"]) == ("1", "ready")
        assert server.draw().json()["version"] == "2"
        assert server.draw(model=f"{MODEL}@1").json()["version"] == "1"


def test_a_wake_up_is_enough_where_the_poll_is_long(world: World) -> None:
    import requests

    world.promote("1")
    with serving(world.settings(poll=3600.0)) as server:
        server.wait(version="1")
        world.promote("2")
        assert requests.post(f"{server.url}/wake", timeout=10).status_code == 202
        server.wait(version="2")


def test_the_precision_that_a_version_was_judged_in_is_the_one_that_it_is_loaded_in(world: World) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        world.promote("2", precision="bfloat16")
        server.wait(version="2")
        told = {one["version"]: one["sampling"]["precision"] for one in server.get("/v1/models").json()["data"]}
        assert told == {"1": "float32", "2": "bfloat16"}


def test_requests_in_flight_finish_on_the_model_they_began_with(world: World) -> None:
    from concurrent.futures import ThreadPoolExecutor

    world.promote("1")
    with serving(world.settings(), Slow()) as server, ThreadPoolExecutor(1) as pool:
        server.wait(version="1")
        drawn = pool.submit(server.draw, num_inference_steps=30)
        until(lambda: server.backend.active, bool)
        for version in ("2", "3"):  # past the one that is kept
            world.promote(version)
            server.wait(version=version)
        answer = drawn.result()
        assert answer.status_code == 200
        assert answer.json()["version"] == "1"
        until(lambda: [name for name in server.backend.weights if "@1" in name], lambda names: not names)


def test_a_rollback_needs_no_fetch(world: World) -> None:
    first = world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        world.promote("2")
        server.wait(version="2")
        shutil.rmtree(world.place("1"))
        world.publish(first, signature=b"{}")
        server.wait(version="1")
        assert server.draw().json()["version"] == "1"


def test_the_previous_is_given_up_where_memory_is_short(world: World) -> None:
    first = world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        server.slot.memory = lambda: 0
        world.promote("2")
        assert server.wait(version="2")["previous"] is None
        assert server.draw(model=f"{MODEL}@1").status_code == 404
        shutil.rmtree(world.place("1"))
        world.publish(first, signature=b"{}")
        server.wait(version="1")  # from the disk


def test_a_withdrawal_stops_new_requests_within_one_poll(world: World) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        world.withdraw("1")
        server.wait(version=None)
        for model in (MODEL, f"{MODEL}@1"):
            answer = server.draw(model=model)
            assert answer.status_code == 410
            assert answer.json()["error"]["code"] == "model_withdrawn"


def test_a_withdrawal_counts_while_another_champion_is_fetched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.promote("1")
    with serving(world.settings(), Stalling()) as server:
        server.wait(version="1")
        server.backend.stalls = True  # type: ignore[attr-defined]
        world.promote("2")
        until(lambda: server.slot._taking is not None, bool)
        world.withdrawn += [str(world.made["1"].weights)]
        world.publish(world.made["2"])
        server.wait(version=None)
        assert server.draw().status_code == 503


class Stalling(Painter):
    """Loads for ever once told so."""

    stalls = False

    async def warm(self, model: str) -> None:
        import asyncio

        await asyncio.sleep(3600 if self.stalls else 0)


def test_names_that_are_not_there(world: World) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        for model in ("other", f"{MODEL}@2", f"{MODEL}@", "", f"{MODEL}@1@1", "../etc/passwd"):
            assert server.draw(model=model).status_code == (200 if model in ("", f"{MODEL}@") else 404), model


def break_weights(world: World) -> None:
    (world.place("2") / WEIGHTS_FOLDER / "weights.safetensors").write_text("somebody else's weights")


def grow_weights(world: World) -> None:
    with (world.place("2") / WEIGHTS_FOLDER / "weights.safetensors").open("a") as stream:
        stream.write("x" * 2**20)


def cut_weights(world: World) -> None:
    path = world.place("2") / WEIGHTS_FOLDER / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def exchange_loader(world: World) -> None:
    (world.place("2") / "MLmodel").write_text("flavors: {python_function: {loader_module: os}}")


def link_weights(world: World) -> None:
    path = world.place("2") / WEIGHTS_FOLDER / "weights.safetensors"
    kept = world.folder / "elsewhere"
    path.rename(kept)
    path.symlink_to(kept)


@pytest.mark.parametrize("tamper", [break_weights, grow_weights, cut_weights, exchange_loader, link_weights])
def test_a_tampered_version_is_refused_and_the_old_one_draws_on(world: World, tamper: Callable[[World], None]) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        world.build("2")
        signature = world.signature("2")
        tamper(world)
        world.publish(world.made["2"], signature=signature)
        status = until(server.status, lambda status: "version 2 was refused" in refused(status))
        assert (status["version"], status["state"]) == ("1", "degraded")
        assert server.draw().json()["version"] == "1"
        assert not list(server.app.state.slot.settings.models.glob(f"{hex_of(str(world.made['2'].folder))}"))
        assert "triptych_serving_swaps_total{result=" in server.get("/metrics").text


def test_a_download_that_failed_is_taken_up_again(world: World) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        world.build("2")
        signature = world.signature("2")
        path = world.place("2") / WEIGHTS_FOLDER / "weights.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        world.publish(world.made["2"], signature=signature)
        until(server.status, lambda status: "version 2 was refused" in refused(status))
        path.write_bytes(whole)
        server.wait(version="2", problems=[])


def test_what_was_fetched_and_changed_on_the_disk_is_fetched_anew(world: World) -> None:
    first = world.promote("1")
    settings = world.settings()
    with serving(settings) as server:
        server.wait(version="1")
    kept = settings.models / hex_of(str(first.folder)) / WEIGHTS_FOLDER / "weights.safetensors"
    kept.write_text("changed on the disk")
    with serving(settings) as server:
        server.wait(version="1")
        assert b"weights of 1" in next(iter(server.backend.weights.values()))


def test_code_in_a_model_folder_is_refused_even_where_the_channel_names_it(world: World) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        world.build("2")
        again = world.place("2").rename(world.place("2").with_name("code"))
        (again / "loader.py").write_text("print('hello')")
        from lineage.artifacts import folder_digest, listing
        from lineage.channel.champion import File

        files = listing(again)
        told = {"files": tuple(File(name=f.name, size=f.size, digest=f.digest) for f in files)}
        world.publish(
            world.made["2"].model_copy(update=told | {"folder": folder_digest(files), "place": again.as_uri()}),
            signature=b"{}",
        )
        until(server.status, lambda status: "loader.py" in refused(status))
        assert server.draw().json()["version"] == "1"


def test_weights_under_another_digest_than_the_ledgers_are_refused(world: World) -> None:
    said = world.build("1")
    world.publish(said.model_copy(update={"weights": f"tree-sha256:{'0' * 64}"}))
    with serving(world.settings()) as server:
        until(server.status, lambda status: "have not the digest" in refused(status))
        assert server.draw().status_code == 503


def test_a_model_that_draws_nan_is_refused(world: World) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        world.promote("2", text="NaN")
        until(server.status, lambda status: "draws NaN" in refused(status))
        assert server.draw().json()["version"] == "1"
        assert 'swaps_total{result="refused"}' in server.get("/metrics").text
        until(lambda: len(server.backend.weights), lambda held: held == 1)


def test_a_backend_that_draws_with_other_weights_is_found_out(world: World) -> None:
    class Lying(Painter):
        async def digest(self, model: str) -> str:
            return f"tree-sha256:{'f' * 64}"

    world.promote("1")
    with serving(world.settings(), Lying()) as server:
        until(server.status, lambda status: "the backend draws with" in refused(status))
        assert server.draw().status_code == 503


def test_the_models_signature_must_be_by_a_key_that_counts(world: World) -> None:
    world.promote("1")
    settings = world.settings(model_keys=(world.folder / "keys" / "run.pub",))
    with serving(settings) as server:
        assert server.wait(version="1")["signature"] == "checked"
        world.build("2")
        world.publish(world.made["2"], signature=world.signature("1"))
        until(server.status, lambda status: "about other files" in refused(status))
    strange = world.settings("strange", model_keys=(world.folder / "keys" / "gate.pub",))
    world.publish(world.made["1"])
    with serving(strange) as server:
        until(server.status, lambda status: "none of the keys made the signature" in refused(status))
        assert server.draw().status_code == 503


def test_a_full_disk_refuses_the_new_champion_and_the_old_one_draws_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        full = shutil.disk_usage(world.folder)._replace(free=10)
        with monkeypatch.context() as patched:
            patched.setattr("serving.fetch.shutil.disk_usage", lambda path: full)
            world.promote("2")
            until(server.status, lambda status: "make room" in refused(status))
            assert server.draw().json()["version"] == "1"
        server.wait(version="2")


def test_a_disk_that_fills_while_it_fetches_leaves_no_half_file(world: World, tmp_path: Path) -> None:
    import threading

    from serving.fetch import FetchError, fetch

    said = world.build("1")
    # A real device that has no room: every write to it fails.
    store = tmp_path / "store"
    weights = store / f"{hex_of(str(said.folder))}.partial" / WEIGHTS_FOLDER / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.symlink_to("/dev/full")
    with pytest.raises(FetchError, match=f"cannot be fetched: OSError: .Errno {errno.ENOSPC}"):
        fetch(said, store, "", threading.Event())
    assert not weights.is_symlink()
    assert fetch(said, store, "", threading.Event()).name == hex_of(str(said.folder))


# The channel


def test_a_channel_that_is_gone_changes_nothing_until_it_expires(world: World) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        Path(world.channel.place).rename(world.folder / "away")
        status = server.wait(state="degraded")
        assert "channel" in refused(status)
        assert server.draw().headers["x-triptych-state"] == "degraded"


def test_where_nobody_vouches_any_more_it_degrades_and_then_stops(world: World) -> None:
    world.build("1")
    world.publish(world.made["1"], timedelta(seconds=3))
    with serving(world.settings(max_staleness=2.0)) as server:
        server.wait(version="1")
        status = server.wait(state="degraded")
        assert "expired" in refused(status)
        assert server.draw().status_code == 200
        assert server.wait(state="not ready")["overdue_seconds"] > 0
        answer = server.draw()
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        world.publish(world.made["1"], DAY)
        server.wait(state="ready")


def test_an_older_channel_is_not_believed(world: World) -> None:
    world.promote("1")
    old = world.channel.copied("old")
    with serving(world.settings()) as server:
        server.wait(version="1")
        world.promote("2")
        server.wait(version="2")
        shutil.rmtree(world.channel.place)
        old.rename(world.channel.place)
        until(server.status, lambda status: "rolled back" in refused(status))
        assert server.draw().json()["version"] == "2"


def test_a_forked_channel_is_not_believed(world: World) -> None:
    from tuf.api.metadata import Metadata

    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        path = Path(world.channel.place) / "metadata" / "timestamp.json"
        forked = Metadata.from_file(str(path))
        forked.signed.expires = forked.signed.expires.replace(year=forked.signed.expires.year + 1)
        forked.sign(world.channel.key("witness"))
        path.write_bytes(forked.to_bytes())
        until(server.status, lambda status: "forked" in refused(status))


def test_what_a_revoked_key_signs_is_not_believed(world: World) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        keys = {"promotion": new_key().public_key, "witness": world.channel.key("witness").public_key}
        init(world.channel.place, keys, world.channel.key("root"))  # type: ignore[arg-type]
        until(server.status, lambda status: "is not signed by its root's keys" in refused(status))
        assert server.draw().json()["version"] == "1"


def test_a_server_that_begins_without_a_channel_draws_nothing(world: World) -> None:
    assert world.channel.root
    with serving(world.settings(channel=str(world.folder / "nowhere"))) as server:
        until(server.status, lambda status: status["problems"])
        assert server.get("/health/live").status_code == 200
        assert server.get("/health/ready").status_code == 503
        assert server.draw().status_code == 503


def test_a_pinned_server_keeps_its_version_until_it_is_withdrawn(world: World) -> None:
    world.promote("1")
    settings = world.settings(mode="pinned", version="1")
    with serving(settings) as server:
        server.wait(version="1")
        world.promote("2")
        time.sleep(0.3)
        assert server.status()["version"] == "1"
    with serving(settings) as server:  # also one that begins when another version is champion
        server.wait(version="1")
        world.withdrawn += [str(world.made["1"].folder)]
        world.publish(world.made["2"])
        server.wait(version=None)
        assert server.draw(model=f"{MODEL}@1").status_code == 410
    with serving(world.settings("other", mode="pinned", version="7")) as server:
        until(server.status, lambda status: "was never fetched here" in refused(status))


CONTRADICTIONS: list[dict[str, Any]] = [
    {"mode": "pinned"},
    {"version": "3"},
    {"mode": "pinned", "version": "latest"},
    {"content_key": Path("key.pem")},
    {"root": Path("nowhere.json")},
    {"poll": 0},
    {"unknown": 1},
]


@pytest.mark.parametrize("told", CONTRADICTIONS, ids=str)
def test_settings_that_contradict_each_other_are_refused(world: World, told: dict[str, Any]) -> None:
    with pytest.raises(LineageError, match=r"TRIPTYCH_SERVE_|go together|goes with|no nowhere"):
        world.settings(**told)


def test_a_model_in_a_bucket_is_fetched(world: World) -> None:
    from boto3 import client

    from tests.servers.engines import s3

    said = world.build("1")
    with s3(models=False):
        for file in said.files:
            client("s3").upload_file(str(world.place("1") / file.name), "models", f"a/1/{file.name}")
        world.publish(said.model_copy(update={"place": "mlflow-artifacts:/a/1"}))
        with serving(world.settings(artifacts="s3://models")) as server:
            server.wait(version="1")


def test_a_model_on_a_web_server_is_fetched(world: World) -> None:
    from functools import partial

    from tests.channel.conftest import Quiet, http_server

    said = world.build("1")
    with http_server(partial(Quiet, directory=str(world.folder / "store"))) as url:
        world.publish(said.model_copy(update={"place": f"{url}/1"}))
        with serving(world.settings()) as server:
            server.wait(version="1")


def test_only_what_is_needed_stays_on_the_disk(world: World) -> None:
    settings = world.settings()
    with serving(settings) as server:
        for version in "1234":
            world.promote(version)
            server.wait(version=version)
    kept = {path.name for path in settings.models.iterdir() if path.is_dir()}
    assert {hex_of(str(world.made[v].folder)) for v in "34"} <= kept
    assert len(kept) <= 3
