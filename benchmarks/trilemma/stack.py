"""Many small MM-DiTs at once: K models of one shape as one, so that a step costs little more than one model's.

The models of a stack never see each other: parameters have a leading dimension K, a linear layer is one batched matrix
product, losses are summed over K. `tests/trilemma/test_trilemma.py` holds a stack of one to diffusers' own
`SD3Transformer2DModel`. Only the avatars' architecture is built: two-stream blocks, RMS norms on queries and keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]
"""Name to (K, ...)."""

WIDTH, HEADS, HEAD, BLOCKS, CHANNELS, SIDE, PATCH = 128, 4, 32, 6, 8, 16, 2
TOKENS = (SIDE // PATCH) ** 2
TIME = 256
JOINED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("image.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    ("text.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
)
"""Layers of one input that are kept as one matrix."""
SINGLE = (
    ("image.out", "attn.to_out.0"),
    ("text.out", "attn.to_add_out"),
    ("image.up", "ff.net.0.proj"),
    ("image.down", "ff.net.2"),
    ("text.up", "ff_context.net.0.proj"),
    ("text.down", "ff_context.net.2"),
    ("image.modulation", "norm1.linear"),
    ("text.modulation", "norm1_context.linear"),
)
NORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("image.norms", ("attn.norm_q", "attn.norm_k")),
    ("text.norms", ("attn.norm_added_q", "attn.norm_added_k")),
)
OUTER = (
    ("patch", "pos_embed.proj"),
    ("context", "context_embedder"),
    ("time.1", "time_text_embed.timestep_embedder.linear_1"),
    ("time.2", "time_text_embed.timestep_embedder.linear_2"),
    ("pooled.1", "time_text_embed.text_embedder.linear_1"),
    ("pooled.2", "time_text_embed.text_embedder.linear_2"),
    ("end.modulation", "norm_out.linear"),
    ("end", "proj_out"),
)
ADAPTED = ("image.qkv", "text.qkv", "image.out", "text.out")
"""Matrices of a block that LoRA adapts: the joint attention's, as in `training.lora`."""


def from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of an SD3Transformer2DModel, (1, ...) fp32 each, by this file's names, `positions` among them."""
    state = {name: value.float() for name, value in state.items()}
    found: dict[str, Tensor] = {}
    for name, sources in _layers(state):
        found[f"{name}.w"] = torch.cat([state[f"{s}.weight"].flatten(1) for s in sources])
        found[f"{name}.b"] = torch.cat([state[f"{s}.bias"] for s in sources])
    for name, sources in _norms():
        found[name] = torch.stack([state[f"{s}.weight"] for s in sources])
    most = round(state["pos_embed.pos_embed"].shape[1] ** 0.5)
    edge = SIDE // PATCH
    first = (most - edge) // 2
    grid = state["pos_embed.pos_embed"].view(most, most, WIDTH)
    found["positions"] = grid[first : first + edge, first : first + edge].reshape(TOKENS, WIDTH).clone()
    return {name: value.unsqueeze(0).contiguous() for name, value in found.items()}


def to_diffusers(weights: Weights, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an SD3Transformer2DModel that `from_diffusers` makes ``weights``, (1, ...), of.

    ``like``: a state of the same model, whose buffers and kinds of numbers it has.
    """
    found = dict(like)

    def put(name: str, value: Tensor) -> None:
        found[name] = value.reshape(like[name].shape).to(like[name].dtype).contiguous()

    for name, sources in _layers(like):
        rows = [len(like[f"{s}.bias"]) for s in sources]
        for source, w, b in zip(
            sources, weights[f"{name}.w"][0].split(rows), weights[f"{name}.b"][0].split(rows), strict=True
        ):
            put(f"{source}.weight", w)
            put(f"{source}.bias", b)
    for name, sources in _norms():
        for source, w in zip(sources, weights[name][0], strict=True):
            put(f"{source}.weight", w)
    return found


def _layers(state: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each linear layer here, and those of diffusers that it joins."""
    yield from ((name, (source,)) for name, source in OUTER)
    for block in range(BLOCKS):
        mine, theirs = f"{block}.", f"transformer_blocks.{block}."
        yield from ((mine + name, tuple(theirs + s for s in sources)) for name, sources in JOINED)
        yield from ((mine + n, (theirs + s,)) for n, s in SINGLE if f"{theirs}{s}.weight" in state)


def _norms() -> Iterator[tuple[str, tuple[str, ...]]]:
    for block in range(BLOCKS):
        yield from ((f"{block}.{n}", tuple(f"transformer_blocks.{block}.{s}" for s in sources)) for n, sources in NORMS)


def decays(name: str) -> bool:
    """Whether weight decay is for this parameter: matrices, as in the product."""
    return name.endswith(".w") or ".lora" in name


def predict(
    w: Weights, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor, tap: int | None = None
) -> tuple[Tensor, Tensor]:
    """Velocities (K, B, 8, 16, 16), and the image stream after block ``tap``, (K, B, 64, 128); empty without one.

    Both are of the weights' own kind of number.

    Args:
        x: noisy latents (K, B, 8, 16, 16).
        sigma: (K, B) in [0, 1]; 1 is pure noise.
        text: (K, B, L, 128).
        pooled: (K, B, 128).
    """
    (k, b), kind, edge = x.shape[:2], w["patch.w"].dtype, SIDE // PATCH
    x, text, pooled = x.to(kind), text.to(kind), pooled.to(kind)
    patches = x.view(k, b, CHANNELS, edge, PATCH, edge, PATCH).permute(0, 1, 3, 5, 2, 4, 6).reshape(k, b, TOKENS, -1)
    image = linear(w, "patch", patches) + w["positions"]
    words = linear(w, "context", text)
    when = linear(w, "time.2", functional.silu(linear(w, "time.1", sinusoids(sigma * 1000).to(kind))))
    said = linear(w, "pooled.2", functional.silu(linear(w, "pooled.1", pooled)))
    condition = functional.silu(when + said)
    stream = x.new_empty(0)
    for number in range(BLOCKS):
        image, words = _block(w, f"{number}.", image, words, condition, last=number == BLOCKS - 1)
        if number == tap:
            stream = image
    scale, shift = linear(w, "end.modulation", condition).unsqueeze(2).chunk(2, dim=-1)
    out = linear(w, "end", torch.addcmul(shift, _norm(image), 1 + scale))
    velocity = out.view(k, b, edge, edge, PATCH, PATCH, CHANNELS).permute(0, 1, 6, 2, 4, 3, 5)
    return velocity.reshape(k, b, CHANNELS, SIDE, SIDE), stream


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """x (K, ..., in) through the layer ``name`` of each model."""
    weight, bias = w[f"{name}.w"], w[f"{name}.b"]
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    return torch.baddbmm(bias.unsqueeze(1), flat, weight.mT).view(*x.shape[:-1], weight.shape[1])


def sinusoids(timesteps: Tensor) -> Tensor:
    """Of timesteps in [0, 1000]: (..., 256), cosines first."""
    half = TIME // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device, dtype=torch.float32) / half)
    angles = timesteps.float().unsqueeze(-1) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (WIDTH,), eps=1e-6)


def _block(w: Weights, at: str, image: Tensor, words: Tensor, condition: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    shift, scale, gate, shift2, scale2, gate2 = linear(w, f"{at}image.modulation", condition).unsqueeze(2).chunk(6, -1)
    seen = torch.addcmul(shift, _norm(image), 1 + scale)
    modulation = linear(w, f"{at}text.modulation", condition).unsqueeze(2)
    if last:
        text_scale, text_shift = modulation.chunk(2, -1)
    else:
        text_shift, text_scale, text_gate, text_shift2, text_scale2, text_gate2 = modulation.chunk(6, -1)
    read = torch.addcmul(text_shift, _norm(words), 1 + text_scale)
    image_out, text_out = _attention(w, at, seen, read)
    image = torch.addcmul(image, gate, linear(w, f"{at}image.out", image_out))
    image = _feed(w, f"{at}image", image, shift2, scale2, gate2)
    if not last:
        words = torch.addcmul(words, text_gate, linear(w, f"{at}text.out", text_out))
        words = _feed(w, f"{at}text", words, text_shift2, text_scale2, text_gate2)
    return image, words


def _feed(w: Weights, name: str, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    inner = linear(w, f"{name}.up", torch.addcmul(shift, _norm(x), 1 + scale))
    return torch.addcmul(x, gate, linear(w, f"{name}.down", functional.gelu(inner, approximate="tanh")))


def _attention(w: Weights, at: str, image: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    k, b = image.shape[:2]
    pairs, values = [], []
    for kind, x in (("image", image), ("text", words)):
        qkv = linear(w, f"{at}{kind}.qkv", x)
        pair = qkv[..., : 2 * WIDTH].reshape(k, b, -1, 2, HEADS, HEAD)
        norms = w[f"{at}{kind}.norms"].view(-1, 1, 1, 2, 1, HEAD)
        pairs.append(functional.rms_norm(pair, (HEAD,), eps=1e-6) * norms)
        values.append(qkv[..., 2 * WIDTH :].reshape(k, b, -1, HEADS, HEAD))
    pair, value = torch.cat(pairs, 2).flatten(0, 1), torch.cat(values, 2).flatten(0, 1)
    query, key = pair[:, :, 0].transpose(1, 2), pair[:, :, 1].transpose(1, 2)
    out = functional.scaled_dot_product_attention(query, key, value.transpose(1, 2).to(query.dtype))
    out = out.transpose(1, 2).reshape(k, b, -1, WIDTH)
    return out[:, :, :TOKENS], out[:, :, TOKENS:]


class Parameters:
    """The trained parameters of K models in two flat buffers, (K, P) each: matrices, which decay, and the rest.

    One gradient, one optimizer step and one average for all of them; clipping is by model.
    """

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        self.names: list[list[str]] = [[], []]
        for name in start:
            self.names[0 if decays(name) else 1].append(name)
        self.shapes = {name: value.shape[1:] for name, value in start.items()}
        self.sizes = [[math.prod(self.shapes[n]) for n in names] for names in self.names]
        one = next(iter(start.values()))
        none = one.new_zeros(one.shape[0], 0)
        self.flat = [
            torch.cat([none, *(start[n].flatten(1) for n in names)], dim=1).contiguous().requires_grad_()
            for names in self.names
        ]
        self.average = [f.detach().clone() for f in self.flat]

    def views(self, flat: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Name to (K, ...), of the parameters or of ``flat``."""
        found = {}
        for buffer, names, sizes in zip(flat or self.flat, self.names, self.sizes, strict=True):
            if not names:
                continue
            for name, part in zip(names, buffer.split(sizes, dim=1), strict=True):
                found[name] = part.view(part.shape[0], *self.shapes[name])
        return found

    def clip(self, most: float) -> None:
        """Scale each model's gradient to a norm of at most ``most``."""
        squares = sum(f.grad.square().sum(1, keepdim=True) for f in self.flat if f.grad is not None)
        scale = (most / (torch.as_tensor(squares).sqrt() + 1e-6)).clamp(max=1.0)
        for f in self.flat:
            if f.grad is not None:
                f.grad.mul_(scale)

    def update_average(self, decay: float) -> None:
        """Move the averages towards the parameters."""
        for average, now in zip(self.average, self.flat, strict=True):
            average.lerp_(now.detach(), 1 - decay)


def optimizer(parameters: list[Parameters], rate: float, decay: float = 0.01) -> Any:
    """AdamW over flat buffers; matrices decay."""
    groups = [{"params": [p.flat[0] for p in parameters], "weight_decay": decay}]
    groups += [{"params": [p.flat[1] for p in parameters if p.flat[1].numel()], "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, fused=True)


def adapters(base: Weights, k: int, rank: int, seed: int) -> dict[str, Tensor]:
    """LoRA's first weights: A (rank, in) uniform as peft's, B zero; one pair for each joined layer."""
    chance = torch.Generator().manual_seed(seed)
    found = {}
    for block in range(BLOCKS):
        for name in ADAPTED:
            if f"{block}.{name}.w" in base:
                layers = 3 if name.endswith("qkv") else 1
                drawn = torch.rand(layers, rank, WIDTH, generator=chance) * 2 - 1
                found[f"{block}.{name}.lora_a"] = (drawn / math.sqrt(WIDTH)).expand(k, -1, -1, -1).contiguous()
                found[f"{block}.{name}.lora_b"] = torch.zeros(k, layers, WIDTH, rank)
    return {name: value.to(base["patch.w"].device) for name, value in found.items()}


def merged(base: Weights, lora: Weights, scale: float) -> dict[str, Tensor]:
    """The weights of ``base`` with the adapters added: (K, ...) where adapted, (K or 1, ...) elsewhere."""
    found = dict(base)
    for name, a in lora.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            change = lora[f"{layer}.lora_b"] @ a
            found[f"{layer}.w"] = base[f"{layer}.w"] + scale * change.flatten(1, 2)
    return spread(found, next(iter(lora.values())).shape[0])


def spread(weights: Weights, k: int) -> dict[str, Tensor]:
    """Weights of one model as those of ``k``, without copies."""
    return {n: v.expand(k, *v.shape[1:]) if n != "positions" and v.shape[0] != k else v for n, v in weights.items()}
