"""The sample grid: the same prompts and seeds drawn by both models, side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from components.evaluate.evaluation_set import Prompt, open_rgb


def draw_sample_grid(
    samples: Sequence[tuple[Prompt, int]], files: Mapping[str, Sequence[Path]], count: int, target: Path
) -> None:
    """Write ``count`` samples, spread evenly over the set, as a PNG: one row a model, one column a prompt."""
    from matplotlib.figure import Figure

    count = min(count, len(samples))
    chosen = [i * len(samples) // count for i in range(count)]
    columns = min(8, count)
    blocks = -(-count // columns)
    models = sorted(files, reverse=True)
    rows = blocks * len(models)
    figure = Figure(figsize=(1.9 * columns, 2.25 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.axis("off")
    for place, index in enumerate(chosen):
        for offset, model in enumerate(models):
            panel = axes[place // columns * len(models) + offset][place % columns]
            panel.imshow(open_rgb(files[model][index]), interpolation="nearest")
            title = "\n".join(textwrap.wrap(samples[index][0].text, 30)) if offset == 0 else ""
            panel.set_title(title, fontsize=5.5)
            if place % columns == 0:
                panel.text(-0.08, 0.5, model, rotation=90, va="center", ha="center", transform=panel.transAxes)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
