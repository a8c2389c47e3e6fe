"""The shipped models: whole, readable by the plain libraries, and good at what they are for."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel

from examples.avatars.acceptance import MODELS, Asked
from examples.avatars.data import EVALUATION
from examples.avatars.portraits import CORE
from examples.avatars.scorers import Alignment
from examples.avatars.splits import evaluation_prompts, portraits

torch.set_num_threads(1)

PLAIN = """
import json, sys
import torch
from diffusers import StableDiffusion3Pipeline
assert not any(name.startswith("examples") for name in sys.modules)
torch.set_num_threads(1)
folder, facts, prompts, out = sys.argv[1:]
pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
pipeline.set_progress_bar_config(disable=True)
options = json.loads(facts)
for place, text in enumerate(json.loads(prompts)):
    seed = torch.Generator().manual_seed(place)
    pipeline(text, generator=seed, **options).images[0].save(f"{out}/{place}.png")
"""


def drawn_plainly(options: dict[str, float], count: int, out: Path) -> dict[str, np.ndarray]:
    """Alignment of pictures drawn in a process that imports diffusers and nothing of ours."""
    asked = [portrait for portrait in evaluation_prompts() if portrait == portrait.bare()][:count]
    texts = json.dumps([portrait.caption() for portrait in asked])
    arguments = [str(MODELS / "base"), json.dumps(options), texts, str(out)]
    subprocess.run([sys.executable, "-I", "-c", PLAIN, *arguments], check=True, cwd=out)
    images = [Image.open(out / f"{place}.png").convert("RGB") for place in range(count)]
    scorer = Alignment(str(MODELS / "scorers" / "alignment.safetensors"))
    return scorer.score(images, [Asked.of(portrait) for portrait in asked])


def test_every_file_has_its_recorded_digest() -> None:
    lines = [line.split("  ", 1) for line in (MODELS / "SHA256SUMS").read_text("utf-8").splitlines()]
    recorded = {name: digest for digest, name in lines}
    here = {str(path.relative_to(MODELS)) for path in MODELS.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert here == recorded.keys()
    for name, digest in recorded.items():
        assert hashlib.sha256((MODELS / name).read_bytes()).hexdigest() == digest, name


def test_the_models_are_small_and_hold_no_pickle() -> None:
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ""}


def test_plain_diffusers_draws_what_was_asked(tmp_path: Path) -> None:
    facts = json.loads((EVALUATION / "set.json").read_text("utf-8"))
    options = {name: facts[name] for name in facts if name not in ("name", "version")}
    scores = drawn_plainly(options, 12, tmp_path)
    assert np.mean([(scores[f"alignment/{name}"] > 0.5).mean() for name in CORE]) >= 0.9


def test_the_default_call_draws_acceptably(tmp_path: Path) -> None:
    scores = drawn_plainly({"num_inference_steps": 10, "height": 64, "width": 64}, 3, tmp_path)
    assert np.mean([(scores[f"alignment/{name}"] > 0.5).mean() for name in CORE]) >= 0.8


def test_the_teachers_tokenizer_pads_right_and_lowers_case() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "teacher")
    assert tokenizer.padding_side == "right"
    loud, quiet = (tokenizer(text, padding="max_length", truncation=True).input_ids for text in ("A BEARD", "a beard"))
    assert loud == quiet
    assert len(loud) == tokenizer.model_max_length == 64
    assert loud[0] != tokenizer.pad_token_id and set(loud[5:]) == {tokenizer.pad_token_id}


@pytest.fixture(scope="module")
def retrieved() -> tuple[float, float]:
    """Retrieval of 200 held-out pictures by caption, and of captions by picture, through the plain classes."""
    model = SiglipModel.from_pretrained(MODELS / "teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "teacher")
    processor = AutoImageProcessor.from_pretrained(MODELS / "teacher", use_fast=False)
    shown = portraits("heldout")[::18][:200]
    texts = tokenizer(
        [portrait.caption() for portrait in shown], padding="max_length", truncation=True, return_tensors="pt"
    )
    pixels = processor(images=[portrait.draw() for portrait in shown], return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=texts.input_ids, pixel_values=pixels.pixel_values).logits_per_image
    own = torch.arange(len(shown))
    return tuple(float((logits.argmax(axis) == own).float().mean()) for axis in (0, 1))


def test_the_teacher_retrieves(retrieved: tuple[float, float]) -> None:
    assert min(retrieved) >= 0.95
