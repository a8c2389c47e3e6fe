"""Publishing: again, half, at once, from a place that was put back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Root, Timestamp

from lineage.channel import places
from lineage.channel import publisher as publishing
from lineage.channel.errors import ChannelError, UnreachableError
from lineage.channel.places import Bucket, Folder, open_place, read
from lineage.channel.publisher import init
from lineage.signing import make_keys
from tests.channel.worlds import (
    DOCUMENTS,
    MODEL,
    World,
    champion,
    new_key,
    publish_many,
    publish_until,
    started,
    was_killed,
)


def files(world: World) -> dict[str, bytes]:
    found = [path for path in Path(world.place).rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(world.place)): path.read_bytes() for path in found}


def number(world: World) -> int:
    return Metadata[Timestamp].from_file(f"{world.place}/metadata/timestamp.json").signed.version


def test_publishing_again_renews_the_timestamp_and_nothing_else(world: World) -> None:
    assert world.publish(champion("1")) == [f"channel: version 1 is champion of {MODEL}"]
    before, at = files(world), number(world)
    assert world.publish(champion("1")) == []
    after = files(world)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"metadata/timestamp.json"}
    assert number(world) == at + 1 or number(world) > at
    assert world.publisher().publish(champion("1"), DOCUMENTS, renew=False) == []
    assert files(world) == after


def test_documents_that_are_not_given_any_more_are_taken_away(one: World) -> None:
    one.publisher().publish(champion("2"), {"model.sig": b"signature"})
    channel = one.channel()
    assert channel.document(MODEL, "model.sig") == b"signature"
    with pytest.raises(ChannelError, match="has no verdict"):
        channel.document(MODEL, "verdict.dsse.json")


@pytest.mark.parametrize("fault", ["channel-documents", "channel-targets", "channel-snapshot", "channel-timestamp"])
def test_a_half_published_channel_gives_the_whole_previous_state_and_publishing_again_repairs(
    one: World, fault: str
) -> None:
    assert one.version() == "1"
    assert was_killed(started(publish_until, one.folder, "2", fault))
    done = fault == "channel-timestamp"
    channel = one.channel()
    channel.refresh()
    assert channel.champion(MODEL).version == ("2" if done else "1")
    assert channel.document(MODEL, "verdict.dsse.json") == (b"2" if done else DOCUMENTS["verdict.dsse.json"])
    said = one.publisher(mark=one.folder / "mark").publish(champion("2"), {"verdict.dsse.json": b"2"})
    assert bool(said) != done
    channel.refresh()
    assert (channel.champion(MODEL).version, channel.document(MODEL, "verdict.dsse.json")) == ("2", b"2")


def test_numbers_taken_by_what_a_crash_left_are_passed_even_where_the_clock_is_behind(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing.time, "time", lambda: 5.0)
    at = number(one)
    for left in (1, 2, 4):
        Path(one.place, "metadata", f"{at + left}.targets.json").write_bytes(b"left")
    Path(one.place, "metadata", f"{at + 8}.snapshot.json").write_bytes(b"left")
    one.publish(champion("2"))
    assert one.version() == "2" and number(one) == at + 16


def test_two_processes_publish_at_once_and_neither_loses(world: World) -> None:
    models = ["portraits", "landscapes"]
    processes = [started(publish_many, world.folder, model, 15) for model in models]
    channel, seen = world.channel(), 0
    while any(process.is_alive() for process in processes):
        if Path(world.place, "metadata", "timestamp.json").exists():
            channel.refresh()
            assert channel.timestamp.version >= seen, "numbers do not go back"
            seen = channel.timestamp.version
            for model in channel.models():
                channel.champion(model)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [world.version(model=model) for model in models] == ["15", "15"]


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_of_two_who_write_the_same_file_one_wins(kind: str, tmp_path: Path, storage: None) -> None:
    place = open_place(str(tmp_path) if kind == "folder" else "s3://channels/swapped")
    assert isinstance(place, Folder if kind == "folder" else Bucket)
    assert place.swap("a/name", None, b"first")
    assert not place.swap("a/name", None, b"second")
    assert not place.swap("a/name", b"firs", b"second") and not place.swap("a/name", b"first!", b"second")
    assert not place.swap("a/other", b"first", b"second")
    assert place.swap("a/name", b"first", b"third")
    assert b"".join(place.chunks("a/name")) == b"third"
    with pytest.raises(FileNotFoundError):
        list(place.chunks("a/other"))


def test_a_publication_that_always_loses_says_so(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = Folder.swap
    monkeypatch.setattr(Folder, "swap", lambda *at: "timestamp" not in at[1] and genuine(*at))
    with pytest.raises(ChannelError, match="others publish to the channel"):
        one.publish(champion("2"))
    monkeypatch.undo()
    assert one.version() == "1"


def test_a_state_that_was_put_back_is_not_signed_anew(one: World) -> None:
    """Somebody who can write to the place, and has no key, waits for the next heartbeat."""
    publisher = one.publisher(mark=one.folder / "mark")
    publisher.publish(champion("4", "landscapes"), {})
    old = one.copied("old")
    publisher.publish(champion("2"), DOCUMENTS)
    assert one.version() == "2"
    shutil.rmtree(one.place)
    shutil.copytree(old, one.place)
    said = publisher.publish(champion("2"), DOCUMENTS)
    assert re.search(r"was put back from \d+ to \d+", said[0]) and "publish other models again" in said[0]
    publisher.publish(champion("4", "landscapes"), {})
    assert one.version() == "2" and one.version(model="landscapes") == "4"


def test_a_damaged_mark_is_no_other_number(one: World) -> None:
    publisher, mark = one.publisher(mark=one.folder / "mark"), one.folder / "mark"
    publisher.publish(champion("2"), DOCUMENTS)
    whole = mark.read_bytes()
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        mark.write_bytes(damaged)
        if bytes(damaged).split() != whole.split():
            with pytest.raises(ChannelError, match="was damaged"):
                publisher.publish(champion("2"), DOCUMENTS)


def test_a_channel_whose_files_were_lost_goes_on_and_its_readers_follow(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert one.version() == "1"
    for path in Path(one.place, "metadata").iterdir():
        path.unlink()
    assert init(one.place, make_keys(one.folder / "keys"), one.key("root"))
    later = publishing.time.time() + 1
    monkeypatch.setattr(publishing.time, "time", lambda: later)
    one.publish(champion("2"))
    assert one.version() == "2", "numbers are of the clock, so they did not begin again"


@pytest.mark.parametrize("name", ["timestamp.json", "*.snapshot.json", "*.targets.json"])
def test_a_damaged_channel_is_begun_anew_and_never_taken_over(one: World, name: str) -> None:
    path = next(Path(one.place, "metadata").glob(name))
    path.write_bytes(path.read_bytes().replace(b'"version":', b'"version": '))
    path.write_bytes(b"damaged" if name == "timestamp.json" else path.read_bytes())
    said = one.publish(champion("1"))
    assert len(said) == 2 and "begins anew" in said[0]
    assert one.version() == "1"


def test_a_place_that_does_not_answer_is_not_begun_anew(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one.publish(champion("7", "landscapes"))
    lost, genuine = one.metadata("*.snapshot.json")[-1].name, Folder.chunks

    def chunks(place: Folder, name: str) -> Iterator[bytes]:
        if name.endswith(lost):
            raise OSError("the disk is gone")
        return genuine(place, name)

    monkeypatch.setattr(Folder, "chunks", chunks)
    with pytest.raises(UnreachableError, match="the disk is gone"):
        one.publish(champion("2"))
    monkeypatch.undo()
    assert (one.version(), one.version(model="landscapes")) == ("1", "7")


def test_a_publisher_reads_no_file_without_end(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LARGEST", 10_000)
    Path(one.place, "metadata", "timestamp.json").write_bytes(b" " * 10_001)
    with pytest.raises(UnreachableError, match="more than 10000 bytes; nothing in a channel has"):
        one.publish(champion("2"))


def test_a_bucket_that_changes_between_reading_and_writing_is_not_written_to(
    storage: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, other = Bucket("s3://channels/raced"), Bucket("s3://channels/raced")
    assert bucket.swap("name", None, b"first")
    genuine = bucket.client.get_object

    def read_and_be_overtaken(**asked: Any) -> Any:
        found = genuine(**asked)
        assert other.swap("name", b"first", b"of the other")
        return found

    monkeypatch.setattr(bucket.client, "get_object", read_and_be_overtaken)
    assert not bucket.swap("name", b"first", b"second")
    assert read(other, "name") == b"of the other"


def test_init_changes_nothing_where_keys_are_the_same_and_makes_the_next_root_where_not(one: World) -> None:
    keys = make_keys(one.folder / "keys")
    assert init(one.place, keys, one.key("root")) == one.root
    assert init(one.place, keys | {"witness": new_key().public_key}, one.key("root")) != one.root
    roots = [Metadata[Root].from_file(str(path)).signed for path in one.metadata("*.root.json")]
    assert [root.version for root in roots] == [1, 2]
    assert roots[0].roles["targets"] == roots[1].roles["targets"]
    assert roots[0].roles["timestamp"] != roots[1].roles["timestamp"]


def test_a_root_is_renewed_when_half_of_its_life_is_over(one: World) -> None:
    keys, days = make_keys(one.folder / "keys"), timedelta(days=1)
    assert init(one.place, keys, one.key("root"), 3649 * 2 * days) == one.root
    assert init(one.place, keys, one.key("root"), 3651 * 2 * days) != one.root
    assert one.version() == "1", "which takes nothing from what was signed before"


def test_two_who_make_a_channel_at_once_do_not_both(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_newest_root", lambda _: None)
    with pytest.raises(ChannelError, match="cannot be written now; try again"):
        init(world.place, make_keys(world.folder / "keys"), world.key("root"))
