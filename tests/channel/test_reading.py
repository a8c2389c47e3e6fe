"""Reading a channel: from each kind of place, by TUF's own client, and by processes that share what they saw."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import Updater

from lineage.channel import client
from lineage.channel.client import Channel, verify
from lineage.channel.errors import ChannelError, UnreachableError
from lineage.channel.publisher import Publisher, init
from lineage.digests import digest_bytes
from lineage.signing import make_keys
from tests.channel.conftest import Quiet
from tests.channel.worlds import DAY, DOCUMENTS, MODEL, World, champion, new_key, nobody, started


def test_a_reader_learns_who_is_champion_from_root_address_and_state(one: World, tmp_path: Path) -> None:
    assert client.champion(one.root, one.place, MODEL, tmp_path / "state") == champion("1")
    channel = one.channel()
    assert channel.document(MODEL, "verdict.dsse.json") == DOCUMENTS["verdict.dsse.json"]
    assert channel.document(MODEL, "model.sig") == DOCUMENTS["model.sig"]
    assert channel.expires and timedelta(hours=23) < channel.expires - datetime.now(UTC) <= DAY


@pytest.mark.parametrize("kind", ["path", "file", "http"])
def test_a_folder_is_read_by_path_by_file_uri_and_over_http(
    world: World, kind: str, served: Callable[[str], str]
) -> None:
    said = champion("1", model="Portrait model_v1.5")
    world.publish(said)
    url = {"path": world.place, "file": f"file://{world.place}/"}.get(kind) or served(world.place)
    channel = world.channel(url)
    channel.refresh()
    assert channel.champion("Portrait model_v1.5") == said
    world.publish(champion("2"))
    channel.refresh()
    assert channel.champion(MODEL).version == "2" and channel.models() == ["Portrait model_v1.5", MODEL]


def test_a_bucket_is_written_and_read(world: World, storage: None) -> None:
    place, keys = "s3://channels/team/portraits/", make_keys(world.folder / "keys")
    assert init(place, keys, world.key("root")) == init(place, keys, world.key("root"))
    publisher = world.publisher(place=place)
    publisher.publish(champion("1"), DOCUMENTS)
    publisher.publish(champion("2"), DOCUMENTS)
    root = init(place, keys, world.key("root"))
    channel = Channel(root, place, world.folder / "bucket state")
    assert channel.champion(MODEL) == champion("2")
    assert channel.document(MODEL, "model.sig") == DOCUMENTS["model.sig"]
    with pytest.raises(ChannelError, match="lacks a file"):
        Channel(root, "s3://channels/elsewhere", world.folder / "other state").refresh()
    with pytest.raises(ChannelError, match="no channel of these two keys"):
        world.publisher(place="s3://channels/elsewhere").publish(champion("1"), {})


def test_tufs_own_client_reads_it(one: World, served: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    url = served(one.place)
    updater = Updater(
        str(tmp_path / "metadata"), f"{url}/metadata", str(tmp_path / "targets"), f"{url}/targets", bootstrap=one.root
    )
    info = updater.get_targetinfo(f"{MODEL}/champion.json")
    assert info and info.custom == {"withdrawn": []}
    assert Path(updater.download_target(info)).read_bytes() == champion("1").content()


def test_key_ids_are_those_of_the_ledgers_keys(one: World) -> None:
    root = Metadata[Root].from_bytes(one.root).signed
    roles = {"root": "root", "targets": "promotion", "snapshot": "promotion", "timestamp": "witness"}
    for role, of in roles.items():
        assert root.roles[role].keyids == [one.key(of).public_key.keyid]
    assert root.consistent_snapshot and {key.scheme for key in root.keys.values()} == {"ecdsa-sha2-nistp256"}


def test_a_client_loads_no_database_no_mlflow_and_no_torch(one: World, tmp_path: Path) -> None:
    (tmp_path / "root.json").write_bytes(one.root)
    program = (
        "import sys; from pathlib import Path; from lineage.channel.client import champion, verify\n"
        f"root = Path({str(tmp_path / 'root.json')!r}).read_bytes()\n"
        f"print(champion(root, {one.place!r}, {MODEL!r}, Path({str(tmp_path / 'state')!r})).version)\n"
        f"verify(root, {one.place!r})\n"
        "print({name.partition('.')[0] for name in sys.modules} & {'sqlalchemy', 'mlflow', 'torch', 'kfp'})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == ["1", "set()"]


def test_several_models_share_a_channel_and_publishing_one_leaves_the_others(world: World) -> None:
    world.publish(champion("1"))
    world.publish(champion("7", "landscapes"))
    world.publish(champion("2"))
    assert (world.version(), world.version(model="landscapes")) == ("2", "7")
    with pytest.raises(ChannelError, match=r"no champion.json of cats; it knows \['landscapes', 'portraits'\]"):
        world.version(model="cats")


def test_of_a_model_without_champion_it_says_that_nobody_is(one: World) -> None:
    assert one.version() == "1"
    withdrawn = champion("1").weights
    assert withdrawn
    one.publish(nobody(20, withdrawn))
    channel = one.channel()
    found = channel.champion(MODEL)
    assert (found.version, found.weights, found.files, found.withdrawn) == ("", None, (), (withdrawn,))
    with pytest.raises(ChannelError, match="no verdict"):
        channel.document(MODEL, "verdict.dsse.json")


def test_a_tuf_client_sees_withdrawn_digests_without_reading_a_document(world: World, tmp_path: Path) -> None:
    world.publish(champion("2", withdrawn=(digest_bytes(b"no consent"),)))
    channel = world.channel()
    channel.refresh()
    assert channel.targets.targets[f"{MODEL}/champion.json"].custom == {"withdrawn": [digest_bytes(b"no consent")]}


def test_what_was_read_stays_when_a_refresh_fails(one: World) -> None:
    channel = one.channel()
    channel.refresh()
    moved = Path(one.place).rename(one.folder / "moved away")
    with pytest.raises(ChannelError, match="lacks a file"):
        channel.refresh()
    moved.rename(one.place)
    assert channel.champion(MODEL).version == "1"


def test_a_place_that_does_not_answer_is_told_from_one_without_a_channel(
    one: World, served: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(UnreachableError, match=r"http://127.0.0.1:1 cannot be reached") as caught:
        one.version("http://user:secret@127.0.0.1:1")
    assert "secret" not in str(caught.value)

    class Broken(Quiet):
        def do_GET(self) -> None:
            self.send_error(503)

    with pytest.raises(UnreachableError, match="503"):
        one.version(served(one.place, Broken))
    with pytest.raises(ChannelError, match="there is none here") as none:
        one.version(served(tmp_path / "keys"))
    assert not isinstance(none.value, UnreachableError)


def test_a_bucket_that_does_not_answer_cannot_be_reached(
    one: World, storage: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnreachableError, match="bucket does not exist"):
        one.version("s3://no-such-bucket/channel")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UnreachableError, match="Could not connect"):
        one.version("s3://channels/portraits")
    with pytest.raises(UnreachableError, match="Could not connect"):
        one.publisher(place="s3://channels/portraits").publish(champion("2"), {})


def test_processes_share_a_state_without_breaking_each_other(one: World) -> None:
    processes = [started(read_often, one.folder) for _ in range(3)]
    for version in range(2, 12):
        one.publish(champion(str(version)))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def read_often(folder: Path) -> None:
    """For a process of its own."""
    world, channel, before = World(folder), World(folder).channel(), 0
    for _ in range(25):
        channel.refresh()
        version = int(channel.champion(MODEL).version)
        assert version >= before and int(world.version(reader="reader")) >= version
        before = version


def test_verify_says_what_holds_and_what_is_not_proven(one: World, tmp_path: Path) -> None:
    said = verify(one.root, one.place)
    assert [line.partition(" ")[0] for line in said] == ["root", "state", "portraits:", "not"]
    assert f"targets {one.key('promotion').public_key.keyid[:12]}" in said[0]
    assert "portraits: champion: version 1" in said[2] and "ledger ledger-1, entry 10" in said[2]
    assert verify(one.root, one.place, tmp_path / "state")[-1] == said[2]
    withdrawn = digest_bytes(b"withdrawn")
    one.publish(nobody(20, withdrawn))
    lines = verify(one.root, one.place, tmp_path / "state")[2:]
    assert lines == [
        "portraits: champion: none; ledger ledger-1, entry 20",
        f"portraits: withdrawn: {withdrawn}",
    ]


def test_verify_reads_every_document(one: World) -> None:
    path = next(Path(one.place, "targets", MODEL).glob("*.model.sig"))
    path.write_bytes(path.read_bytes()[::-1])
    assert one.version() == "1"
    with pytest.raises(ChannelError, match="tampered"):
        verify(one.root, one.place)


def test_a_publisher_of_other_keys_is_told_before_it_signs(one: World) -> None:
    other = Publisher(one.place, new_key(), one.key("witness"), DAY)
    before = {path: path.read_bytes() for path in Path(one.place, "metadata").iterdir()}
    with pytest.raises(ChannelError, match="no channel of these two keys; make it one: triptych channel init"):
        other.publish(champion("2"), {})
    assert before == {path: path.read_bytes() for path in Path(one.place, "metadata").iterdir()}
