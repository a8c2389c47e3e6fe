"""What a champion's document must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lineage.channel.champion import Champion, File
from lineage.channel.errors import ChannelError
from lineage.digests import digest_bytes, digest_path
from tests.channel.worlds import champion, nobody, tree


def test_equal_champions_have_equal_bytes_and_read_back() -> None:
    assert champion("1").content() == champion("1").content() != champion("2").content()
    assert Champion.read(champion("1").content()) == champion("1")


def test_its_listing_gives_the_digest_of_the_folder_on_disk(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    contents = {"MLmodel": b"flavors", "artifacts/a.bin": b"a", "artifacts.txt": b"b"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = tuple(File(name=n, size=len(c), digest=digest_bytes(c)) for n, c in sorted(contents.items()))
    said = champion("1", files=files, folder=tree(files))
    assert said.folder and said.folder.rpartition(":")[2] == digest_path(tmp_path).rpartition(":")[2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"folder": tree(())}, "do not give the digest of the model folder"),
        ({"files": champion("2").files}, "do not give the digest of the model folder"),
        ({"files": champion("1").files[::-1]}, "do not give the digest of the model folder"),
        ({"files": champion("1").files[::-1], "folder": tree(champion("1").files[::-1])}, "do not give the digest"),
        ({"files": ()}, "no champion has none of them"),
        ({"place": ""}, "no champion has none of them"),
        ({"weights": None}, "no champion has none of them"),
        ({"withdrawn": (champion("1").weights,)}, "withdrawn: nobody may use it"),
        ({"withdrawn": (champion("1").folder,)}, "withdrawn: nobody may use it"),
        ({"weights": "md5:0"}, "weights"),
        ({"head": ""}, "head"),
        ({"model": "../portraits"}, "model"),
        ({"model": "portr\u00e4ts"}, "model"),
        ({"model": ""}, "model"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_champion_that_contradicts_itself_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        champion("1", **changes)


def test_nobody_is_champion_with_nothing_or_somebody_with_all() -> None:
    with pytest.raises(ValidationError, match="no champion has none of them"):
        champion("")
    assert nobody(5).version == ""


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../x", "a/..", "a//b", "./a", "a/.", "a/", "a\\b", "a\0b", "a\n", "a\n/../b"]
)
def test_a_file_outside_the_model_folder_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        File(name=name, size=1, digest=digest_bytes(b""))


@pytest.mark.parametrize("name", ["a", "a/b.c", "..a", ".hidden/x", "a/...", "é/ü"])
def test_a_file_inside_it_is_not(name: str) -> None:
    assert File(name=name, size=1, digest=digest_bytes(b"")).name == name


def test_a_document_that_is_none_is_a_channels_error() -> None:
    for content in (b"", b"[]", b'{"model": "a"}', b"[" * 100_000):
        with pytest.raises(ChannelError, match="does not hold"):
            Champion.read(content)
