"""Single-bit flips over everything a run leaves: `python -m benchmarks.bit_flips --work-dir .triptych`.

Each of 2,000 seeded flips is made in a copy of the work folder, shown to the reader for which the byte exists, and
taken back. It is detected; or what that reader reads is the same with and without it, which is compared, not assumed:
free pages and unread columns of a database, bits that base64 leaves unused, the case of a hexadecimal digit, metadata
of the channel that newer one replaced. Anything else is undetected, and the exit status is 1.

Readers, by kind of file:

- evidence, weights and what lies around them: the digest that audit, mover and server compare (`lineage.artifacts`);
- records: the record's digest against the ledger; the ledger: all its rules and its checkpoints, as `ledger verify`;
- MLflow's database: a whole audit of each version of which anything that is read there changed;
- checkpoints, marks and public keys: those who use them; the channel: `channel verify`.

Of the flips that were detected, some are shown to a whole audit as well, which must name them.
Left out: private keys, logs, what passes between steps, and the state folder, which is checked by digest when used.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.flip_readers import Content, Kind, Left, check_stored, copy_of
from lineage.artifacts import LOADER_FILE

FLIPS, SPOT = 2000, 30
"""Flips in all, and those shown to a whole audit too."""


@contextmanager
def flipped(path: Path, offset: int, bit: int) -> Iterator[None]:
    """One bit of a file turned over, as long as the block lasts."""
    whole = path.read_bytes()
    mode = path.stat().st_mode
    path.chmod(0o644)
    changed = bytearray(whole)
    changed[offset] ^= 1 << bit
    write(path, bytes(changed))
    try:
        yield
    finally:
        write(path, whole)
        path.chmod(mode)


def write(path: Path, content: bytes) -> None:
    """Write in place; a database gets another change counter, so that no reader's cache fits."""
    if path.name == "mlflow.db":
        counter = next(COUNTERS).to_bytes(4, "big")
        content = content[:24] + counter + content[28:92] + counter + content[96:]
    with path.open("r+b") as stream:
        stream.write(content)


COUNTERS = iter(range(1_000_000, 2**31))


def outcome(kind: Kind, path: Path, before: Content) -> str:
    """How a flip ends: ``detected``, ``without content`` or ``undetected``."""
    try:
        kind.check(path, kind.files[path])
    except Exception:  # whatever the reader, or a library that it reads with, says of it
        return "detected"
    try:
        return "without content" if path.name == LOADER_FILE or kind.content(path) == before else "undetected"
    except Exception as error:
        return f"undetected ({error})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Flip, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path(".triptych"))
    parser.add_argument("--flips", type=int, default=FLIPS)
    parser.add_argument("--seed", type=int, default=20260726)
    asked = parser.parse_args(arguments)
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        left = Left(copy_of(asked.work_dir.resolve(), Path(folder).resolve()))
        bad = [version.version for version in left.versions if not left.holds(version)]
        if bad:
            print(f"version {', '.join(bad)} does not hold before anything is flipped: triptych audit {bad[0]}")
            return 2
        total, spots = show(left, asked.flips, chance)
    print(f"a whole audit named {spots['named']} of {spots['shown']} detected flips that it was shown")
    undetected = sum(count for name, count in total.items() if name.startswith("undetected"))
    told = f"detected {total['detected']} + without content {total['without content']} of {asked.flips}"
    print(f"{told}, undetected {undetected}")
    return 1 if undetected or spots["named"] != spots["shown"] else 0


def show(left: Left, flips: int, chance: random.Random) -> tuple[Counter[str], Counter[str]]:
    """Flip so many bits, an equal share for each kind of file, and print a line for each kind."""
    total, spots = Counter[str](), Counter[str]()
    kinds = [kind for kind in left.kinds() if kind.files]
    print(f"{'kind':<32} {'files':>6} {'bytes':>10} {'flips':>6} {'detected':>9} {'no content':>11} {'undetected':>11}")
    for number, kind in enumerate(kinds):
        paths = [path for path in kind.files if path.stat().st_size]
        sizes = [path.stat().st_size for path in paths]
        count = flips // len(kinds) + (number < flips % len(kinds))
        found = Counter[str]()
        for path in sorted(chance.choices(paths, sizes, k=count)):
            offset, bit = chance.randrange(path.stat().st_size), chance.randrange(8)
            if kind.name == "channel":
                left.check_channel(path, None)
            before = kind.content(path)
            with flipped(path, offset, bit):
                ended = outcome(kind, path, before)
                if ended.startswith("undetected"):
                    print(f"{ended}: bit {bit} of byte {offset} of {path.relative_to(left.root)}")
                if ended == "detected" and chance.random() < SPOT / flips and kind.check is check_stored:
                    spots["shown"] += 1
                    spots["named"] += any(not left.holds(version) for version in left.versions)
            found["undetected" if ended.startswith("undetected") else ended] += 1
        rest = [found[name] for name in ("detected", "without content", "undetected")]
        print(f"{kind.name:<32} {len(paths):>6} {sum(sizes):>10} {count:>6} {rest[0]:>9} {rest[1]:>11} {rest[2]:>11}")
        if rest[1]:
            print(f"    without content, as before and after the flip these are equal: {kind.proof}")
        total += found
    return total, spots


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # MLflow's libraries report each error that the flips provoke
    sys.exit(main())
