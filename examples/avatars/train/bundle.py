"""Puts the trained parts together: a Stable Diffusion 3 pipeline that plain diffusers loads, and its neighbours."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers import StableDiffusion3Pipeline as Pipeline
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

SHIFT = 1.0
"""The scheduler's timestep shift; 1 leaves the noise levels evenly spaced."""
SUMS = "SHA256SUMS"


def pipeline(work: Path) -> Pipeline:
    """The parts in `work` as a pipeline, in float32; T5 is absent."""
    text = work / "text"
    return Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(work / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(text / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(text / "tokenizer"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(text / "text_encoder_2"),
        tokenizer_2=CLIPTokenizer.from_pretrained(text / "tokenizer_2"),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _forget_origin(config: Path) -> None:
    """Takes the folder that a part was trained in out of its configuration: it means nothing anywhere else."""
    content = json.loads(config.read_text("utf-8"))
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def write_sums(folder: Path) -> None:
    """Writes `SHA256SUMS` of everything else in `folder`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SUMS)
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder)}\n" for file in files]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def assemble(work: Path, out: Path) -> None:
    """Writes `out`: base (transformer and VAE in float16), teacher, scorers, SHA256SUMS; swaps it in whole."""
    fresh = out.with_name(f".{out.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    whole = pipeline(work)
    # Plain transformers keeps a checkpoint's precision where diffusers reads float32: the small encoders stay so.
    whole.transformer.to(torch.float16)
    whole.vae.to(torch.float16)
    whole.save_pretrained(fresh / "base")
    for part in ("transformer", "vae"):
        _forget_origin(fresh / "base" / part / "config.json")
    for tokenizer in ("tokenizer", "tokenizer_2"):
        shutil.copytree(work / "text" / tokenizer, fresh / "base" / tokenizer, dirs_exist_ok=True)
    for neighbour in ("teacher", "scorers"):
        if (work / neighbour).exists():
            shutil.copytree(work / neighbour, fresh / neighbour)
    write_sums(fresh)
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")
