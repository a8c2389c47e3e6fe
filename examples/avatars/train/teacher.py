"""The training teacher: a tiny SigLIP, on a split of its own and the full vocabulary.

Texts are whole captions and single phrases. Three terms: captions are told apart (the softmax loss learns faster than
SigLIP's sigmoid on so few pictures), phrases are true or not of a picture, which is known exactly (the sigmoid loss,
arXiv 2303.15343), and single patches, passed alone through the attention-pool head, must hold a phrase where it is
true and nowhere else, so that patches speak the language of phrases, each of what it shows; where a phrase is true is
known from drawing the picture again without it. Linear heads that read the attributes off both pooled features speed
all this up; they are not kept.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel

from examples.avatars.portraits import VALUES
from examples.avatars.train.contrast import contrastive_loss, hard_batches, retrieval
from examples.avatars.train.loop import Progress, learning_rate, set_learning_rate
from examples.avatars.train.pictures import classes, pictures, scaled
from examples.avatars.train.regions import region
from examples.avatars.train.vocabulary import TEACHER_LENGTH, teacher_tokenizer

SEED = 4
WIDTH = 96
PHRASES = 20
"""Single phrases in a batch, beside the captions."""


def build(vocabulary: int) -> SiglipModel:
    """A fresh SigLIP: 64 x 64 pictures in an 8 x 8 grid of patches, texts of 64 tokens."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    return SiglipModel(
        SiglipConfig(
            text_config={
                **tower,
                "num_hidden_layers": 2,
                "vocab_size": vocabulary,
                "max_position_embeddings": TEACHER_LENGTH,
                "projection_size": WIDTH,
                "pad_token_id": 0,
                "eos_token_id": 1,
                "bos_token_id": 1,
            },
            vision_config={**tower, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8},
        )
    )


def patches_alone(model: SiglipModel, hidden: torch.Tensor) -> torch.Tensor:
    """Patch states (B, T, d), each passed alone through the attention-pool head: (B, T, d)."""
    alone = model.vision_model.head(hidden.flatten(0, 1).unsqueeze(1))
    return torch.as_tensor(alone).view_as(hidden)


def ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Token ids, (B, 64) int64, padded on the right."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return torch.as_tensor(encoded.input_ids)


class Attributes(nn.Module):
    """Reads every attribute off pooled features (B, d); gives the mean cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(values)) for values in VALUES.values())

    def forward(self, features: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        losses = [F.cross_entropy(head(features), true[:, place]) for place, head in enumerate(self.heads)]
        return torch.stack(losses).mean()


def train(work: Path, steps: int = 1000, batch: int = 48, peak: float = 1e-3, start: Path | None = None) -> None:
    """Trains and writes `work/teacher`: model, tokenizer, image processor; `start` is a folder to go on from."""
    torch.manual_seed(SEED)
    folder = work / "teacher"
    x, wanted = pictures("teacher", work)
    y = classes(wanted)
    tokenizer = teacher_tokenizer(folder)
    model = build(len(tokenizer)) if start is None else SiglipModel.from_pretrained(start)
    read_picture, read_text = Attributes(), Attributes()
    if start is None:
        model.logit_scale.data.fill_(2.7)
        model.logit_bias.data.fill_(-4.0)
    model.train()
    local_bias = nn.Parameter(torch.tensor(-4.0))
    parameters = [*model.parameters(), *read_picture.parameters(), *read_text.parameters(), local_bias]
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    every = sorted({phrase for portrait in wanted for phrase in portrait.phrases()} - {"glasses", "beard"})
    progress, chance = Progress("teacher", steps, every=50), random.Random(SEED)
    for step, rows in enumerate(hard_batches(y, batch, steps, SEED)):
        set_learning_rate(optimizer, learning_rate(step, steps, peak))
        shown = [wanted[row] for row in rows.tolist()]
        phrases = ["glasses", "beard", *chance.sample(every, PHRASES - 2)]
        true = torch.tensor([[phrase in portrait.phrases() for phrase in phrases] for portrait in shown])
        there = torch.stack([torch.stack([region(p, phrase) for phrase in phrases], 1) for p in shown])
        there &= true.unsqueeze(1)
        labels = true * 2.0 - 1

        texts = [portrait.caption() for portrait in shown] + phrases
        said = model.text_model(ids(tokenizer, texts)).pooler_output
        captions, t = said[:batch], F.normalize(said[batch:], dim=-1)
        seen = model.vision_model(scaled(x[rows]))
        v = F.normalize(seen.pooler_output, dim=-1)
        scale = model.logit_scale.exp()
        apart = contrastive_loss(v, captions, model.logit_scale)
        whole = -F.logsigmoid(labels * (scale * v @ t.T + model.logit_bias)).mean()
        patch = scale * F.normalize(patches_alone(model, seen.last_hidden_state), dim=-1) @ t.T + local_bias
        local = -0.5 * (F.logsigmoid(patch)[there].mean() + F.logsigmoid(-patch)[~there].mean())
        read = read_picture(seen.pooler_output, y[rows]) + read_text(captions, y[rows])
        optimizer.zero_grad()
        (apart + 2 * whole + 2 * local + read).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=3.7)
        progress(step, apart=apart.item(), whole=whole.item(), local=local.item(), read=read.item())
    model.eval().save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    SiglipImageProcessor(size={"height": 64, "width": 64}, image_mean=half, image_std=half).save_pretrained(folder)
    _report(model, tokenizer, work)


@torch.no_grad()
def _report(model: SiglipModel, tokenizer: PreTrainedTokenizerFast, work: Path) -> None:
    """Prints retrieval, and how many of the patches that say "glasses" lie on the glasses."""
    x, wanted = pictures("heldout", work, 1000)
    texts = torch.cat(
        [
            model.text_model(ids(tokenizer, [p.caption() for p in wanted[s : s + 250]])).pooler_output
            for s in range(0, 1000, 250)
        ]
    )
    seen = torch.cat([model.vision_model(scaled(x[s : s + 250])).pooler_output for s in range(0, 1000, 250)])
    print(f"teacher: retrieval {retrieval(seen, texts):.3f} and {retrieval(texts, seen):.3f}", flush=True)
    for thing in ("glasses", "beard"):
        wearers = [place for place, portrait in enumerate(wanted) if getattr(portrait, thing)][:100]
        text = F.normalize(model.text_model(ids(tokenizer, [thing])).pooler_output, dim=-1)
        hidden = model.vision_model(scaled(x[wearers])).last_hidden_state
        match = (F.normalize(patches_alone(model, hidden), dim=-1) @ text.T).squeeze(2)
        there = torch.stack([region(wanted[place], thing) for place in wearers])
        best = match.topk(4, dim=1).indices
        share, chance = there.gather(1, best).float().mean(), there.float().mean()
        print(f"teacher: best 4 patches for {thing} lie on it: {share:.2f} (chance {chance:.2f})", flush=True)
