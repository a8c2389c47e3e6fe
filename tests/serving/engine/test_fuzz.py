"""Joins, leaves, cancels, deadlines, loads and unloads in any order, against a real tiny model."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from serving.backend import BackendError, Drawing
from serving.engine.backend import BuiltIn
from tests.serving.engine.conftest import SAMPLING, drawing, picture, pixels


class Clients(RuleBasedStateMachine):
    """What clients do; nothing may hang, leak, or change another's picture."""

    bundle: Path
    plain: Any

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.backend = self.do(self.make())
        self.tasks: dict[str, tuple[Drawing, asyncio.Task[Any]]] = {}
        self.count = 0
        self.second = False

    async def make(self) -> BuiltIn:
        backend = BuiltIn()
        await backend.load("0", self.bundle, SAMPLING)
        backend._models["0"].limits[32, 32] = 6
        return backend

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    @rule(
        steps=st.integers(1, 5),
        guidance=st.sampled_from([0.0, 1.0, 4.0]),
        seed=st.integers(0, 2),
        side=st.sampled_from([16, 32]),
        previews=st.integers(0, 3),
        deterministic=st.booleans(),
        late=st.booleans(),
        wait=st.integers(0, 20),
    )
    def ask(
        self,
        steps: int,
        guidance: float,
        seed: int,
        side: int,
        previews: int,
        deterministic: bool,
        late: bool,
        wait: int,
    ) -> None:
        self.count += 1
        asked = drawing(
            str(self.count),
            ("a beard", "a shirt", "")[seed],
            seed,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=side,
            partial_images=previews,
            deterministic=deterministic,
            deadline=time.monotonic() + 0.001 if late else None,
        )
        model = "1" if self.second and seed else "0"
        self.tasks[asked.id] = (asked, self.loop.create_task(picture(self.backend, asked, model)))
        self.do(asyncio.sleep(wait / 1000))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), how=st.sampled_from(["cancel", "go", "wait"]))
    def end(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.tasks)))
        _, task = self.tasks[name]
        if how == "cancel":
            self.backend.cancel(name)
        elif how == "go":
            task.cancel()
        self.do(asyncio.wait([task]))
        self.check(name)

    @rule()
    def load_or_unload(self) -> None:
        if self.second:
            self.do(self.backend.unload("1"))
        else:
            self.do(self.backend.load("1", self.bundle, SAMPLING))
        self.second = not self.second

    def check(self, name: str) -> None:
        asked, task = self.tasks.pop(name)
        if task.cancelled():
            return
        if error := task.exception():
            assert isinstance(error, BackendError)
            assert "cancelled" in str(error) or asked.deadline is not None
            return
        assert np.abs(pixels(task.result().image) - self.plain(self.bundle, asked)).max() <= 1

    def teardown(self) -> None:
        if self.tasks:
            self.do(asyncio.wait([task for _, task in self.tasks.values()]))
        for name in list(self.tasks):
            self.check(name)
        self.do(self.backend.unload("1"))
        self.do(asyncio.wrap_future(self.backend._worker.call(lambda: None)))
        assert not self.backend._pictures and not self.backend._worker._batches
        assert not list(self.backend._worker.turns) and self.backend._models["0"].users == 0
        self.do(self.backend.close())
        self.loop.close()


def test_any_order_of_what_clients_do(sd3: Path, plain: Any) -> None:
    known: dict[Any, Any] = {}

    def remembered(bundle: Path, asked: Drawing) -> Any:
        key = (asked.prompt, asked.seed, *sorted(asked.sampling.items()))
        if key not in known:
            known[key] = plain(bundle, asked)
        return known[key]

    machine = type("Against", (Clients,), {"bundle": sd3, "plain": staticmethod(remembered)})
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=checks),
    )


@pytest.mark.parametrize("rounds", [150])
def test_cancels_leave_nothing_behind(sd3: Path, rounds: int) -> None:
    """Counted in tensors and tasks, because memory as the system sees it moves by itself."""
    import gc

    import torch

    async def work() -> list[int]:
        backend, held = BuiltIn(), []
        await backend.load("0", sd3, SAMPLING)
        backend._models["0"].limits[32, 32] = 8
        for number in range(rounds):
            names = [f"{number} {n}" for n in range(3)]
            tasks = [asyncio.create_task(picture(backend, drawing(name, num_inference_steps=500))) for name in names]
            while not backend.load_now().active:
                await asyncio.sleep(0.001)
            for name in names:
                backend.cancel(name)
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.wrap_future(backend._worker.call(lambda: None))
            if number in (rounds // 3, rounds - 1):
                del tasks
                gc.collect()
                held.append(sum(isinstance(one, torch.Tensor) for one in gc.get_objects()))
                assert len(asyncio.all_tasks()) == 1
        await backend.close()
        return held

    before, after = asyncio.run(work())
    assert after <= before
