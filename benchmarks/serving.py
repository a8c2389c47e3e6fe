"""The server beside what people write themselves: `python -m benchmarks.serving PART`.

    throughput    16 clients, 200 requests: the server against a diffusers pipeline behind a lock in FastAPI
    arrivals      Poisson arrivals at 80 % of capacity: how many are answered within 3 x the lone latency
    overload      10 x capacity: how soon a refusal comes, and what is still drawn
    swaps         100 promotions under 8 clients: failed, mixed (each picture against the version it names), latency
    credentials   every picture of every format read by c2pa's own reader; the share of throughput that signing takes
    soak          swaps and hang-ups for `--minutes`; growth of memory

All of it on loopback with the avatars' base model: the server is a process of its own, as `triptych serve` starts it,
and follows a channel that is made here. Run it on an idle machine. The last line of each part is its ratio or share.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

from lineage.artifacts import LOADER, WEIGHTS_FOLDER, folder_digest, listing, weights_digest
from lineage.channel.champion import Champion, File
from lineage.channel.publisher import Publisher, init
from lineage.digests import digest_bytes
from lineage.signing import SCHEME, make_keys, open_signer
from serving.credentials import read_credentials

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "avatars" / "models" / "base"
MODEL = "portrait-avatars"
SAMPLING = {"num_inference_steps": 10, "guidance_scale": 3.0, "max_sequence_length": 1, "height": 64, "width": 64}
PATH = "/v1/images/generations"
PATIENCE = 180.0
Answer = tuple[float, int, dict[str, Any]]
"""Seconds, status, body."""


class Channel:
    """Champions of one model in a channel of their own; versions differ in a file, and draw alike."""

    def __init__(self, folder: Path) -> None:
        self.folder, keys = folder, folder / "keys"
        public = make_keys(keys)
        signers = [open_signer(f"{SCHEME}{keys / f'{role}.pem'}") for role in ("root", "promotion", "witness")]
        root = init(str(folder / "channel"), {role: public[role] for role in ("promotion", "witness")}, signers[0])
        (folder / "root.json").write_bytes(root)
        self._publisher = Publisher(str(folder / "channel"), signers[1], signers[2], timedelta(days=1))

    def promote(self, version: int) -> str:
        """Make ``version`` champion; gives the digest of its weights."""
        folder = self.folder / "models" / str(version)
        if not folder.exists():
            shutil.copytree(BASE, folder / WEIGHTS_FOLDER)
            (folder / WEIGHTS_FOLDER / "version.json").write_text(str(version))
            flavor = {"loader_module": LOADER, "config": {"sampling": SAMPLING}}
            (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}}))
        files, weights = listing(folder), weights_digest(listing(folder))
        champion = Champion(
            model=MODEL,
            version=str(version),
            weights=weights,
            folder=folder_digest(files),
            place=folder.as_uri(),
            files=tuple(File(name=f.name, size=f.size, digest=f.digest) for f in files),
            ledger="benchmark",
            entry=version,
            head=digest_bytes(str(version).encode()),
            size=version + 1,
            time="2026-01-01T00:00:00.000+00:00",
        )
        self._publisher.publish(champion, {})
        return weights


@asynccontextmanager
async def serving(folder: Path, command: list[str], **more: str) -> AsyncIterator[tuple[aiohttp.ClientSession, int]]:
    """Run a server until the block ends; gives a client of it and its process."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRIPTYCH_SERVE_POLL": "1"} | more
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=log, stderr=log)
        connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=PATIENCE)
        session = aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector, timeout=patience)
        try:
            async with session:
                await until(lambda: answers(session))
                yield session, process.pid
        finally:
            process.terminate()
            process.wait()


def ours(folder: Path) -> list[str]:
    """The command of this project's server."""
    given = ["--channel", str(folder / "channel"), "--root", str(folder / "root.json"), "--work-dir", str(folder)]
    return [sys.executable, "-c", "from pipelines.cli import main; main()", "serve", *given]


async def answers(session: aiohttp.ClientSession) -> bool:
    """Whether the server is ready."""
    try:
        async with session.get("/health/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def until(look: Callable[[], Awaitable[bool]], patience: float = PATIENCE) -> float:
    """Wait until ``look`` says yes; gives the seconds.

    Raises:
        TimeoutError: it never did.
    """
    began = time.monotonic()
    while not await look():
        if time.monotonic() - began > patience:
            raise TimeoutError("the server does not become ready; its log is in the folder")
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def draw(session: aiohttp.ClientSession, seed: int, **more: Any) -> Answer:
    """One request."""
    began = time.monotonic()
    async with session.post(PATH, json={"prompt": "a portrait, glasses", "seed": seed} | more) as answer:
        body = await answer.json()
        return time.monotonic() - began, answer.status, body


async def clients(session: aiohttp.ClientSession, count: int, requests: int) -> tuple[float, list[Answer]]:
    """``count`` clients that ask one after the other; gives pictures a second, and the answers."""
    seeds, found, began = iter(range(requests)), list[Answer](), time.monotonic()

    async def client() -> None:
        for seed in seeds:
            found.append(await draw(session, seed))

    await asyncio.gather(*(client() for _ in range(count)))
    return requests / (time.monotonic() - began), found


async def arrivals(session: aiohttp.ClientSession, rate: float, requests: int) -> list[Answer]:
    """Requests that come as a Poisson process of ``rate`` a second."""
    chance, tasks = random.Random(0), list[asyncio.Task[Answer]]()
    for seed in range(requests):
        tasks.append(asyncio.create_task(draw(session, seed)))
        await asyncio.sleep(chance.expovariate(rate))
    return await asyncio.gather(*tasks)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def lone(session: aiohttp.ClientSession, count: int = 10) -> float:
    """Median seconds of a request that is alone."""
    return statistics.median([(await draw(session, seed))[0] for seed in range(count)])


async def throughput(folder: Path, asked: argparse.Namespace) -> None:
    """The server beside a pipeline behind a lock, in turn."""
    rates: dict[str, list[float]] = {"locked": [], "ours": []}
    commands = {"locked": [sys.executable, "-m", "benchmarks.serving", "locked"], "ours": ours(folder)}
    for number in range(asked.rounds):
        for name, command in commands.items():
            async with serving(folder, command) as (session, _):
                await lone(session, 2)
                rate, found = await clients(session, 16, asked.requests)
                assert all(status == 200 for _, status, _ in found), {status for _, status, _ in found}
                rates[name].append(rate)
                late = percentile([seconds for seconds, _, _ in found], 0.95)
                print(f"round {number + 1}, {name}: {rate:.2f} pictures/s, p95 {late:.2f} s", flush=True)
    mine, other = (statistics.median(rates[name]) for name in ("ours", "locked"))
    print(f"throughput: {mine:.2f} / {other:.2f} pictures/s = {mine / other:.2f}")


async def poisson(folder: Path, asked: argparse.Namespace) -> None:
    """Arrivals below capacity."""
    async with serving(folder, ours(folder)) as (session, _):
        alone = await lone(session)
        capacity, _ = await clients(session, 16, asked.requests // 2)
        found = await arrivals(session, 0.8 * capacity, asked.requests)
    good = sum(status == 200 and seconds <= 3 * alone for seconds, status, _ in found) / len(found)
    late = percentile([seconds for seconds, _, _ in found], 0.95)
    print(f"capacity {capacity:.2f} pictures/s, alone {alone:.3f} s, p95 at 80 % {late:.3f} s")
    print(f"arrivals: {good:.3f} within 3 x the lone latency")


async def overload(folder: Path, asked: argparse.Namespace) -> None:
    """Ten times what it can draw."""
    async with serving(folder, ours(folder), TRIPTYCH_SERVE_MOST_WAITING="8") as (session, _):
        capacity, _ = await clients(session, 8, asked.requests // 2)
        began = time.monotonic()
        found = await arrivals(session, 10 * capacity, 10 * asked.requests // 2)
        drawn = sum(status == 200 for _, status, _ in found) / (time.monotonic() - began)
    refused = [seconds for seconds, status, _ in found if status == 429]
    strange = sorted({status for _, status, _ in found} - {200, 429})
    print(f"peak {capacity:.2f} pictures/s; {len(refused)} of {len(found)} refused, other answers: {strange or 'none'}")
    print(f"a refusal takes {percentile(refused, 0.99) * 1000:.1f} ms at p99")
    print(f"overload: goodput {drawn / capacity:.2f} of peak")


async def swaps(folder: Path, asked: argparse.Namespace) -> None:
    """Promotions while clients draw."""
    channel, digests = Channel(folder), dict[str, str]()
    digests["1"] = channel.promote(1)
    async with serving(folder, ours(folder), TRIPTYCH_SERVE_POLL="0.5") as (session, _):
        _, steady = await clients(session, 8, asked.requests // 2)
        found, over, delays = list[Answer](), asyncio.Event(), list[float]()

        async def client(seed: int) -> None:
            while not over.is_set():
                found.append(await draw(session, seed))

        async def drawn_by(version: str) -> bool:
            return bool(found) and found[-1][2].get("version") == version

        drawing = [asyncio.create_task(client(seed)) for seed in range(8)]
        for version in range(2, asked.swaps + 2):
            digests[str(version)] = await asyncio.to_thread(channel.promote, version)
            delays.append(await until(lambda version=version: drawn_by(str(version))))  # type: ignore[misc]
            shutil.rmtree(folder / "models" / str(version - 1), ignore_errors=True)
        over.set()
        await asyncio.gather(*drawing)
    failed = sum(status != 200 for _, status, _ in found)
    mixed = 0
    for _, status, body in found:
        if status == 200:
            read = read_credentials(base64.b64decode(body["data"][0]["b64_json"]))
            said = read and (read.origin.version, read.origin.digest)
            mixed += said != (body["version"], digests[body["version"]]) or body["digest"] != digests[body["version"]]
    late, before = (percentile([seconds for seconds, _, _ in some], 0.99) for some in (found, steady))
    print(f"{asked.swaps} swaps under 8 clients: {len(found)} requests, {failed} failed, {mixed} mixed")
    print(f"promotion to first new picture: median {statistics.median(delays):.2f} s, worst {max(delays):.2f} s")
    print(f"swaps: p99 {late:.3f} s / steady {before:.3f} s = {late / before:.2f}")


async def credentials(folder: Path, asked: argparse.Namespace) -> None:
    """Every picture verifies, and what signing costs of a picture's time."""
    from c2pa import Reader

    good = tried = 0
    async with serving(folder, ours(folder)) as (session, _):
        await lone(session, 2)
        for format in ("png", "jpeg", "webp"):
            for seed in range(asked.requests // 3):
                _, status, body = await draw(session, seed, output_format=format)
                assert status == 200, body
                content = base64.b64decode(body["data"][0]["b64_json"])
                (folder / "picture").write_bytes(content)
                with (folder / "picture").open("rb") as stream, Reader(f"image/{format}", stream) as reader:
                    good, tried = good + (reader.get_validation_state() == "Valid"), tried + 1
        rate, _ = await clients(session, 16, asked.requests)
        async with session.get("/metrics") as answer:
            told = await answer.text()
    spent, count = (
        float(next(line for line in told.splitlines() if line.startswith(name)).split()[-1])
        for name in (f'triptych_serving_stage_seconds_{kind}{{stage="credentials"}}' for kind in ("sum", "count"))
    )
    print(f"{good} of {tried} pictures verify by c2pa's reader; {spent / count * 1000:.2f} ms each, encoding included")
    print(f"credentials: {spent / count * rate:.4f} of a core at {rate:.2f} pictures/s")


async def soak(folder: Path, asked: argparse.Namespace) -> None:
    """Swaps and hang-ups for a while."""
    channel = Channel(folder)
    channel.promote(1)
    async with serving(folder, ours(folder)) as (session, pid):
        process, end, count, sizes = psutil.Process(pid), time.monotonic() + 60 * asked.minutes, 0, list[int]()
        while time.monotonic() < end:
            channel.promote(2 + count % 2)
            tasks = [asyncio.create_task(draw(session, seed)) for seed in range(16)]
            await asyncio.sleep(0.2)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            count += 1
            sizes.append(process.memory_info().rss)
    warm = sizes[len(sizes) // 4 :]
    print(f"{count} rounds of 16 requests, 8 of them hung up; {warm[0] / 2**20:.0f} to {warm[-1] / 2**20:.0f} MiB")
    print(f"soak: growth {warm[-1] / warm[0] - 1:+.3f}")


def locked(port: int) -> None:
    """What people write themselves: a pipeline behind a lock in FastAPI."""
    import io
    import threading

    import torch
    import uvicorn
    from diffusers import StableDiffusion3Pipeline
    from fastapi import FastAPI

    pipeline = StableDiffusion3Pipeline.from_pretrained(BASE, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    app, lock = FastAPI(), threading.Lock()

    @app.get("/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post(PATH)
    def generate(body: dict[str, Any]) -> dict[str, Any]:
        stream = io.BytesIO()
        with lock:
            generator = torch.Generator().manual_seed(body["seed"])
            pipeline(prompt=body["prompt"], generator=generator, **SAMPLING).images[0].save(stream, "PNG")
        return {"data": [{"b64_json": base64.b64encode(stream.getvalue()).decode()}]}

    uvicorn.run(app, port=port, log_level="warning")


PARTS = {
    "throughput": throughput,
    "arrivals": poisson,
    "overload": overload,
    "swaps": swaps,
    "credentials": credentials,
    "soak": soak,
}


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "locked"])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part == "locked":
        locked(asked.port)
        return
    with tempfile.TemporaryDirectory() as folder:
        if asked.part not in ("swaps", "soak"):
            Channel(Path(folder)).promote(1)
        asyncio.run(PARTS[asked.part](Path(folder), asked))


if __name__ == "__main__":
    main()
