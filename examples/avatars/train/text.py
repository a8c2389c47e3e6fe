"""The two text encoders: trained contrastively with pictures, then frozen.

They see the full vocabulary, glasses and beards included, on tuples of their own: an encoder that never saw a
word lets fine-tuning draw a thing but not bind it to the word. Clauses come in any order, and some are left out.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from examples.avatars.portraits import Portrait
from examples.avatars.train.contrast import PictureTower, contrastive_loss, hard_batches, retrieval
from examples.avatars.train.loop import Progress, learning_rate, set_learning_rate
from examples.avatars.train.pictures import classes, pictures, scaled
from examples.avatars.train.vocabulary import CLIP_LENGTH, clip_tokenizer

SEED = 2
WIDTHS = (64, 64)
"""Hidden and projection width of the two encoders."""


def build(width: int, vocabulary: int) -> CLIPTextModelWithProjection:
    """A fresh CLIP text encoder."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def spoken(portrait: Portrait, chance: random.Random) -> str:
    """The caption; one time in three its clauses are shuffled, one time in ten one of them is left out."""
    phrases = portrait.phrases()
    if chance.random() < 1 / 3:
        chance.shuffle(phrases)
    if chance.random() < 0.1:
        phrases.remove(chance.choice([phrase for phrase in phrases if phrase not in ("glasses", "beard")]))
    return ", ".join(["a portrait", *phrases])


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, (B, CLIP_LENGTH) int64, as the pipeline makes them."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return torch.as_tensor(encoded.input_ids)


def train(work: Path, steps: int = 600, batch: int = 96, peak: float = 2e-3) -> None:
    """Trains both encoders and writes `work/text`: tokenizers and encoders under the pipeline's names."""
    torch.manual_seed(SEED)
    x, wanted = pictures("text", work)
    tokenizer = clip_tokenizer(work / "text" / "tokenizer")
    clip_tokenizer(work / "text" / "tokenizer_2")
    encoders = nn.ModuleList(build(width, len(tokenizer)) for width in WIDTHS)
    tower = PictureTower(WIDTHS)
    log_scales = nn.Parameter(torch.full((2,), 2.5))
    parameters = [*encoders.parameters(), *tower.parameters(), log_scales]
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    progress, chance = Progress("text", steps, every=50), random.Random(SEED)
    for step, rows in enumerate(hard_batches(classes(wanted), batch, steps, SEED)):
        set_learning_rate(optimizer, learning_rate(step, steps, peak))
        ids = tokens(tokenizer, [spoken(wanted[row], chance) for row in rows.tolist()])
        losses = [
            contrastive_loss(seen, encoder(ids).text_embeds, log_scale)
            for seen, encoder, log_scale in zip(tower(scaled(x[rows])), encoders, log_scales, strict=True)
        ]
        optimizer.zero_grad()
        sum(losses, torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            log_scales.clamp_(max=4.0)
        progress(step, first=losses[0].item(), second=losses[1].item())
    trained: list[CLIPTextModelWithProjection] = list(encoders)  # type: ignore[arg-type]
    for encoder, name in zip(trained, ("text_encoder", "text_encoder_2"), strict=True):
        encoder.train(False)
        encoder.save_pretrained(work / "text" / name)
    _report(encoders, tower.eval(), tokenizer, work)


@torch.no_grad()
def _report(encoders: nn.ModuleList, tower: PictureTower, tokenizer: CLIPTokenizer, work: Path) -> None:
    x, wanted = pictures("heldout", work, 1000)
    ids = tokens(tokenizer, [portrait.caption() for portrait in wanted])
    for place, (encoder, seen) in enumerate(zip(encoders, tower(scaled(x)), strict=True)):
        share = retrieval(seen, encoder(ids).text_embeds)
        print(f"text encoder {place + 1}: retrieval among 1,000 held-out pictures {share:.3f}", flush=True)
