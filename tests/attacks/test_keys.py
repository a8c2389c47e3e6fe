"""Attacks on key files and on what a reader remembers, by somebody who writes files and holds no key."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from lineage import signing
from lineage.channel.client import Channel
from lineage.channel.publisher import Publisher
from lineage.digests import LineageError, code_digest
from lineage.embedded import Embedded
from lineage.memory import STATE_TYPE, Remembered
from lineage.moves import CHANNEL_LIFE
from lineage.signing import key_facts, sign, write_public
from lineage.state import KnownKey
from tests.lineage.worlds import MODEL, World


def test_a_public_key_planted_for_the_next_rotation_is_not_named(tmp_path: Path) -> None:
    """`keys/new/ROLE.pub` put there beforehand becomes the ledger's key at the next rotation: no key is needed."""
    home = Embedded(tmp_path)
    home.open()
    his = CryptoSigner.generate_ecdsa()
    (home.keys / "new").mkdir()
    write_public(his.public_key, home.keys / "new" / "promotion.pub")
    with contextlib.suppress(LineageError):
        home.rotate("promotion")
    known = home.open().state.key_of("promotion")
    assert known.keyid != his.public_key.keyid, "the thief's key is the promotion key now"


def test_a_public_key_planted_for_the_next_revocation_is_not_named(tmp_path: Path) -> None:
    """The same by way of a revocation: the root itself names the thief's key."""
    home = Embedded(tmp_path)
    home.open()
    his = CryptoSigner.generate_ecdsa()
    (home.keys / "new").mkdir()
    write_public(his.public_key, home.keys / "new" / "gate.pub")
    with contextlib.suppress(LineageError):
        home.revoke("gate", home.open().state.size, "lost")
    assert his.public_key.keyid not in home.open().state.keys


def test_a_rotation_that_died_while_it_made_the_key_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between `new/ROLE.pub` and `new/ROLE.pem`: the next rotation names a key that nobody holds."""
    home = Embedded(tmp_path)
    home.open()

    def killed(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(signing, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            home.rotate("gate")
    home.rotate("gate")
    ledger = home.open()
    ledger.signer("gate", home.uri("gate"))  # raises: the private half never was


def test_a_first_start_that_died_while_it_made_keys_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between `root.pub` and `root.pem`: no later start succeeds, although nothing was signed yet."""
    home = Embedded(tmp_path)

    def killed(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(signing, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            home.open()
    home.open()


def _poison(world: World, thief: CryptoSigner, **more: str) -> None:
    """Exchange the pair of the run key for one's own, and sign a false state with it."""
    home = world.home
    state = home.open().state.model_copy(deep=True)
    for version in state.versions[MODEL].values():
        judged = state.verdicts[version.verdict]
        state.verdicts[version.verdict] = judged.model_copy(update={"decision": "promote"})
    for role, signer in more.items():
        for known in state.keys.values():
            if known.role == role:
                known.until = 0
        state.keys[signer.public_key.keyid] = KnownKey(role=role, facts=key_facts(signer.public_key), since=0)
    (home.keys / "run.pem").write_bytes(thief.private_bytes)
    write_public(thief.public_key, home.keys / "run.pub")
    content = Remembered.model_construct(code=code_digest("lineage"), state=state).model_dump_json().encode()
    for reader in ("pipeline", "command line"):
        (home.marks / f"{reader}.state").write_bytes(sign(content, STATE_TYPE, thief))


def test_a_state_signed_with_an_exchanged_run_key_is_not_believed(tmp_path: Path) -> None:
    """Files only: his own pair in place of run.pem and run.pub, and a state in which the gate approved version 1."""
    world = World(tmp_path)
    rejected = world.candidate("bad", world.base, "reject")
    thief = CryptoSigner.generate_ecdsa()
    _poison(world, thief)
    with contextlib.suppress(LineageError):
        world.mover().move("promote", rejected)
    assert world.announced() != rejected, "a rejected version is champion in the channel, signed by the honest keys"
    assert world.store.aliases().get("champion") != rejected


def test_a_state_signed_with_an_exchanged_run_key_hands_out_no_channel(tmp_path: Path) -> None:
    """And with channel-root.json removed, the honest root key signs a channel of the thief's keys."""
    world = World(tmp_path)
    world.candidate("bad", world.base, "reject")
    thief, his, witness = (CryptoSigner.generate_ecdsa() for _ in range(3))
    first = world.home.channel_root.read_bytes()
    _poison(world, thief, promotion=his, witness=witness)
    world.home.channel_root.unlink()
    with contextlib.suppress(LineageError):
        world.home.open()
    from tests.channel.worlds import DOCUMENTS, champion

    publisher = Publisher(str(world.home.channel), his, witness, CHANNEL_LIFE)
    try:
        publisher.publish(champion("666", MODEL), DOCUMENTS)
    except LineageError:
        return
    channel = Channel(first, str(world.home.channel), tmp_path / "a-client")
    channel.refresh()
    assert channel.champion(MODEL).version != "666", "a client that began with the honest root believes the thief"


def test_a_foreign_known_key_in_new_does_not_replace_a_role_s(tmp_path: Path) -> None:
    """Any key that the ledger knows, put into keys/new, takes a role's place at the next start."""
    home = Embedded(tmp_path)
    home.open()
    (home.keys / "new").mkdir()
    (home.keys / "new" / "promotion.pub").write_bytes((home.keys / "gate.pub").read_bytes())
    home.open()
    home.open().signer("promotion", home.uri("promotion"))
    assert (home.keys / "promotion.pub").read_bytes() != (home.keys / "gate.pub").read_bytes()
