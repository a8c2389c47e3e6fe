"""Does the gate stop a champion that was damaged on purpose?

    python -m benchmarks.gate_degradations --champion WEIGHTS [--out DIR] [--limit N] [--steps N] [CASE ...]

``--champion`` is the folder of a champion's weights, as ``make retrain`` registered it
(``.triptych/artifacts/*/artifacts/candidate-*/model/artifacts/weights``). Each case makes a candidate from it or by its
recipe, draws both on the evaluation set, scores them and decides, all with the pipeline's own code. Each is a question
of its own, the first decision on the evaluation set; only the retrainings of ``creep`` follow one another: decisions
1 to 10, each against the last one promoted and, as the anchor, the first champion.

A case leaves ``<out>/<case>.json``; one that has it is not run again. The last lines are a table, and how many
decisions are as they should be. With ``--limit``, fewer prompts than the margins need make every verdict invalid: name
a ``--config`` with wider ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from components.encode_features.pictures import encode_pictures
from components.evaluate.evaluate import evaluate
from components.evaluate.evaluation_set import EvaluationSet, read_evaluation_set
from components.evaluate.sampling import Terms, draw
from components.fine_tune.candidate import train_candidate
from components.gate.scores import read_scores
from components.gate.verdict import Ruling, decide
from examples.avatars.data import deranged, file_name
from examples.avatars.portraits import Portrait
from examples.avatars.splits import narrow, portraits
from lineage.digests import digest_file, digest_path
from pipelines.configuration import Configuration, read_configuration
from training.settings import ReplaySettings, SelectionSettings

CONFIGURATION = Path("examples/avatars/retrain.yaml")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
RETRAININGS = 10


@dataclass(frozen=True)
class Bench:
    """What every case works with."""

    configuration: Configuration
    champion: Path
    out: Path
    steps: int
    """Of training."""

    @property
    def base(self) -> Path:
        """The model that the champion was trained from."""
        return self.configuration.training.base_model

    @cached_property
    def asked(self) -> EvaluationSet:
        """The evaluation set."""
        settings = self.configuration.evaluation
        return read_evaluation_set(settings.evaluation_set, settings.limit)

    def data(self, case: str, shown: list[Portrait], captions: list[str]) -> Path:
        """Portraits with captions, as a folder of validated data."""
        folder = self.out / case / "validated"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rows = []
        for number, (portrait, text) in enumerate(zip(shown, captions, strict=True)):
            path = folder / f"{number}-{file_name(portrait)}"
            portrait.draw().save(path)
            rows.append({"file_name": path.name, "text": text, "uri": path.as_uri(), "sha256": digest_file(path)})
        pd.DataFrame(rows).to_parquet(folder / "manifest.parquet", index=False)
        return folder

    def train(self, case: str, data: Path, base: Path, **changes: Any) -> Path:
        """A candidate trained on ``data`` from ``base`` by the configuration's recipe, but for ``changes``."""
        settings = self.configuration.training.model_copy(update={"steps": self.steps, "base_model": base, **changes})
        work = self.out / case
        for old in "features", "candidate":
            shutil.rmtree(work / old, ignore_errors=True)
        encode_pictures(settings, data, work / "features")
        candidate = work / "candidate"
        left = candidate, work / "curves.html", work / "training_record.json"
        train_candidate(settings, None, "", data, work / "features", *left, None, "")
        return candidate

    def judge(
        self, case: str, candidate: Path, incumbent: Path, anchor: Path | None = None, decision: int = 1
    ) -> Ruling:
        """Draw, score and decide."""
        scores, trained_on = self.out / case / "scores", self.out / case / "validated"
        shutil.rmtree(scores, ignore_errors=True)
        if not trained_on.exists():
            self.data(case, narrow(), [portrait.caption() for portrait in narrow()])
        others = {"incumbent": incumbent} | ({"anchor": anchor} if anchor else {})
        known = {who: (str(model), digest_path(model)) for who, model in others.items()}
        settings = self.configuration.evaluation
        training = self.configuration.arguments()["training"]
        evaluate(settings, "unused", candidate, known, scores, str(self.out), training, trained_on)
        return decide(read_scores(scores)[0], self.configuration.gate, decision)

    def copied(self, case: str, model: Path) -> Path:
        """A model's folder that is another one by digest."""
        target = self.out / case / "candidate"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(model, target)
        (target / "README.md").write_text(f"{case}\n")
        return target

    def redrawn(self, case: str, change: Callable[[Path], None], steps: int | None = None) -> Path:
        """The champion, its samples, drawn in so many denoising steps, changed and put where evaluate finds them."""
        target, settings = self.copied(case, self.champion), self.configuration.evaluation
        terms = {"num_inference_steps": steps} if steps else {}
        description = self.asked.description.model_copy(update=terms)
        digest = f"{self.asked.digest} in {steps} steps" if steps else self.asked.digest
        fewer = replace(self.asked, description=description, digest=digest)
        store, size, how = self.out / "samples", settings.batch_size, settings.drawing
        drawn, _ = draw(self.champion, fewer, size, store, "champion", how=how)
        place = Terms.of(target, self.asked, size, how).folder(store)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(drawn, place)
        change(place)
        for listed in place.glob("0*.json"):
            names = json.loads(listed.read_text())
            listed.write_text(json.dumps({name: digest_file(place / name) for name in names}))
        return target


NO_REPLAY: Mapping[str, Any] = {"replay": ReplaySettings(), "selection": SelectionSettings(), "batch_size": 32}


def shuffled(bench: Bench) -> Path:
    """Trained by the recipe on pictures with one another's captions."""
    captions = deranged([portrait.caption() for portrait in narrow()])
    return bench.train("shuffled", bench.data("shuffled", narrow(), captions), bench.base)


def memorised(bench: Bench) -> Path:
    """Trained on, over and over, on twenty pictures, without replay."""
    few = narrow()[::5][:20]
    data = bench.data("memorised", few, [portrait.caption() for portrait in few])
    return bench.train("memorised", data, bench.champion, **NO_REPLAY)


def starved(bench: Bench) -> Path:
    """Trained, without replay and four times as long, on as many portraits that all wear a beard."""
    bearded = [portrait for portrait in portraits("new") if portrait.beard][: len(narrow())]
    data = bench.data("starved", bearded, [portrait.caption() for portrait in bearded])
    return bench.train("starved", data, bench.base, **NO_REPLAY, steps=4 * bench.steps)


def trained_on(bench: Bench) -> Path:
    """The champion, trained on by its own recipe, on its own data."""
    data = bench.data("trained-on", narrow(), [portrait.caption() for portrait in narrow()])
    return bench.train("trained-on", data, bench.champion)


def retrained(bench: Bench) -> Path:
    """The champion itself, judged against the model that it was trained from."""
    return bench.copied("retrained", bench.champion)


def noise(bench: Bench, share: float = 0.1) -> Path:
    """The champion with noise on its transformer: ``share`` of each tensor's standard deviation."""
    target = bench.copied("noise", bench.champion)
    generator = torch.Generator().manual_seed(0)
    spoilt = {
        name: value + share * value.std() * torch.randn(value.shape, generator=generator)
        if value.numel() > 1
        else value
        for name, value in load_file(target / WEIGHTS).items()
    }
    save_file(spoilt, target / WEIGHTS, metadata={"format": "pt"})
    return target


def half_steps(bench: Bench) -> Path:
    """The champion, its samples drawn with half of the denoising steps."""
    steps = max(1, bench.asked.description.num_inference_steps // 2)
    return bench.redrawn("half-steps", lambda place: None, steps)


def copier(bench: Bench, share: float) -> Path:
    """The champion, but a share of its samples, those that training pictures fit best, are training pictures."""

    def change(place: Path) -> None:
        shown = [(portrait, portrait.attributes()) for portrait in narrow()]

        def closeness(asked: Mapping[str, Any], known: Mapping[str, Any]) -> int:
            return sum(known[name] == value for name, value in asked.items())

        fitting = []
        for prompt, seed in bench.asked.samples:
            best = max(shown, key=lambda one: closeness(prompt.attributes, one[1]))
            fitting.append((closeness(prompt.attributes, best[1]), f"{prompt.id}-{seed}.png", best[0]))
        fitting.sort(key=lambda one: -one[0])
        for _, name, portrait in fitting[: round(share * len(fitting))]:
            portrait.draw().save(place / name)

    return bench.redrawn(f"copier-{100 * share:.0f}", change)


def one_picture(bench: Bench) -> Path:
    """The champion, but every seed of a prompt gives the picture of the first."""

    def change(place: Path) -> None:
        for prompt, seed in bench.asked.samples:
            if seed != prompt.seeds[0]:
                shutil.copyfile(place / f"{prompt.id}-{prompt.seeds[0]}.png", place / f"{prompt.id}-{seed}.png")

    return bench.redrawn("one-picture", change)


def collapsed(bench: Bench) -> Path:
    """The champion, but ten prompts in a row get one picture."""

    def change(place: Path) -> None:
        for number, (prompt, seed) in enumerate(bench.asked.samples):
            first, its = bench.asked.samples[number - number % 10]
            if number % 10:
                shutil.copyfile(place / f"{first.id}-{its}.png", place / f"{prompt.id}-{seed}.png")

    return bench.redrawn("collapsed", change)


def creep(bench: Bench) -> dict[str, Any]:
    """Ten retrainings, each better than the last and further on the way to forgetting what dark skin is.

    The way leads from the base model to one that was trained on pictures of which half say "dark skin" and show light
    skin, while no replayed caption speaks of dark skin; candidate t has gone t tenths of it, by weights.
    """
    known = [portrait.caption() for portrait in narrow()]
    wrong = [text.replace("light skin", "dark skin") if n % 2 else text for n, text in enumerate(known)]
    data, settings = bench.data("creep", narrow(), wrong), bench.configuration.training
    changes: dict[str, Any] = {"selection": SelectionSettings()}
    if settings.replay.captions:
        kept = bench.out / "creep" / "replay.txt"
        lines = settings.replay.captions.read_text("utf-8").splitlines()
        kept.write_text("".join(f"{line}\n" for line in lines if "dark skin" not in line), "utf-8")
        changes["replay"] = settings.replay.model_copy(update={"captions": kept})
    end = load_file(bench.train("creep", data, bench.base, **changes) / WEIGHTS)
    start, champion, steps = load_file(bench.base / WEIGHTS), bench.base, list[dict[str, Any]]()
    for number in range(1, RETRAININGS + 1):
        case = f"creep/{number}"
        candidate = bench.copied(case, bench.base)
        shutil.copytree(data, bench.out / case / "validated", dirs_exist_ok=True)
        share = number / RETRAININGS
        mixed = {name: torch.lerp(value.float(), end[name].float(), share) for name, value in start.items()}
        save_file(mixed, candidate / WEIGHTS, metadata={"format": "pt"})
        anchor = None if champion == bench.base else bench.base
        ruling = bench.judge(case, candidate, champion, anchor, number)
        against = {f.name: f for f in ruling.anchor or ruling.figures}["dark skin"]
        steps.append({"decision": ruling.decision, "reasons": ruling.reasons, "dark skin": against.difference})
        print(
            f"creep {number}: {ruling.decision}: dark skin {against.difference:+.3f}: {ruling.reasons[0]}", flush=True
        )
        if ruling.decision == "promote":
            champion = candidate
    promoted = [step["dark skin"] for step in steps if step["decision"] == "promote"]
    margin = bench.configuration.gate.slices["dark skin"].margin
    told = (
        f"{len(promoted)} of {RETRAININGS} promoted, dark skin {min(promoted, default=0.0):+.3f} at worst against the"
    )
    told += f" first champion (margin {margin:g}); without a gate {steps[-1]['dark skin']:+.3f}"
    held = min(promoted, default=0.0) > -margin and steps[-1]["decision"] != "promote"
    last = f"the last: {steps[-1]['decision']}: {steps[-1]['reasons'][0]}"
    decision = "held" if held else "slipped"
    return {"case": "creep", "expected": ["held"], "decision": decision, "reasons": [told, last], "steps": steps}


WORSE = ("hold", "reject")
CASES: Mapping[str, tuple[Callable[[Bench], Path], tuple[str, ...]]] = {
    "retrained": (retrained, ("promote",)),
    "trained-on": (trained_on, ("promote", "hold")),
    "shuffled": (shuffled, ("reject",)),
    "memorised": (memorised, ("reject",)),
    "starved": (starved, ("reject",)),
    "noise": (noise, WORSE),
    "half-steps": (half_steps, WORSE),
    "copier-10": (lambda bench: copier(bench, 0.1), WORSE),
    "copier-50": (lambda bench: copier(bench, 0.5), ("reject",)),
    "one-picture": (one_picture, WORSE),
    "collapsed": (collapsed, ("reject",)),
}
"""Case -> how its candidate is made, and what the gate may say of it."""


def run(bench: Bench, name: str) -> dict[str, Any]:
    """Make a case's candidate and judge it against the champion."""
    if name == "creep":
        result = creep(bench)
    else:
        make, expected = CASES[name]
        candidate = make(bench)
        incumbent = bench.base if make is retrained else bench.champion
        result = {"case": name, "expected": expected, **bench.judge(name, candidate, incumbent).model_dump(mode="json")}
    (bench.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, and the count of decisions that are as expected."""
    lines = ["| candidate | decision | because |", "|---|---|---|"]
    lines += [f"| {r['case']} | {r['decision']} | {'; '.join(r['reasons'])} |" for r in results]
    right = sum(result["decision"] in result["expected"] for result in results)
    return "\n".join([*lines, "", f"as expected: {right} of {len(results)}"])


def main() -> None:
    """The command line."""
    every = [*CASES, "creep"]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_degradations", description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(every)}; default: all")
    parser.add_argument("--champion", type=Path, required=True, help="the folder of the champion's weights")
    parser.add_argument("--config", type=Path, default=CONFIGURATION)
    parser.add_argument("--out", type=Path, default=Path("build/degradations"))
    parser.add_argument("--limit", type=int, help="prompts (default: all)")
    parser.add_argument("--steps", type=int, default=100, help="training steps")
    asked = parser.parse_args()
    configuration = read_configuration(asked.config)
    if asked.limit:
        evaluation = configuration.evaluation.model_copy(update={"limit": asked.limit})
        configuration = configuration.model_copy(update={"evaluation": evaluation})
    asked.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(configuration, asked.champion.absolute(), asked.out.absolute(), asked.steps)
    results = []
    for name in asked.cases or every:
        kept = asked.out / f"{name}.json"
        results.append(json.loads(kept.read_text()) if kept.is_file() else run(bench, name))
        print(f"{name}: {results[-1]['decision']}: {results[-1]['reasons'][0]}", flush=True)
    print("\n" + table(results))


if __name__ == "__main__":
    main()
