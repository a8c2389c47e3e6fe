"""What somebody who serves a channel, or holds some of its keys, can try; and that each reader notices."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import Signature, SSlibKey
from tuf.api.metadata import Metadata, Root, Timestamp

from lineage.channel import publisher as publishing
from lineage.channel.champion import Champion
from lineage.channel.client import Channel
from lineage.channel.errors import ChannelError, ExpiredError
from lineage.channel.publisher import Publisher, init
from lineage.digests import digest_bytes
from lineage.signing import make_keys
from tests.channel.conftest import Quiet
from tests.channel.worlds import DAY, DOCUMENTS, MODEL, World, champion, new_key

Serve = Callable[..., str]


def stamp(folder: Path) -> Timestamp:
    return Metadata[Timestamp].from_bytes((folder / "metadata" / "timestamp.json").read_bytes()).signed


def test_a_frozen_channel_expires_also_for_who_read_it_in_time(world: World) -> None:
    world.publish(champion("1"), timedelta(seconds=2))
    frozen, channel = world.copied("frozen"), world.channel(reader="other")
    channel.refresh()
    assert world.version(str(frozen)) == channel.champion(MODEL).version == "1"
    world.publish(champion("2"))
    time.sleep(2)
    for reader in ("reader", "a new reader"):
        with pytest.raises(ExpiredError, match="has expired: it was not renewed, or an old copy is served"):
            world.version(str(frozen), reader)
    with pytest.raises(ExpiredError, match="refresh it"):
        channel.champion(MODEL)
    assert world.version() == "2", "the true one is read as before"


def test_silence_of_the_heartbeat_is_noticed_and_a_heartbeat_ends_it(world: World) -> None:
    world.publish(champion("1"), timedelta(seconds=-1))
    with pytest.raises(ExpiredError):
        world.version()
    world.publish(champion("1"))
    assert world.version() == "1"


def test_an_expired_root_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    root = init(world.place, make_keys(tmp_path / "keys"), world.key("root"), timedelta(seconds=-1))
    world.publisher().publish(champion("1"), {})
    with pytest.raises(ExpiredError):
        Channel(root, world.place, tmp_path / "state").refresh()
    init(world.place, make_keys(tmp_path / "keys"), world.key("root"))
    assert Channel(root, world.place, tmp_path / "state").champion(MODEL).version == "1"


@pytest.mark.parametrize("move", [True, False], ids=["another champion", "only renewed"])
def test_an_older_state_is_refused_by_who_saw_a_newer_one(one: World, move: bool) -> None:
    old = one.copied("old")
    assert one.version(str(old)) == "1"
    if move:
        one.publish(champion("2"))
    else:
        one.publish(champion("1"))
    assert one.version() == ("2" if move else "1")
    with pytest.raises(ChannelError, match="was rolled back: it is older than what was seen before") as caught:
        one.version(str(old))
    assert not isinstance(caught.value, ExpiredError)


def test_an_older_snapshot_under_a_newer_timestamp_is_refused(one: World) -> None:
    """By whoever holds the witness key, but not the promotion key."""
    old = stamp(Path(one.place)).snapshot_meta
    one.publish(champion("2"))
    assert one.version() == "2"
    newer = Timestamp(stamp(Path(one.place)).version + 1, expires=datetime.now(UTC) + DAY, snapshot_meta=old)
    laundered = one.copied("laundered")
    (laundered / "metadata/timestamp.json").write_bytes(publishing._signed(newer, one.key("witness")))
    with pytest.raises(ChannelError, match="was rolled back"):
        one.version(str(laundered))


def test_a_fork_under_the_same_number_is_noticed(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """TUF's client keeps the one it saw first, and does not say so."""
    later = stamp(Path(one.place)).version + 100.0
    monkeypatch.setattr(publishing.time, "time", lambda: later)
    fork = one.copied("fork")
    one.publish(champion("2"))
    one.publisher(place=str(fork)).publish(champion("3"), DOCUMENTS)
    assert stamp(fork).version == stamp(Path(one.place)).version
    assert one.version() == "2"
    for _ in range(2):
        with pytest.raises(ChannelError, match=r"was forked: another state \d+ was seen before"):
            one.version(str(fork))
    assert one.version() == "2"
    assert one.version(str(fork), "who sees only the fork") == "3", "which is why processes share a state"


def test_parts_of_two_states_do_not_mix(one: World) -> None:
    old = one.copied("old")
    one.publish(champion("2"))
    for kind in ("snapshot", "targets"):
        mixed = one.copied(f"mixed {kind}")
        shutil.copy(one.metadata(f"*.{kind}.json", old)[-1], one.metadata(f"*.{kind}.json", mixed)[-1])
        with pytest.raises(ChannelError, match="was tampered with or mixed"):
            one.version(str(mixed), kind)


def test_parts_of_two_channels_of_the_same_keys_do_not_mix(one: World) -> None:
    other = one.folder / "other"
    init(str(other), make_keys(one.folder / "keys"), one.key("root"))
    one.publisher(place=str(other)).publish(champion("9"), DOCUMENTS)
    mixed = one.copied("mixed")
    shutil.copy(one.metadata("*.targets.json", other)[-1], one.metadata("*.targets.json", mixed)[-1])
    with pytest.raises(ChannelError, match="was tampered with or mixed"):
        one.version(str(mixed))


def test_keys_that_were_replaced_do_not_count_and_what_they_signed_is_not_taken_over(one: World) -> None:
    assert one.version() == "1"
    one.publish(champion("5", "landscapes"))
    stolen = {"promotion": one.key("promotion"), "witness": one.key("witness")}
    promotion, witness = new_key(), new_key()
    keys = {"promotion": promotion.public_key, "witness": witness.public_key}
    init(one.place, keys, one.key("root"))
    with pytest.raises(ChannelError, match=r"not signed by its root's keys: a revoked key"):
        one.version()
    with pytest.raises(ChannelError, match="no channel of these two keys"):
        one.publisher(**stolen).publish(champion("6"), {})
    publisher = one.publisher(promotion=promotion, witness=witness)
    said = publisher.publish(champion("2"), DOCUMENTS)
    assert "begins anew, publish other models again" in said[0]
    assert one.version() == "2"
    with pytest.raises(ChannelError, match="landscapes; it knows"):
        one.version(model="landscapes")
    publisher.publish(champion("5", "landscapes"), DOCUMENTS)
    assert one.version(model="landscapes") == "5"
    Path(one.place, "metadata", "2.root.json").rename(one.folder / "root")  # as the thief serves it to new readers
    one.publisher(**stolen).publish(champion("6"), {})
    with pytest.raises(ChannelError, match="not signed by its root's keys"):
        one.version()


def test_a_stolen_promotion_key_alone_and_a_stolen_witness_key_alone_say_nothing(one: World) -> None:
    for role in ("promotion", "witness"):
        place = one.copied(f"by the {role} key")
        keys = {"promotion": new_key(), "witness": new_key()} | {role: one.key(role)}
        (place / "metadata/1.root.json").unlink()
        init(str(place), {name: key.public_key for name, key in keys.items()}, new_key())
        Publisher(str(place), life=DAY, **keys).publish(champion("6"), {})
        with pytest.raises(ChannelError, match="not signed by its root's keys"):
            one.version(str(place), role)


def test_another_root_is_refused(one: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    other.publish(champion("6"))
    with pytest.raises(ChannelError, match="not signed by its root's keys: a revoked key, or another root"):
        one.version(other.place)
    with pytest.raises(ChannelError, match="another root"):
        init(one.place, make_keys(tmp_path / "other" / "keys"), other.key("root"))
    forged = publishing._root(other.key("root").public_key, new_key().public_key, new_key().public_key)
    forged.version, forged.expires = 2, datetime.now(UTC) + DAY
    Path(one.place, "metadata", "2.root.json").write_bytes(publishing._signed(forged, other.key("root")))
    with pytest.raises(ChannelError, match="not signed by its root's keys"):
        one.version()


def test_init_hands_out_no_root_that_only_looks_like_its_own(one: World) -> None:
    """Its key has the true one's id, and another content."""
    forged = Metadata[Root].from_bytes(one.root).signed
    thief = new_key()
    keyid = one.key("root").public_key.keyid
    forged.keys[keyid] = SSlibKey.from_dict(keyid, thief.public_key.to_dict())
    metadata = Metadata(forged)
    metadata.sign(thief)
    (signature,) = metadata.signatures.values()
    metadata.signatures = {keyid: Signature(keyid, signature.signature)}
    Path(one.place, "metadata", "1.root.json").write_bytes(metadata.to_bytes())
    with pytest.raises(ChannelError, match="not signed by its root's keys"):
        init(one.place, make_keys(one.folder / "keys"), one.key("root"))


def test_a_document_that_was_changed_is_refused(one: World) -> None:
    path = next(Path(one.place, "targets", MODEL).glob("*.champion.json"))
    genuine = path.read_bytes()
    for changed in (genuine.replace(b"s3://models", b"s3://modelz"), genuine + b" ", genuine[:-1]):
        path.write_bytes(changed)
        with pytest.raises(ChannelError, match="was tampered with"):
            one.version()
    assert one.publish(champion("1")) == [] and path.read_bytes() == genuine, "publishing again repairs"
    path.unlink()
    with pytest.raises(ChannelError, match="lacks a file"):
        one.version()
    assert one.publish(champion("1")) == [] and one.version() == "1"


def test_every_changed_byte_of_metadata_is_noticed_or_says_the_same(one: World) -> None:
    for number, name in enumerate(["timestamp.json", *(path.name for path in one.metadata("[0-9]*.*.json"))]):
        if name == "1.root.json":
            continue  # a reader has its own
        tampered = one.copied(f"tampered {number}") / "metadata" / name
        genuine = tampered.read_bytes()
        for at in range(0, len(genuine), 41):
            tampered.write_bytes(genuine[:at] + bytes([genuine[at] ^ 1]) + genuine[at + 1 :])
            with pytest.raises(ChannelError):
                one.version(str(tampered.parent.parent), f"{number} {at}")


def test_withdrawn_weights_are_no_champion_even_where_the_promotion_key_says_so(one: World) -> None:
    said = champion("1")
    forged = said.model_copy(update={"withdrawn": (said.weights,)})
    one.publish(forged)
    with pytest.raises(ChannelError, match="version 1 is withdrawn: nobody may use it"):
        one.version()


def test_a_champion_in_another_models_place_is_refused(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other = champion("1", "landscapes").content()
    monkeypatch.setattr(Champion, "content", lambda _: other)
    one.publish(champion("2"))
    with pytest.raises(ChannelError, match="contradicts itself: it says of portraits"):
        one.version()


def test_withdrawn_digests_that_the_document_does_not_repeat_are_a_contradiction(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = champion("2", withdrawn=(digest_bytes(b"withdrawn"),)).content()
    monkeypatch.setattr(Champion, "content", lambda _: other)
    one.publish(champion("2"))
    with pytest.raises(ChannelError, match="contradicts itself"):
        one.version()


def test_data_without_end_is_cut_off(one: World, served: Serve) -> None:
    class Endless(Quiet):
        endless = "timestamp.json"

        def do_GET(self) -> None:
            if not self.path.endswith(self.endless):
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" " * 100_000)
            except OSError:
                self.close_connection = True

    class EndlessDocument(Endless):
        endless = "champion.json"

    for handler in (Endless, EndlessDocument):
        with pytest.raises(ChannelError, match=r"was tampered with or mixed: .* exceeding"):
            one.version(served(one.place, handler))


def test_a_pipe_or_a_device_in_a_files_place_holds_no_reader(one: World) -> None:
    path = Path(one.place, "metadata", "timestamp.json")
    for replace in (os.mkfifo, lambda at: at.symlink_to("/dev/zero"), Path.mkdir):
        shutil.move(path, one.folder / "timestamp")
        replace(path)
        with pytest.raises(ChannelError, match=r"no regular file|leads out of the channel"):
            one.version()
        with pytest.raises(ChannelError, match=r"no regular file|leads out of the channel"):
            one.publish(champion("2"))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.move(one.folder / "timestamp", path)


@pytest.mark.parametrize("content", [b"", b"{}", b"<html>", b'{"signed": 1}', b"[" * 16_000], ids=range(5))
def test_what_is_no_metadata_is_no_channel(one: World, content: bytes) -> None:
    Path(one.place, "metadata", "timestamp.json").write_bytes(content)
    with pytest.raises(ChannelError, match="is none, or was tampered with"):
        one.version()
