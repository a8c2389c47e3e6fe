"""Passwords in what is printed, raised or recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from lineage.channel.client import Channel
from lineage.channel.errors import ChannelError
from lineage.database import DatabaseStore
from lineage.digests import LineageError
from lineage.ledger import Ledger
from lineage.openlineage import emit
from lineage.places import without_credentials
from tests.channel.worlds import World

RECORD = {
    "run": "r1", "step": "plan", "started": "2026-01-01T00:00:00.000+00:00", "ended": None, "facts": {}, "user": "u",
    "code": "", "packages": "", "image": None, "commit": "", "inputs": {}, "outputs": {}, "error": None,
    "host": {"python": "3.11", "platform": "Linux"}, "parameters": {},
}  # fmt: skip


@pytest.mark.parametrize("password", ["hunter2/slash", "hunter2'quote", 'hunter2"quote', "hunter2 space", "hunter2@at"])
def test_a_password_that_sqlalchemy_takes_is_in_no_message(password: str) -> None:
    """SQLAlchemy's URLs take "/", quotes and spaces in a password; the pattern that hides it stops at them."""
    with pytest.raises(LineageError) as refused:
        DatabaseStore(f"mysql+pymysql://ledger:{password}@db/ledger")
    assert "hunter2" not in str(refused.value)


def test_a_password_with_a_slash_is_not_in_a_ledgers_name() -> None:
    assert "hunter2" not in Ledger.open("postgresql+psycopg://ledger:hunter2/slash@db/ledger").name


def test_a_password_in_openlineages_address_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    emit("http://user:hunter2@127.0.0.1:9/api?api_key=hunter3", RECORD, "START")
    out, err = capfd.readouterr()
    assert "was not sent" in err
    assert "hunter2" not in out + err and "hunter3" not in out + err


@pytest.mark.parametrize(
    "url",
    [
        "http://reader:hunter2@127.0.0.1:9/c",
        "http://reader:hunter2@at@127.0.0.1:9/c",
        "http://127.0.0.1:9/c?token=hunter2",
        "http://reader:hunter2/x@127.0.0.1:9/c",
    ],
)
def test_a_password_in_a_channels_address_is_in_no_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(ChannelError) as error:
        Channel(World(tmp_path).root, url, tmp_path / "state").refresh()
    assert "hunter2" not in str(error.value)


def test_a_secret_in_a_publishers_place_is_in_no_error(tmp_path: Path) -> None:
    assert "hunter2" not in without_credentials("postgresql://h/db?password='hunter2 x'")
