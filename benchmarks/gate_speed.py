"""The gate's time and memory: `python -m benchmarks.gate_speed [--prompts N] [--resamples N]`.

A whole decision by `decide` (checks, 10,000 resamples, 3 axes, 1,000 prompts) beside its resampling alone;
medians of five rounds in turn. The last line is the decision's seconds of a core (at most 1) and the process's peak
memory (at most 1 GiB), imports and all.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from components.gate.resampling import Resampling, lower_bound
from components.gate.scores import Scores
from components.gate.settings import AXES, GateSettings
from components.gate.verdict import decide
from lineage.scores import COLUMNS, MODELS

ROUNDS = 5


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` keeps a core busy."""
    began = time.process_time()
    work()
    return time.process_time() - began


def make_scores(prompts: int) -> Scores:
    """Scores of two models, one picture a prompt."""
    generator = np.random.default_rng(0)
    names = [f"p{number:05d}" for number in range(prompts)]
    rows = [
        (name, 7, model, axis, float(value))
        for axis in AXES
        for model in MODELS[:2]
        for name, value in zip(names, generator.normal(size=prompts), strict=True)
    ]
    return Scores(pd.DataFrame(rows, columns=list(COLUMNS)), {n: {} for n in names}, {n: [7] for n in names})


def main() -> None:
    """Time both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=10_000)
    asked = parser.parse_args()
    scores = make_scores(asked.prompts)
    wide = dict.fromkeys(AXES, (-5.0, 5.0))
    settings = GateSettings(margins=dict.fromkeys(AXES, 0.1), ranges=wide, resamples=asked.resamples)
    values = np.random.default_rng(0).normal(size=(asked.prompts, len(AXES)))

    def resample() -> None:
        lower_bound(Resampling(asked.prompts, asked.resamples, 0).sums(values, 10.0), settings.level)

    rounds = [(seconds(lambda: decide(scores, settings)), seconds(resample)) for _ in range(ROUNDS)]
    whole, alone = (statistics.median(times) for times in zip(*rounds, strict=True))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{asked.resamples} resamples, {len(AXES)} axes, {asked.prompts} prompts: the resampling alone {alone:.3f} s")
    print(f"decision: {whole:.3f} s, peak memory {memory:.2f} GiB")


if __name__ == "__main__":
    main()
