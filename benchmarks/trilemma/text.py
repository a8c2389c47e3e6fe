"""The shipped text encoders, two small CLIPs, from token ids: what the transformer reads of a caption."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.trilemma.worlds import MODELS

LAYERS, HEADS, WIDTH = 4, 4, 64
END = 1


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products of a GPU in fp32, not TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class TextTower:
    """Token ids (N, 28) to embeddings (N, 29, 128), a zero token last, and pooled embeddings (N, 128).

    As diffusers' SD3 pipeline makes them: hidden states before the last layer, projected states at the end token.
    `tests/trilemma/test_trilemma.py` compares.
    """

    def __init__(self, device: torch.device) -> None:
        from safetensors.torch import load_file

        paths = [MODELS / "base" / name / "model.safetensors" for name in ("text_encoder", "text_encoder_2")]
        self.towers = [{n: v.float().to(device) for n, v in load_file(path).items()} for path in paths]
        self.device = device

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        ids = ids.long().to(self.device)
        with full_precision():
            parts = [self._tower(tower, some) for some in ids.split(500) for tower in self.towers]
        hidden = [torch.cat([a, b], -1) for (a, _), (b, _) in zip(parts[::2], parts[1::2], strict=True)]
        pooled = [torch.cat([a, b], -1) for (_, a), (_, b) in zip(parts[::2], parts[1::2], strict=True)]
        return functional.pad(torch.cat(hidden), (0, 0, 0, 1)), torch.cat(pooled)

    def _tower(self, w: dict[str, Tensor], ids: Tensor) -> tuple[Tensor, Tensor]:
        x = w["text_model.embeddings.token_embedding.weight"][ids]
        x = x + w["text_model.embeddings.position_embedding.weight"]
        before = x
        for number in range(LAYERS):
            before, x = x, self._layer(w, f"text_model.encoder.layers.{number}", x)
        final = functional.layer_norm(
            x, (WIDTH,), w["text_model.final_layer_norm.weight"], w["text_model.final_layer_norm.bias"]
        )
        ends = (ids == END).int().argmax(1)
        return before, final[torch.arange(len(ids), device=ids.device), ends] @ w["text_projection.weight"].T

    def _layer(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        def linear(part: str, y: Tensor) -> Tensor:
            return functional.linear(y, w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"])

        def norm(part: str, y: Tensor) -> Tensor:
            return functional.layer_norm(y, (WIDTH,), w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"])

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        y = norm("layer_norm1", x)
        query, key, value = (heads(linear(f"self_attn.{part}_proj", y)) for part in "qkv")
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + linear("self_attn.out_proj", seen.transpose(1, 2).flatten(2))
        y = linear("mlp.fc1", norm("layer_norm2", x))
        return x + linear("mlp.fc2", y * torch.sigmoid(1.702 * y))
