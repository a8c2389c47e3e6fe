"""Attacks by who may write the channel's folder (a share that a web server serves) and holds no key."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from pathlib import Path
from typing import Any

from lineage.channel.errors import ChannelError
from tests.channel.worlds import World, champion


def _publish(folder: Path, told: Any) -> None:
    try:
        World(folder).publish(champion("2"))
        told.put("published")
    except ChannelError as error:
        told.put(f"refused: {error}")


def published(world: World) -> str:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=_publish, args=(world.folder, told))
    process.start()
    try:
        return str(told.get(timeout=25))
    except Exception:
        return ""
    finally:
        process.kill()
        process.join()


def test_control(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(champion("1"))
    assert published(world) == "published"


def test_a_pipe_in_the_place_of_the_channels_lock_holds_no_publisher(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(champion("1"))
    lock = Path(world.place) / ".lock"
    lock.unlink()
    os.mkfifo(lock)
    assert published(world)


def test_a_pipe_in_the_place_of_a_partial_file_holds_no_publisher(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(champion("1"))
    os.mkfifo(Path(world.place) / "metadata" / ".timestamp.json.partial")
    assert published(world)


def test_a_link_in_the_place_of_a_partial_file_has_nothing_written_elsewhere(tmp_path: Path) -> None:
    """The name of the partial file is known beforehand, and opened through links."""
    world = World(tmp_path)
    world.publish(champion("1"))
    victim = tmp_path / "authorized_keys"
    victim.write_text("the publisher's own")
    (Path(world.place) / "metadata" / ".timestamp.json.partial").symlink_to(victim)
    with contextlib.suppress(ChannelError):
        world.publish(champion("2"))
    assert victim.read_text() == "the publisher's own"


def test_a_link_out_of_the_channel_is_not_served_or_read(tmp_path: Path) -> None:
    """A publisher takes no file from outside of its folder, and writes none through a folder's link."""
    world = World(tmp_path)
    world.publish(champion("1"))
    outside = tmp_path / "outside"
    outside.mkdir()
    targets = Path(world.place) / "targets"
    for path in sorted(targets.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    targets.rmdir()
    targets.symlink_to(outside)
    with contextlib.suppress(ChannelError):
        world.publish(champion("2"))
    assert not list(outside.rglob("*"))
