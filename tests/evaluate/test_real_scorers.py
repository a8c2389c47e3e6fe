"""The scorers of `examples/scorers` through the process contract, on tiny checkpoints of the classes that they load."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from components.evaluate.evaluation_set import EvaluationError, Prompt
from components.evaluate.process import CONTRACT, ProcessScorer
from components.evaluate.settings import EvaluationSettings
from components.gate.settings import Constraint, GateSettings
from components.gate.verdict import decide
from lineage.digests import digest_path
from lineage.scores import COLUMNS
from tests.evaluate.tiny_judges import INSTRUCTION, change, save_faces, save_preference, save_witness
from tests.gate.tables import RULES, scores

SCORERS = Path("examples/scorers").resolve()
KINDS = ("soft_tifa", "hpsv3", "face_quality")
CAPTION = "a portrait of a woman with red hair, who has no beard and without glasses"


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(id=str(place), text=text, seeds=(7,), attributes={}) for place, text in enumerate(texts)]


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (70, 64, 3), dtype=np.uint8)) for _ in range(count)]


def folder_of(kind: str, place: Path) -> Path:
    """A scorer's folder as somebody would copy it, links and all as files."""
    return Path(shutil.copytree(SCORERS / kind, place))


def scorer_in(folder: Path, axis: str, *options: str) -> ProcessScorer:
    return ProcessScorer(str(folder), folder.name, axis, [sys.executable, "score.py", *options], timeout=600)


class Program:
    """A scorer's modules, for what needs no process."""

    def __init__(self, kind: str) -> None:
        names, before = ("contract", "qwen_vl", "score"), dict(sys.modules)
        sys.path.insert(0, str(SCORERS / kind))
        try:
            spec = importlib.util.spec_from_file_location("score", SCORERS / kind / "score.py")
            assert spec and spec.loader
            self.score: Any = importlib.util.module_from_spec(spec)
            sys.modules["score"] = self.score
            spec.loader.exec_module(self.score)
        finally:
            sys.path.pop(0)
            for name in names:
                sys.modules.pop(name, None)
                if name in before:
                    sys.modules[name] = before[name]


@pytest.fixture(scope="module")
def witness() -> Program:
    return Program("soft_tifa")


@pytest.fixture(scope="module")
def preference() -> Program:
    return Program("hpsv3")


@pytest.fixture(autouse=True)
def no_compiled_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield


# What every one of them does.


@pytest.mark.parametrize("kind", ["complexity", *KINDS])
def test_the_shared_code_belongs_to_each_digest(kind: str, tmp_path: Path) -> None:
    shutil.copytree(SCORERS, tmp_path / "scorers", symlinks=True)
    folder = tmp_path / "scorers" / kind
    before = digest_path(folder)
    for file in sorted(link for link in folder.iterdir() if link.is_symlink()):
        original = file.resolve()
        assert original.parent == tmp_path / "scorers"
        text = original.read_text()
        original.write_text(text + "\n# changed\n")
        assert digest_path(folder) != before, f"{file.name} may change unseen"
        original.write_text(text)
    assert digest_path(folder) == before


def shown_settings(kind: str) -> dict[str, Any]:
    """The sections that a scorer's page shows."""
    blocks = re.findall(r"```yaml\n(.*?)```", (SCORERS / kind / "README.md").read_text(), re.DOTALL)
    return {name: content for block in blocks for name, content in yaml.safe_load(block).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_settings_of_each_readme_are_settings(kind: str) -> None:
    found = shown_settings(kind)
    evaluation = EvaluationSettings.model_validate({"evaluation_set": "set", **found["evaluation"]})
    (asked,) = evaluation.scorers
    assert asked.scorer == "process" and asked.weights.endswith(f"scorers/{kind}")
    command = [sys.executable, *asked.options["command"][1:]]
    made = ProcessScorer(str(SCORERS / kind), **{**asked.options, "command": command})
    if "gate" in found:
        margins = {axis: 0.1 for axis in ("alignment", "realism", "aesthetics")}
        gate = GateSettings.model_validate({"margins": margins, **found["gate"]})
        asked_for = [constraint.measure for constraint in gate.constraints.values()]
        assert all(name == made.axis or name.startswith(f"{made.axis}/") for name in [*asked_for, *gate.ranges])


@pytest.mark.parametrize("kind", KINDS)
def test_each_lock_pins_every_package_exactly(kind: str) -> None:
    lines = (SCORERS / kind / "requirements.txt").read_text().splitlines()
    pinned = [line.split(" ")[0] for line in lines if line and not line.startswith(("#", " "))]
    assert len(pinned) > 2 and all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pinned)
    constraints = dict(line.split("==") for line in Path("constraints.txt").read_text().splitlines())
    tested = {name.lower().replace("_", "-"): version for name, version in constraints.items()}
    for pin in pinned:
        name, version = pin.split("==")
        assert tested.get(name.lower().replace("_", "-"), version) == version, f"{pin} is not what is tested here"


def ask(kind: str, place: Path, request: dict[str, Any] | str, *options: str) -> str:
    """What a scorer says on failing, without Triptych."""
    (place / "request.json").write_text(request if isinstance(request, str) else json.dumps(request))
    command = [sys.executable, "score.py", *options, str(place / "request.json"), str(place / "response.json")]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(command, cwd=SCORERS / kind, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 1 and not (place / "response.json").exists()
    return ran.stderr


def asked(*names: str, contract: str = CONTRACT, prompt: Any = "a portrait") -> dict[str, Any]:
    listed = [{"image": name, "prompt": prompt, "attributes": {}} for name in names]
    return {"contract": contract, "scorer": "x", "pictures": listed}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_faces(tmp_path_factory.mktemp("faces"))


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ("{", "the request is malformed"),
        ("[]", "the request is malformed"),
        ('{"contract": "triptych.scorer/1"}', "malformed: KeyError('pictures')"),
        (asked("00000.png", contract="triptych.scorer/2"), "speaks triptych.scorer/1, not triptych.scorer/2"),
        (asked("../00000.png"), "'../00000.png' does not lie beside the request"),
        (asked("/etc/passwd"), "'/etc/passwd' does not lie beside the request"),
        (asked("00000.png", prompt=7), "the prompt of 00000.png is no text"),
        (asked("00000.png", prompt="a" * 20_001), "the prompt of 00000.png is no text of at most"),
    ],
)
def test_a_request_that_breaks_the_contract_is_refused(request_: Any, told: str, faces: Path, tmp_path: Path) -> None:
    pictures(1)[0].save(tmp_path / "00000.png")
    assert told in ask("face_quality", tmp_path, request_, "--weights", str(faces))


def test_a_picture_that_cannot_be_read_is_named(faces: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "00000.png", tmp_path / "00001.png"
    pictures(1)[0].save(whole)
    for content in (whole.read_bytes()[:300], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b""):
        broken.write_bytes(content)
        said = ask("face_quality", tmp_path, asked(whole.name, broken.name), "--weights", str(faces))
        assert "the picture 00001.png ('a portrait'): it cannot be read" in said
    pictures(1)[0].save(broken, format="JPEG")
    assert "00001.png" in ask("face_quality", tmp_path, asked(whole.name, broken.name), "--weights", str(faces))
    for side, told in ((10_000, "more than 67108864 pixels"), (70_000, "decompression bomb")):
        header = b"IHDR" + side.to_bytes(4, "big") * 2 + whole.read_bytes()[24:29]
        bomb = whole.read_bytes()[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole.read_bytes()[33:]
        broken.write_bytes(bomb)
        said = ask("face_quality", tmp_path, asked(whole.name, broken.name), "--weights", str(faces))
        assert "00001.png" in said and told in said


# Questions about phrases.


@pytest.mark.parametrize(
    ("caption", "asked_for"),
    [
        (CAPTION, {"a portrait of a woman": True, "with red hair": True, "beard": False, "glasses": False}),
        ("an old man not smiling with no hat", {"an old man": True, "smiling": False, "hat": False}),
        ("a girl with neither glasses nor a hat", {"a girl": True, "glasses": False, "a hat": False}),
        (
            "a man wearing a tie and a hat. He smiles",
            {"a man": True, "wearing a tie": True, "a hat": True, "He smiles": True},
        ),
        ("a north wind, notable people", {"a north wind": True, "notable people": True}),
        ("without any glasses", {"glasses": False}),
        ("...", {"...": True}),
    ],
)
def test_captions_become_questions(caption: str, asked_for: dict[str, bool], witness: Program) -> None:
    phrases = witness.score.split_phrases(caption)
    assert dict(witness.score.what_to_ask(phrase) for phrase in phrases) == asked_for


def test_a_witness_that_leans_to_yes_finds_what_is_to_be_there_and_misses_absences(tmp_path: Path) -> None:
    folder = folder_of("soft_tifa", tmp_path / "soft_tifa")
    save_witness(folder / "weights", leaning=2.0)
    scorer = scorer_in(folder, "alignment", "--part", "glasses=glasses,spectacles", "--part", "hat=hat")
    before = scorer.digest
    found = scorer.score(pictures(2), prompts(CAPTION, "a man, smiling"))
    yes = 1 / (1 + math.exp(-2.0))
    expected = {
        "alignment": [0.5, yes],
        "alignment/whole": [math.sqrt(yes * (1 - yes)), yes],
        "alignment/presences": [yes, yes],
        "alignment/absences": [1 - yes, 1.0],
        "alignment/glasses": [1 - yes, 1.0],
        "alignment/hat": [1.0, 1.0],
    }
    assert found.keys() == expected.keys()
    for measure, values in expected.items():
        assert found[measure] == pytest.approx(values, abs=1e-5), measure
    assert scorer.ran["transformers"] and scorer.ran["program"].startswith("sha256:")
    assert scorer_in(folder, "alignment", *scorer._command[2:]).digest == before, "running it leaves nothing behind"


def test_a_random_witness_looks_at_the_picture_and_reads_the_question(witness: Program, tmp_path: Path) -> None:
    place = save_witness(tmp_path / "weights", tied=True)
    seer = witness.score.Witness(place)
    one, other = pictures(2)
    shown = {(seer.says_yes(picture, text)) for picture in (one, other) for text in ("red?", "blue?")}
    assert len(shown) == 4 and all(0 < value < 1 for value in shown)
    # By the model itself, on numbers made here: 64 x 70 pixels become 4 x 4 patches, four of which are one token.
    read = seer._reader.read(one, "red?")
    tokenizer, model = seer._reader.tokenizer, seer._model
    spoken = "<|im_start|>user\n<|vision_start|>{}<|vision_end|>red?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(spoken.format("<|image_pad|>" * 4), return_tensors="pt")["input_ids"]
    assert torch.equal(read["input_ids"], ids) and read["image_grid_thw"].tolist() == [[1, 4, 4]]
    kinds = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    with torch.no_grad():
        said = model(**{**read, "input_ids": ids}, mm_token_type_ids=kinds).logits[0, -1].softmax(0)
    yes, no = (said[tokenizer(word)["input_ids"][0]] for word in ("Yes", "No"))
    assert seer.says_yes(one, "red?") == pytest.approx(float(yes / (yes + no)), abs=1e-6)
    with pytest.raises(witness.score.Refused, match="stands for the picture"):
        seer.says_yes(one, "a <|image_pad|>?")


def test_a_checkpoint_with_gaps_additions_or_pickles_is_refused(witness: Program, tmp_path: Path) -> None:
    for fault in ("lost", "added"):
        place = save_witness(tmp_path / fault)
        name = change(place / "model.safetensors", **{fault: "mlp.down_proj" if fault == "lost" else "a.back.door"})
        with pytest.raises(witness.score.Refused, match=re.escape(name)):
            witness.score.Witness(place)
    place = save_witness(tmp_path / "pickle")
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        witness.score.Witness(place)


def test_what_does_not_load_is_told_through_the_contract(tmp_path: Path) -> None:
    folder = folder_of("soft_tifa", tmp_path / "soft_tifa")
    save_witness(folder / "weights")
    name = change(folder / "weights" / "model.safetensors", lost="q_proj")
    with pytest.raises(EvaluationError, match=rf"status 1: (?s:.*)does not load: (?s:.*)lacks {re.escape(name)}"):
        scorer_in(folder, "alignment").score(pictures(1), prompts("a portrait"))


# Preference.


def test_preference_is_the_mean_that_the_head_gives(tmp_path: Path) -> None:
    folder = folder_of("hpsv3", tmp_path / "hpsv3")
    save_preference(folder / "weights", liking=3.25)
    found = scorer_in(folder, "aesthetics").score(pictures(2), prompts(CAPTION, "a man"))
    assert found["aesthetics"].tolist() == [3.25, 3.25]


def test_preference_reads_what_stands_before_the_reward(preference: Program, tmp_path: Path) -> None:
    """By a plain Qwen2-VL with the published file's tensors, on numbers made here."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    place = save_preference(tmp_path / "weights")
    liking = preference.score.Preference(place, torch.float32)
    one, other = pictures(2)
    liked = {liking.likes(picture, caption) for picture in (one, other) for caption in ("a man", "a cat")}
    assert len(liked) == 4

    tensors = load_file(place / "HPSv3.safetensors")
    config = Qwen2VLConfig.from_pretrained(place)
    config.text_config.vocab_size += 1
    plain = Qwen2VLForConditionalGeneration(config).eval()
    inner = {name.replace("visual.", "model.visual.", 1): value for name, value in tensors.items()}
    plain.load_state_dict(
        {
            re.sub(r"^model\.(?!visual)", "model.language_model.", name): value
            for name, value in inner.items()
            if not name.startswith("rm_head")
        }
    )
    tokenizer = liking._reader.tokenizer
    assert tokenizer("<|Reward|>")["input_ids"] == [len(tokenizer) - 1]
    text = INSTRUCTION.replace("{text_prompt}", "a man")
    # 64 x 70 pixels become 16 * 28 x 17 * 28, about 256 * 28 * 28.
    seen = f"<|vision_start|>{'<|image_pad|>' * 16 * 17}<|vision_end|>"
    spoken = f"<|im_start|>user\n{seen}{text}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(spoken, return_tensors="pt")["input_ids"]
    read = liking._reader.read(one, text)
    assert read["image_grid_thw"].tolist() == [[1, 34, 32]] and torch.equal(read["input_ids"], ids)
    read = {name: read[name] for name in ("pixel_values", "image_grid_thw")}

    def by_plain(**positions: torch.Tensor) -> float:
        kinds = (ids == config.image_token_id).int()
        with torch.no_grad():
            known = plain.model(input_ids=ids, mm_token_type_ids=kinds, **read, **positions).last_hidden_state
        value = known[0, ids[0].tolist().index(len(tokenizer) - 1)]
        for layer in (0, 3, 5):
            value = tensors[f"rm_head.{layer}.weight"] @ value + tensors[f"rm_head.{layer}.bias"]
            value = value.relu() if layer < 5 else value
        return float(value[0])

    in_a_row = torch.arange(ids.shape[1]).expand(3, 1, -1)
    assert liking.likes(one, "a man") == pytest.approx(by_plain(position_ids=in_a_row), abs=1e-5)
    assert abs(by_plain() - by_plain(position_ids=in_a_row)) > 1e-4, "positions make a difference here"


def test_a_preference_with_gaps_additions_or_another_instruction_is_refused(
    preference: Program, tmp_path: Path
) -> None:
    refused = preference.score.Refused
    for number, (fault, tensor) in enumerate(
        [("lost", "rm_head.3"), ("lost", "visual.blocks"), ("added", "rm_head.7.bias")]
    ):
        place = save_preference(tmp_path / str(number))
        name = change(place / "HPSv3.safetensors", **{fault: tensor})
        with pytest.raises(refused, match=re.escape(name.removeprefix("visual."))):
            preference.score.Preference(place, torch.float32)
    place = save_preference(tmp_path / "words")
    change(place / "HPSv3.safetensors", lost="embed_tokens")
    with pytest.raises(refused, match="knows 0 tokens"):
        preference.score.Preference(place, torch.float32)
    place = save_preference(tmp_path / "pickle")
    whole = (place / "HPSv3.safetensors").rename(place / "whole")
    torch.save(load_file(whole), place / "HPSv3.safetensors")
    with pytest.raises(preference.score.UNREADABLE, match=r"(?i)header|safetensor"):
        preference.score.Preference(place, torch.float32)
    place = save_preference(tmp_path / "instruction")
    (place / "instruction.txt").write_text("How nice? <|Reward|>")
    with pytest.raises(refused, match=r"instruction\.txt needs \{text_prompt\}"):
        preference.score.Preference(place, torch.float32)
    liking = preference.score.Preference(save_preference(tmp_path / "whole"), torch.float32)
    with pytest.raises(refused, match="its caption holds"):
        liking.likes(pictures(1)[0], "a <|Reward|> man")


# Faces.


def face(scale: int = 1, eye: Sequence[int] = (0, 255, 255), bright: int = 255) -> Image.Image:
    """A bright square on black, one of 32 pixels of which the finder takes for a face; its right eye in a colour."""
    shown = np.zeros((320, 256, 3), dtype=np.uint8)
    shown[52:108, 52:108] = bright
    shown[69:78, 66:75] = eye
    return Image.fromarray(shown.repeat(scale, axis=0).repeat(scale, axis=1))


def test_the_face_is_found_turned_upright_and_judged(faces: Path, tmp_path: Path) -> None:
    folder = folder_of("face_quality", tmp_path / "face_quality")
    shutil.copytree(faces, folder / "weights")
    shown = [face(), face(eye=(255, 255, 0)), face(scale=4), face(scale=4, eye=(255, 0, 0)), face(bright=90)]
    scorer = scorer_in(folder, "face_quality")
    found = scorer.score(shown, prompts(*["a man"] * len(shown)))["face_quality"]
    assert found == pytest.approx([-1, 1, -1, 1, 0], abs=0.02)
    assert found[4] == 0.0, "no face"
    assert scorer.ran["opencv-python-headless"]


def test_a_network_that_is_missing_or_broken_is_told(faces: Path, tmp_path: Path) -> None:
    pictures(1)[0].save(tmp_path / "00000.png")
    place = Path(shutil.copytree(faces, tmp_path / "weights"))
    (judge,) = place.glob("ediffiqa*")
    judge.write_bytes(b"no network")
    assert "do not load" in ask("face_quality", tmp_path, asked("00000.png"), "--weights", str(place))
    judge.unlink()
    told = ask("face_quality", tmp_path, asked("00000.png"), "--weights", str(place))
    assert "there is no ediffiqa_tiny_jun2024.onnx" in told


def test_faces_that_dissolve_reject_a_candidate_whatever_it_gains() -> None:
    shown = shown_settings("face_quality")["gate"]
    settings = RULES.model_copy(
        update={
            "constraints": {name: Constraint.model_validate(rule) for name, rule in shown["constraints"].items()},
            "ranges": {**RULES.ranges, **shown["ranges"]},
        }
    )
    gained = scores(alignment=0.1)

    def decision(lost: float) -> str:
        rows = [
            (prompt, 7, model, "face_quality", 0.6 - (lost if model == "candidate" else 0.0))
            for model in gained.models
            for prompt in gained.prompts
        ]
        table = pd.concat([gained.table, pd.DataFrame(rows, columns=list(COLUMNS))])
        return decide(replace(gained, table=table), settings).decision

    assert (decision(0.0), decision(0.3)) == ("promote", "reject")
