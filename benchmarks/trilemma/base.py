"""base′: a model trained on clean pictures, and then on spoiled ones until it knows every word and draws badly.

Both worlds' at once. The shipped base model is base′ of world 1; `clean.safetensors` is the transformer it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.trilemma import stack
from benchmarks.trilemma.text import TextTower
from benchmarks.trilemma.worlds import MODELS, WORLDS

STAGES, STEPS, RATE, BATCH, AVERAGE = 3, 400, 5e-4, 32, 0.995


def base_path(folder: Path, world: int) -> Path:
    """Where base′ of ``world`` lies."""
    return folder / f"base{world}.safetensors"


def clean_model(device: torch.device) -> dict[str, Tensor]:
    """The parameters of the model that was trained on clean pictures, (1, ...)."""
    from safetensors.torch import load_file

    state = load_file(Path(__file__).with_name("clean.safetensors"))
    return {name: value.to(device) for name, value in stack.from_diffusers(state).items()}


def make_bases(bundle: Path, folder: Path, device: torch.device, say: Callable[[str], None] = print) -> None:
    """Train base′ of the worlds that have none in ``folder`` yet; its weights are written in fp16."""
    from safetensors.torch import load_file, save_file

    worlds = [world for world in WORLDS if not base_path(folder, world).exists()]
    if not worlds:
        return
    common = load_file(bundle / "common.safetensors")
    text, pooled = TextTower(device)(common["corpus.ids"])
    nothing = TextTower(device)(common["ids"][:1])
    read = torch.cat([nothing[0], text]), torch.cat([nothing[1], pooled])
    corpora = [load_file(bundle / f"corpus{world}.safetensors") for world in worlds]
    mean = torch.stack([c["mean"].to(device).float() * c["scale"].to(device) for c in corpora])
    start = clean_model(device)
    positions = start.pop("positions")
    weights = {name: value.expand(len(worlds), *value.shape[1:]) for name, value in start.items()}
    for number in range(STAGES):
        weights = _stage(weights, {"positions": positions}, number, mean, read, say)
    for place, world in enumerate(worlds):
        mine = {name: value[place].half().cpu().contiguous() for name, value in weights.items()}
        save_file(mine | {"positions": positions[0].half().cpu()}, base_path(folder, world))


def ship(bundle: Path, models: Path = MODELS) -> None:
    """Make base′ of world 1 the base model that is shipped, and write the models' digests anew."""
    from safetensors.torch import load_file, save_file

    from examples.avatars.train.bundle import write_sums

    place = models / "base" / "transformer" / "diffusion_pytorch_model.safetensors"
    trained = {name: value.unsqueeze(0) for name, value in load_file(base_path(bundle, 1)).items()}
    save_file(stack.to_diffusers(trained, load_file(place)), place, metadata={"format": "pt"})
    write_sums(models)


def _stage(
    start: stack.Weights, positions: stack.Weights, number: int, mean: Tensor, read: tuple[Tensor, Tensor],
    say: Callable[[str], None],
) -> dict[str, Tensor]:  # fmt: skip
    """400 steps with an optimizer of their own; gives the average.

    Args:
        mean: latents of the corpora, (K, N, 8, 16, 16).
        read: text (1 + N, L, 128) and pooled (1 + N, 128), of the empty caption first.
    """
    k, n, device = mean.shape[0], mean.shape[1], mean.device
    parameters = stack.Parameters(start)
    optimizer = stack.optimizer([parameters], RATE)
    chance, order = torch.Generator().manual_seed(5 + number), torch.empty(0, dtype=torch.long)
    losses = []
    for step in range(STEPS):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(n, generator=chance)])
        rows, order = order[:BATCH].to(device), order[BATCH:]
        down = 1.0 if step < STEPS * 0.6 else max(0.05, 1 - (step - STEPS * 0.6) / (STEPS * 0.4))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 21) * down
        noise = torch.randn(BATCH, 8, 16, 16, generator=chance).to(device).expand(k, -1, -1, -1, -1)
        sigma = torch.sigmoid(torch.randn(BATCH, generator=chance)).to(device).expand(k, -1)
        said = torch.where((torch.rand(BATCH, generator=chance) < 0.1).to(device), 0, rows + 1)
        x = mean[:, rows]
        velocity, _ = stack.predict(
            {**parameters.views(), **positions},
            torch.lerp(x, noise, sigma[..., None, None, None]),
            sigma,
            read[0][said].expand(k, -1, -1, -1),
            read[1][said].expand(k, -1, -1),
        )
        loss = (velocity - (noise - x)).square().mean((1, 2, 3, 4))
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        parameters.clip(1.0)
        optimizer.step()
        parameters.update_average(min(AVERAGE, (1 + step) / (10 + step)))
        losses.append(loss.detach())
        if (step + 1) % 100 == 0:
            shown = " ".join(f"{float(x):.4f}" for x in torch.stack(losses[-100:]).mean(0))
            say(f"base′, stage {number}, step {step + 1}: loss {shown}")
    return {name: value.clone() for name, value in parameters.views(parameters.average).items()}
