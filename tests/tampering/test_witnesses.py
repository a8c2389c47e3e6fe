"""Checkpoints, high-water marks, exports and public keys, and what nothing here can tell."""

from __future__ import annotations

import json
import shutil
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from components.register.register import create
from lineage.digests import LineageError
from lineage.embedded import Embedded
from lineage.entries import LedgerError, Recorded
from lineage.ledger import Ledger
from lineage.signing import ROLES, open_signer, read_public
from lineage.stores import export, read_export
from lineage.witness import FileWitness, WitnessWriter, hear, verify_entries
from tests.audit.world import MODEL, World
from tests.tampering.test_evidence import named
from tests.tampering.undetectable import UNDETECTABLE, proves
from tests.tampering.world import forgers, said, signed_anew, write_rows


def newest(world: World) -> Path:
    return sorted(world.home.witness.folder.glob("*.json"))[-1]


def alter(path: Path, change: Callable[[str], str]) -> None:
    path.chmod(0o644)
    path.write_text(change(path.read_text()))


def forget(world: World) -> None:
    """A reader's mark, and what it remembers, taken away."""
    for path in world.home.marks.iterdir():
        path.unlink()


def verified(world: World) -> list[str]:
    return verify_entries(world.home.open("tests").entries(), world.home.root, world.home.witness.folder)


CHECKPOINT_CHANGES: dict[str, Callable[[str], str]] = {
    "flip": lambda text: text.replace('"payload": "ey', '"payload": "eZ'),
    "sign otherwise": lambda text: json.dumps({**json.loads(text), "signatures": []}),
    "truncate": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "another type": lambda text: text.replace("checkpoint+json", "ledger-entry+json"),
}


@pytest.mark.parametrize("change", CHECKPOINT_CHANGES)
def test_a_checkpoint_changed(world: World, change: str) -> None:
    path = newest(world)
    alter(path, CHECKPOINT_CHANGES[change])
    with pytest.raises(LedgerError, match=f"checkpoint {path.name}: "):
        verified(world)
    named(world.audit("2"), f"checkpoint {path.name}")


@pytest.mark.parametrize("role", ["run", "gate", "promotion"])
def test_a_checkpoint_by_a_holder_of_the_ledgers_keys(world: World, role: str) -> None:
    writer = WitnessWriter(FileWitness(world.folder), open_signer(world.home.uri(role)))
    made = writer.write(world.home.open("tests").state)
    forged = world.folder / f"{made.stem}.json"
    target = world.home.witness.folder / f"{made.ledger}-9{made.size:09d}.json"
    forged.rename(target)
    with pytest.raises(LedgerError, match=f"checkpoint {target.name}: the signature does not hold"):
        verified(world)


def test_a_checkpoint_of_another_ledger(world: World, tmp_path: Path) -> None:
    """Under its own name it says nothing of this one; under this one's it is refused."""
    other = Embedded(tmp_path / "other")
    state = other.open().state
    WitnessWriter(world.home.witness, open_signer(other.uri("witness"))).write(state)
    assert any("complete up to entry" in line for line in verified(world))
    strange = next(p for p in world.home.witness.folder.glob("*.json") if p.name.startswith(other.open().state.ledger))
    shutil.copyfile(strange, newest(world).with_name(f"{world.home.open('tests').state.ledger}-x.json"))
    with pytest.raises(LedgerError, match=r"-x\.json: the signature does not hold"):
        verified(world)
    named(world.audit("2"), "-x.json")


def test_a_checkpoint_under_another_ledgers_name(world: World) -> None:
    """It is not taken for another ledger's, which says nothing: it was renamed."""
    path = newest(world)
    path.rename(path.with_name(f"{'0' * 32}-0000000007.json"))
    named(world.audit("2"), "checkpoint 00000000")


def test_a_checkpoint_whose_text_claims_another_ledger(world: World) -> None:
    """Nothing is believed of a text that no key signed."""
    path = newest(world)
    text = json.loads(path.read_text())
    payload = json.loads(b64decode(text["payload"])) | {"ledger": "0" * 32}
    alter(path, lambda _: json.dumps({**text, "payload": b64encode(json.dumps(payload).encode()).decode()}))
    named(world.audit("2"), f"checkpoint {path.name}")


def test_all_checkpoints_gone(world: World) -> None:
    for path in world.home.witness.folder.glob("*.json"):
        path.unlink()
    with pytest.raises(LedgerError, match="holds no checkpoint of ledger"):
        verified(world)
    proven = next(f for f in world.audit("2").findings if f.subject == "the end of the ledger")
    assert proven.standing == "not proven"


def test_a_checkpoint_cannot_be_written_over(world: World) -> None:
    path = newest(world)
    before = path.read_bytes()
    world.home.witness.write(path.name, b"another")
    assert path.read_bytes() == before


MARK_CHANGES: dict[str, Callable[[str], str]] = {
    "flip": lambda text: text.replace('"head":"sha256:', '"head":"sha256:0'),
    "another ledger": lambda text: text.replace('"ledger":"', '"ledger":"0'),
    "further on": lambda text: json.dumps({**json.loads(text), "size": 10_000}),
    "truncate": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
}


@pytest.mark.parametrize("change", MARK_CHANGES)
def test_a_high_water_mark_changed(world: World, change: str) -> None:
    alter(world.home.folder / "marks" / "tests.json", MARK_CHANGES[change])
    with pytest.raises(LedgerError, match=r"mark .*tests\.json"):
        world.home.open("tests")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("operation", ["flip", "swap", "delete", "older"])
def test_a_public_key_file(world: World, role: str, operation: str) -> None:
    """Whoever needs a key refuses one that is not the ledger's, and names its file or its id."""
    path = world.home.keys / f"{role}.pub"
    other = world.home.keys / ("gate.pub" if role != "gate" else "run.pub")
    old = sorted(world.home.keys.glob(f"{role}-*.pub.old"))
    if operation == "older" and not old:
        pytest.skip("this key was never replaced")
    if operation == "flip":
        alter(path, lambda text: text.replace('"keyid": "', '"keyid": "0'))
    elif operation == "delete":
        path.unlink()
    else:
        shutil.copyfile(old[0] if operation == "older" else other, path)
    with pytest.raises(LineageError, match=rf"{role}\.p(ub|em)|root\.pub|another root key"):
        world.home.open("tests")
        open_signer(world.home.uri(role))


def test_an_export_of_another_root(world: World, tmp_path: Path) -> None:
    other = Embedded(tmp_path / "other")
    (tmp_path / "export").write_text(export(other.open().entries()))
    with pytest.raises(LedgerError, match="was not opened by root key"):
        verify_entries(read_export(tmp_path / "export"), world.home.root, None)


@pytest.mark.parametrize("change", [lambda t: t[:-40], lambda t: t.replace("\n", "\n\n", 1), lambda t: "x" + t])
def test_an_export_that_is_no_list_of_entries(world: World, tmp_path: Path, change: Callable[[str], str]) -> None:
    (tmp_path / "export").write_text(change(export(world.home.open("tests").entries())))
    with pytest.raises(LedgerError, match=r"export, line \d+: this is not a ledger entry"):
        read_export(tmp_path / "export")


@proves("truncation past the last checkpoint")
def test_truncation_past_the_last_checkpoint(world: World) -> None:
    home = world.home
    whole = home.open("tests").entries()
    extra = Recorded(run="late", step="plan", status="complete", record="sha256:0")
    Ledger.open(home.url, home.root).append(extra, open_signer(home.uri("run")))
    write_rows(home, whole)
    assert any("complete up to" in line for line in verified(world))
    assert world.audit("2").holds


@proves("the newest checkpoints taken away")
def test_the_newest_checkpoints_taken_away(world: World) -> None:
    """Together with the mark: each alone is told by the other."""
    home, entries = world.home, world.home.open("tests").entries()
    newest(world).unlink()
    seen = hear(home.witness, home.open("tests").state).latest
    assert seen
    cut = entries[: seen.size]
    write_rows(home, cut)
    with pytest.raises(LedgerError, match="taken off its end"):
        home.open("tests")
    forget(world)
    home.open("tests")


@proves("a high-water mark set back")
def test_a_high_water_mark_set_back(world: World) -> None:
    home, entries = world.home, world.home.open("tests").entries()
    write_rows(home, entries[:-1])
    forget(world)
    home.open("tests")
    with pytest.raises(LedgerError, match="taken off its end"):
        verified(world)


@proves("everything set back together")
def test_everything_set_back_together(world: World, tmp_path: Path) -> None:
    home = world.home
    shutil.copytree(home.folder, tmp_path / "before")
    home.open("tests").append(
        Recorded(run="late", step="plan", status="complete", record="sha256:0"), open_signer(home.uri("run"))
    )
    home.checkpoint()
    shutil.rmtree(home.folder)
    shutil.copytree(tmp_path / "before", home.folder)
    assert any("complete up to" in line for line in verified(world))


@proves("history forged after the last checkpoint")
def test_history_forged_after_the_last_checkpoint(world: World) -> None:
    home = world.home
    before = home.open("tests").entries()
    ledger = Ledger.open(home.url, home.root)
    for step in ("plan", "gate"):
        more = Recorded(run="late", step=step, status="complete", record="sha256:0")
        ledger.append(more, open_signer(home.uri("run")))
    late, *rest = ledger.entries(len(before))
    forged = said(late, {"record": "sha256:1"})
    write_rows(home, signed_anew([*before, forged, *rest], len(before), forgers(home)))
    assert any("nothing shows that none followed" in line for line in verified(world))


@proves("a false verdict by a holder of the gate key")
def test_a_false_verdict_by_a_holder_of_the_gate_key(world: World) -> None:
    """It takes the run key too, to register it; the champion then moves by the rules."""
    home = world.home
    ledger = home.open("tests")
    third, champion = world.registered("3"), ledger.state.champion(MODEL)
    assert champion
    judged = ledger.state.verdicts[third.verdict]
    changes = {"run": "run-4", "incumbent": champion.candidate, "decision": "promote", "verdict": "sha256:4"}
    ledger.append(judged.model_copy(update=changes), open_signer(home.uri("gate")))
    number = create(world.store, third.mlflow_run, world.model("3").as_uri(), {}, "").number
    about = third.model_copy(update={"run": "run-4", "version": number, "verdict": "sha256:4"})
    ledger.append(about, open_signer(home.uri("run")))
    replace(world.mover(), user="a thief").move("promote", number)
    assert home.open("tests").state.champion(MODEL).version == number  # type: ignore[union-attr]
    assert any("complete up to" in line for line in verified(world)), "the ledger itself is in order"
    named(world.audit(number), f"verdict.dsse.json of version {number}")


@proves("the text of MLflow's pages")
def test_the_text_of_mlflows_pages(world: World) -> None:
    client = world.store.client
    client.update_model_version(MODEL, "3", "**promote** by a wide margin")
    client.set_model_version_tag(MODEL, "3", "note", "promote")
    assert [line for line in world.mover().reconcile().said if "channel" not in line] == []
    assert world.audit("3").holds


@proves("another writing of the same entry")
def test_another_writing_of_the_same_entry(world: World, tmp_path: Path) -> None:
    lines = export(world.home.open("tests").entries()).replace('"index":3,', ' "index" : 3 ,')
    (tmp_path / "export").write_text(lines)
    entries = read_export(tmp_path / "export")
    assert entries == world.home.open("tests").entries()
    verify_entries(entries, world.home.root, world.home.witness.folder)


def test_what_is_undetectable_is_shown_or_says_why_not(world: World) -> None:
    """Each line of the table has a test above that it is so, or is about what lies outside of any file."""
    from tests.tampering.undetectable import OUTSIDE, PROVEN

    assert {*PROVEN, *OUTSIDE} == set(UNDETECTABLE)
    assert read_public(world.home.keys / "root.pub").keyid == world.home.root


def test_the_threat_model_lists_what_is_undetectable() -> None:
    page = " ".join((Path(__file__).parents[2] / "docs" / "threat-model.md").read_text("utf-8").split())
    missing = [name for name, why in UNDETECTABLE.items() if name.lower() not in page.lower() or why not in page]
    assert not missing
