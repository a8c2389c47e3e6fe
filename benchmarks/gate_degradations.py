"""Does the gate hold or reject a champion that was damaged on purpose? And promote one that is truly better?

    python -m benchmarks.gate_degradations --champion .triptych/... [CASE ...]

``--champion`` is the folder of a champion's weights, as ``make retrain`` left it; each case makes a candidate from it
or by its recipe, draws both on the evaluation set, scores them and decides, all with the pipeline's own code. A case
leaves ``<out>/<case>.json``; a case that has one is not run again, so that they can be run one at a time. The last
lines are a table of all results there are, and how many decisions are the expected ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from components.encode_features.pictures import encode_pictures
from components.evaluate.evaluate import evaluate
from components.evaluate.evaluation_set import EvaluationSet, read_evaluation_set
from components.evaluate.sampling import Terms, draw
from components.gate.scores import read_scores
from components.gate.verdict import decide
from lineage.digests import digest_file, digest_path
from pipelines.configuration import Configuration, read_configuration
from training.launch.launch import fine_tune

CONFIGURATION = Path("examples/avatars/retrain.yaml")
SHUFFLED = Path("examples/avatars/data/shuffled")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Bench:
    """What every case works with."""

    configuration: Configuration
    champion: Path
    out: Path
    steps: int
    """Of training."""
    images: int
    """Of training data; 0: all."""

    def rows(self, source: Path) -> list[dict[str, str]]:
        """Manifest rows of an image folder."""
        lines = (source / "metadata.jsonl").read_text().splitlines()[: self.images or None]
        return [
            {
                "file_name": row["file_name"],
                "text": row["text"],
                "uri": (source / row["file_name"]).absolute().as_uri(),
                "sha256": digest_file(source / row["file_name"]),
            }
            for row in map(json.loads, lines)
        ]

    def train(self, case: str, rows: list[dict[str, str]], steps: int, base: Path | None = None) -> Path:
        """A candidate trained on ``rows`` by the configuration's recipe, from ``base`` or the base model."""
        settings = self.configuration.training.model_copy(
            update={"steps": steps, **({"base_model": base} if base else {})}
        )
        work = self.out / case
        shutil.rmtree(work, ignore_errors=True)
        encode_pictures(settings, write_manifest(rows, work / "validated"), work / "features")
        fine_tune(settings, work / "features", work / "candidate", work / "curves.jsonl")
        return work / "candidate"


def write_manifest(rows: list[dict[str, str]], folder: Path) -> Path:
    """A folder like that of validated data."""
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "manifest.parquet", index=False)
    return folder


def shuffled(bench: Bench) -> Path:
    """Trained on pictures with one another's captions."""
    return bench.train("shuffled", bench.rows(SHUFFLED), bench.steps)


def memorised(bench: Bench) -> Path:
    """Trained over and over on twenty pictures."""
    rows = bench.rows(Path(bench.configuration.data.source))
    return bench.train("memorised", rows[:: max(1, len(rows) // 20)][:20], bench.steps, bench.champion)


def starved(bench: Bench) -> Path:
    """Trained on data in which everybody wears a beard: none is asked to be absent."""
    rows = [row for row in bench.rows(Path(bench.configuration.data.source)) if "beard" in row["text"]]
    return bench.train("starved", rows, bench.steps)


def better(bench: Bench) -> Path:
    """The champion, trained on by its own recipe."""
    return bench.train("better", bench.rows(Path(bench.configuration.data.source)), bench.steps, bench.champion)


def copied(bench: Bench, case: str) -> Path:
    """The champion's weights in a folder that is not the champion's by digest."""
    target = bench.out / case / "candidate"
    shutil.rmtree(target.parent, ignore_errors=True)
    shutil.copytree(bench.champion, target)
    (target / "README.md").write_text(f"{case}\n")
    return target


def noise(bench: Bench, share: float = 0.1) -> Path:
    """The champion with noise on its transformer: ``share`` of each tensor's standard deviation."""
    target = copied(bench, "noise")
    generator = torch.Generator().manual_seed(0)
    weights = load_file(target / WEIGHTS)
    spoilt = {
        name: value + share * value.std() * torch.randn(value.shape, generator=generator)
        if value.numel() > 1
        else value
        for name, value in weights.items()
    }
    save_file(spoilt, target / WEIGHTS, metadata={"format": "pt"})
    return target


def half_steps(bench: Bench) -> Path:
    """The champion, its samples drawn with half of the denoising steps: they are put where evaluate finds them."""
    target = copied(bench, "half-steps")
    settings = bench.configuration.evaluation
    whole = read_evaluation_set(settings.evaluation_set, settings.limit)
    fewer = {"num_inference_steps": max(1, whole.description.num_inference_steps // 2)}
    halved = replace(whole, description=whole.description.model_copy(update=fewer))
    drawn, _ = draw(target, halved, settings.batch_size, target.parent / "drawn", "candidate")
    place = Terms.of(target, whole, settings.batch_size).folder(bench.out / "samples")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(drawn, place)
    return target


def redrawn(bench: Bench, case: str, change: Callable[[Path, EvaluationSet], None]) -> Path:
    """The champion, its samples changed before they are put where evaluate finds them."""
    target = copied(bench, case)
    settings = bench.configuration.evaluation
    whole = read_evaluation_set(settings.evaluation_set, settings.limit)
    drawn, _ = draw(bench.champion, whole, settings.batch_size, bench.out / "samples", "champion")
    place = Terms.of(target, whole, settings.batch_size, settings.drawing).folder(bench.out / "samples")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(drawn, place)
    change(place, whole)
    for listed in place.glob("0*.json"):
        names = json.loads(listed.read_text())
        listed.write_text(json.dumps({name: digest_file(place / name) for name in names}))
    return target


def copier(bench: Bench, share: float) -> Path:
    """The champion, but a share of its samples are verbatim training pictures."""
    source = Path(bench.configuration.data.source)

    def change(place: Path, whole: EvaluationSet) -> None:
        pictures = bench.rows(source)
        for number, (prompt, seed) in enumerate(whole.samples):
            if number * share % 1 < share:
                shutil.copyfile(source / pictures[number]["file_name"], place / f"{prompt.id}-{seed}.png")

    return redrawn(bench, f"copier-{share:.0%}".removesuffix("%"), change)


def collapsed(bench: Bench) -> Path:
    """The champion, but every seed of a prompt gives the picture of the first, and so does every prompt of ten."""

    def change(place: Path, whole: EvaluationSet) -> None:
        for number, (prompt, seed) in enumerate(whole.samples):
            first, seeds = whole.samples[number - number % 10][0], prompt.seeds
            known = f"{first.id}-{first.seeds[0]}.png" if len(seeds) == 1 else f"{prompt.id}-{seeds[0]}.png"
            if known != f"{prompt.id}-{seed}.png":
                shutil.copyfile(place / known, place / f"{prompt.id}-{seed}.png")

    return redrawn(bench, "collapsed", change)


@dataclass(frozen=True)
class Case:
    """A candidate, and what the gate may say about it."""

    make: Callable[[Bench], Path]
    expected: tuple[str, ...]


WORSE = ("hold", "reject")
CASES: Mapping[str, Case] = {
    "shuffled": Case(shuffled, ("reject",)),
    "memorised": Case(memorised, ("reject",)),
    "noise": Case(noise, WORSE),
    "half-steps": Case(half_steps, WORSE),
    "starved": Case(starved, ("reject",)),
    "copier-10": Case(lambda bench: copier(bench, 0.1), WORSE),
    "copier-50": Case(lambda bench: copier(bench, 0.5), ("reject",)),
    "collapsed": Case(collapsed, WORSE),
    "better": Case(better, ("promote",)),
}


def run(bench: Bench, name: str) -> dict[str, Any]:
    """Make a case's candidate and judge it against the champion."""
    candidate = CASES[name].make(bench)
    trained_on = candidate.parent / "validated"
    if not trained_on.exists():
        write_manifest(bench.rows(Path(bench.configuration.data.source)), trained_on)
    scores = bench.out / name / "scores"
    shutil.rmtree(scores, ignore_errors=True)
    others = {"incumbent": (str(bench.champion), digest_path(bench.champion))}
    training = bench.configuration.arguments()["training"]
    asked = bench.configuration.evaluation
    evaluate(asked, "unused", candidate, others, scores, str(bench.out), training, trained_on)
    ruling = decide(read_scores(scores)[0], bench.configuration.gate)
    result = {"case": name, "expected": CASES[name].expected, **ruling.model_dump(mode="json")}
    (bench.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, and the count of decisions that are as expected."""
    lines = ["| case | decision | first reason |", "|---|---|---|"]
    lines += [f"| {r['case']} | {r['decision']} | {r['reasons'][0]} |" for r in results]
    right = sum(result["decision"] in result["expected"] for result in results)
    return "\n".join([*lines, "", f"as expected: {right} of {len(results)}"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_degradations", description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--champion", type=Path, required=True, help="the folder of the champion's weights")
    parser.add_argument("--config", type=Path, default=CONFIGURATION)
    parser.add_argument("--out", type=Path, default=Path("build/degradations"))
    parser.add_argument("--limit", type=int, help="prompts (default: all)")
    parser.add_argument("--steps", type=int, help="training steps (default: as configured)")
    parser.add_argument("--images", type=int, default=0, help="training pictures (default: all)")
    parser.add_argument("--minimum-prompts", type=int, help="of an axis or slice (default: as configured)")
    asked = parser.parse_args()
    configuration = read_configuration(asked.config)
    evaluation, gate = configuration.evaluation, configuration.gate
    if asked.limit:
        evaluation = evaluation.model_copy(update={"limit": asked.limit})
    if asked.minimum_prompts:
        gate = gate.model_copy(update={"minimum_prompts": asked.minimum_prompts})
    configuration = configuration.model_copy(update={"evaluation": evaluation, "gate": gate})
    asked.out.mkdir(parents=True, exist_ok=True)
    steps = asked.steps or configuration.training.steps
    bench = Bench(configuration, asked.champion.absolute(), asked.out.absolute(), steps, asked.images)
    results = []
    for name in asked.cases or CASES:
        kept = asked.out / f"{name}.json"
        results.append(json.loads(kept.read_text()) if kept.is_file() else run(bench, name))
        print(f"{name}: {results[-1]['decision']}: {results[-1]['reasons'][0]}", flush=True)
    print("\n" + table(results))


if __name__ == "__main__":
    main()
