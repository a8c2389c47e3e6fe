"""Runs the queue: a few processes share one device, each result is one line of a file that can be taken up again."""

from __future__ import annotations

import fcntl
import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.trilemma.arms import ARMS, SEEDS, Job, jobs, matching
from benchmarks.trilemma.runs import Looker, Trainer, World, base_lines, matched_strength, run


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The results in ``path``, none where there is no such file; a last line that was cut off is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text("utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def append(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add ``lines`` in one write, whole lines only, whoever else writes."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if stream.tell() and not _ends_whole(path):
            text = b"\n" + text
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def device_of(name: str | None) -> torch.device:
    """The device called ``name``, or the first GPU, or the CPU; a GPU multiplies in TF32 and convolves in fp32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = False
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


class Worker:
    """Takes jobs and writes their runs."""

    def __init__(self, bundle: Path, results: Path, device: torch.device, short: int | None = None) -> None:
        self.bundle, self.results, self.device, self.short = bundle, results, device, short
        self.began = time.time()
        self._worlds: dict[int, World] = {}
        self._lookers: dict[tuple[int, tuple[int, ...]], Looker] = {}

    def say(self, text: str) -> None:
        print(f"[{time.time() - self.began:6.1f} {os.getpid()}] {text}", flush=True)

    def world(self, number: int) -> World:
        if number not in self._worlds:
            self._worlds[number] = World(self.bundle, number, self.device)
        return self._worlds[number]

    def looker(self, number: int, seeds: tuple[int, ...]) -> Looker:
        """With base′'s own points, which are written once."""
        if (number, seeds) not in self._lookers:
            world = self.world(number)
            looker = Looker(world, seeds)
            lines = list(base_lines(world, seeds, looker))
            done = {line["key"] for line in read_lines(self.results)}
            append(self.results, [line for line in lines if line["key"] not in done])
            self._lookers[number, seeds] = looker
        return self._lookers[number, seeds]

    def strengths(self, job: Job) -> tuple[float, ...]:
        """λ of each run; matching runs are made where they are missing."""
        if job.strengths:
            return job.strengths
        arm = ARMS[job.arm]
        if not arm.matched:
            return (arm.strength or 0.0,) * len(job.seeds)
        name = arm.like or job.arm
        for needed in ("noise-stream", name):
            matched = matching(needed, job.rate, job.steps)
            done = {line["key"] for line in read_lines(self.results) if "error" not in line}
            if any(matched.key(i) not in done for i in range(len(matched.seeds))):
                self.do(matched)
        return (matched_strength(read_lines(self.results), name, job.rate),) * len(job.seeds)

    def do(self, job: Job) -> None:
        """Make the runs of ``job`` that have no line yet; an error becomes a line."""
        done = {line["key"] for line in read_lines(self.results) if "error" not in line}
        left = [i for i in range(len(job.seeds)) if job.key(i) not in done]
        if not left:
            return
        chosen = Job(
            job.kind, job.world, job.rate, job.steps, job.arm, tuple(job.seeds[i] for i in left),
            tuple(job.strengths[i] for i in left) if job.strengths else None,
        )  # fmt: skip
        try:
            strengths = self.strengths(chosen)
            looker = self.looker(job.world, chosen.seeds) if job.kind == "main" else None
            lines = run(self.world(job.world), chosen, strengths, looker, self.short, self.say)
            about = {"device": _device_name(self.device), "torch": torch.__version__}
            append(self.results, [line | about for line in lines])
        except Exception as error:  # one job's failure is recorded, and the queue goes on
            self.say(traceback.format_exc())
            text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            append(self.results, [{"key": chosen.key(i), "error": text} for i in range(len(chosen.seeds))])
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _work(bundle: Path, results: Path, device: str, place: Any, until: float, chosen: list[Job]) -> None:
    torch.set_num_threads(1)
    worker = Worker(bundle, results, device_of(device))
    longest = 0.0
    while True:
        with place.get_lock():
            number = place.value
            place.value += 1
        if number >= len(chosen):
            return
        if time.time() + longest * 0.8 > until:
            worker.say("no time for another job")
            return
        since = time.time()
        worker.do(chosen[number])
        longest = max(longest, time.time() - since) if longest else (time.time() - since) / 2


def run_queue(
    bundle: Path, results: Path, device: str, processes: int, until: float, chosen: list[Job] | None = None
) -> None:
    """Work the queue off with so many processes, starting no job that would not end by ``until`` (as `time.time`)."""
    import torch.multiprocessing as multiprocessing

    chosen = jobs() if chosen is None else chosen
    if processes == 1:
        place = multiprocessing.get_context("spawn").Value("i", 0)
        _work(bundle, results, device, place, until, chosen)
        return
    context = multiprocessing.get_context("spawn")
    place = context.Value("i", 0)
    some = [
        context.Process(target=_work, args=(bundle, results, device, place, until, chosen)) for _ in range(processes)
    ]
    for process in some:
        process.start()
    for process in some:
        process.join()


def self_test(bundle: Path, folder: Path, device: str, steps: int = 2) -> int:
    """Every arm for two steps, one short run in each world, then what a step and a look cost.

    Failures are printed, and do not stop the test. Gives the number of processes that the device can do with, which is
    also written to ``folder``/processes.
    """
    where, results = device_of(device), folder / "self-test.jsonl"
    results.unlink(missing_ok=True)
    worker = Worker(bundle, results, where, short=steps)
    (folder / "processes").write_text("3")
    failed = 0
    for arm in ARMS.values():
        since = time.time()
        try:
            trainer = Trainer(worker.world(1), Job("main", 1, 7e-4, 400, arm.name, (0, 1)), (1.0, 1.0))
            for number in range(steps):
                trainer.step(number)
            shown = f"{float(trainer.flow[-1].mean()):.4f}, {float(trainer.auxiliary[-1].mean()):.2e}"
            worker.say(f"{arm.name}: losses {shown}; {time.time() - since:.2f} s")
        except Exception:  # told, and left to the queue
            failed += 1
            worker.say(f"FAILED {arm.name}: {traceback.format_exc()}")
    for world in (1, 2):
        worker.do(Job("main", world, 7e-4, 400, "plain", (0, 1)))
    for line in read_lines(results):
        if line.get("kind") == "base":
            worker.say(f"base′ of world {line['world']}, seed {line['seed']}: {line['points']['base']['report']}")
        failed += "error" in line
    launch, whole = _time_steps(worker, 20 if where.type == "cuda" else 1)
    processes = 4 if launch > 0.7 * whole else 3
    worker.say(f"a step of 8 runs: {whole * 1e3:.2f} ms, {launch * 1e3:.2f} ms of it to launch; {processes} processes")
    worker.say(f"{failed} failures")
    (folder / "processes").write_text(str(processes))
    return processes


def _time_steps(worker: Worker, timed: int) -> tuple[float, float]:
    """Seconds that a step of eight plain runs takes to launch, and in all; times of other things are printed."""
    world, gpu = worker.world(1), worker.device.type == "cuda"

    def wait() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.time()

    found = {}
    for name in ("plain", "noise-stream", "lora", "shipped"):
        trainer = Trainer(world, Job("main", 1, 7e-4, 400, name, SEEDS), (1.0,) * len(SEEDS))
        trainer.step(0)
        launched = 0.0
        for number in range(1, 1 + timed // 4 + 1):  # one step at a time: a full queue would wait for the device
            since = wait()
            trainer.step(number)
            launched += (time.time() - since) / (timed // 4 + 1)
        since = wait()
        for number in range(10, 10 + timed):
            trainer.step(number)
        found[name] = launched, (wait() - since) / timed
        worker.say(f"{name}: {found[name][1] * 1e3:.2f} ms a step of 8 runs, {found[name][0] * 1e3:.2f} to launch")
    looker = worker.looker(1, SEEDS)
    since = wait()
    looker.look({n: v.expand(len(SEEDS), *v.shape[1:]) if n != "positions" else v for n, v in world.base.items()})
    worker.say(f"a look with 8 runs: {wait() - since:.2f} s")
    if gpu:
        worker.say(f"most memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        torch.backends.cuda.matmul.allow_tf32 = False
        exact = Trainer(world, Job("main", 1, 7e-4, 400, "plain", SEEDS), (1.0,) * len(SEEDS))
        exact.step(0)
        torch.backends.cuda.matmul.allow_tf32 = True
        rough = Trainer(world, Job("main", 1, 7e-4, 400, "plain", SEEDS), (1.0,) * len(SEEDS))
        rough.step(0)
        off = (exact.flow[0] - rough.flow[0]).abs().max() / exact.flow[0].mean()
        worker.say(f"TF32 against fp32, the first loss: {float(off):.2e}")
    return found["plain"]
