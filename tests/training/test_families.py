"""Each family, with a tiny random model of its real classes: trained as its own pipeline draws."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.encode_features.pictures import encode_pictures
from tests.training.conftest import World
from tests.training.tiny_families import save_flux, save_qwen_image, save_sd3, save_sd3_with_t5
from training.encode.encoders import Encoders
from training.encode.features import Features
from training.errors import TrainingError
from training.families import family_of
from training.families.family import Family
from training.settings import ReplaySettings, SampleSettings, SupervisionSettings, TrainingSettings
from training.teach.structure import layers_at
from training.teach.supervision import Phase, Tap, blocks_of
from training.train.export import export_candidate
from training.train.model import Batches, SupervisedTransformer, compile_blocks
from training.train.samples import SampleGrid

BUNDLES: dict[str, Callable[[Path], Path]] = {
    "sd3": save_sd3,
    "sd3-t5": save_sd3_with_t5,
    "flux": save_flux,
    "qwen-image": save_qwen_image,
}
CAPTIONS = ["a portrait, red shirt", "a beard"]
TEXT = 24
"""Most tokens that are read of a caption here."""
GUIDANCE = 1.7


@pytest.fixture(scope="module", params=list(BUNDLES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Made once: nothing in it is changed by a test."""
    return family_of(BUNDLES[request.param](tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def conditioning(family: Family) -> dict[str, Tensor]:
    """Of `CAPTIONS`; SD3 without T5 gets the zero tokens that its pipeline appends."""
    return family.prepare(text_of(family, CAPTIONS), nulls=TEXT)


def text_of(family: Family, captions: list[str]) -> dict[str, Tensor]:
    """Conditioning as it is encoded, of at most `TEXT` tokens."""
    made = Encoders(plain(family)).encode("text", captions)
    made.pop("truncated")
    return made


def plain(family: Family, **changes: Any) -> TrainingSettings:
    fields = {"base_model": family.path, "max_sequence_length": TEXT, "supervision": SupervisionSettings(enabled=False)}
    return TrainingSettings(**(fields | changes))


def noise(height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(3))


def packed(family: Family, latents: Tensor) -> Tensor:
    """As the family's pipeline holds latents."""
    from diffusers import FluxPipeline

    return (
        latents if family.pipeline_class.startswith("Stable") else FluxPipeline._pack_latents(latents, *latents.shape)
    )


def draw(family: Family, pipeline: Any, latents: Tensor, **more: Any) -> Any:
    """What the pipeline makes of `CAPTIONS` from the noise ``latents``."""
    height, width = (side * family.vae_factor for side in latents.shape[-2:])
    sampling = {"guidance_scale": GUIDANCE if "Flux" in family.pipeline_class else 1.0, "max_sequence_length": TEXT}
    more = {"output_type": "np", "num_inference_steps": 2} | more | family.sampling_arguments(sampling, len(CAPTIONS))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompt=CAPTIONS, height=height, width=width, latents=packed(family, latents), **more).images


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_the_velocity_is_what_the_pipeline_asks_for(
    family: Family, conditioning: dict[str, Tensor], size: tuple[int, int]
) -> None:
    pipeline, latents, asked = family.load_pipeline(), noise(*size), []
    pipeline.transformer.register_forward_hook(lambda module, inputs, output: asked.append(output[0]))
    draw(family, pipeline, latents)
    first = pipeline.scheduler.timesteps[:1].expand(2)
    with torch.no_grad():
        ours = family.predict(pipeline.transformer, latents, first, conditioning, GUIDANCE)
    assert torch.allclose(packed(family, ours), asked[0], atol=1e-5) and asked[0].std() > 0.01


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_noise_levels_are_shifted_as_the_pipelines_scheduler_does(family: Family, size: tuple[int, int]) -> None:
    pipeline, levels = family.load_pipeline(), torch.tensor([1.0, 0.6, 0.3])
    draw(family, pipeline, noise(*size), sigmas=levels.tolist(), num_inference_steps=3, output_type="latent")
    shift = family.time_shift(*size)
    assert torch.allclose(shift * levels / (1 + (shift - 1) * levels), pipeline.scheduler.sigmas[:3], atol=1e-6)
    assert shift != 1


def test_a_batch_is_conditioned_as_each_caption_alone(family: Family, conditioning: dict[str, Tensor]) -> None:
    backbone, latents = family.load_transformer().eval(), noise()
    levels = torch.tensor([900.0, 300.0])
    with torch.no_grad():
        together = family.predict(backbone, latents, levels, conditioning, GUIDANCE)
        for row, caption in enumerate(CAPTIONS):
            alone = family.prepare(text_of(family, [caption]), nulls=TEXT)
            one = slice(row, row + 1)
            velocity = family.predict(backbone, latents[one], levels[one], alone, GUIDANCE)
            assert torch.allclose(velocity, together[one], atol=1e-4)


def test_latents_decode_to_what_the_pipeline_would_show(family: Family) -> None:
    pipeline = family.load_pipeline()
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean, std = family.posterior(pipeline.vae, pixels)
    assert mean.shape == std.shape == (2, 4, 8, 12) and (std > 0).all()
    # The pipeline decodes what the scheduler leaves, and a scheduler whose last noise level is 0 leaves all as it was.
    pipeline.scheduler.step = lambda velocity, time, latents, **_: (latents,)
    shown = torch.from_numpy(draw(family, pipeline, mean, num_inference_steps=1)).movedim(-1, 1)
    frames = pixels.unsqueeze(2) if "Qwen" in family.pipeline_class else pixels
    with torch.no_grad():
        posterior = pipeline.vae.encode(frames).latent_dist
        wanted = pipeline.vae.decode(posterior.mean, return_dict=False)[0].reshape(pixels.shape)
    assert torch.allclose(shown, (wanted / 2 + 0.5).clamp(0, 1), atol=1e-4)


def test_the_tap_gives_the_image_stream_of_every_block(family: Family, conditioning: dict[str, Tensor]) -> None:
    backbone = family.load_transformer()
    assert family.grid(8, 12) == (4, 6)
    count = 4 if "Flux" in family.pipeline_class else 3
    for index in range(count):
        tap = Tap(backbone, index)
        tap.arm()
        family.predict(backbone, noise(8, 12), torch.tensor([900.0, 300.0]), conditioning, GUIDANCE)
        stream = tap.take()
        assert stream.shape == (2, 24, 32) and stream.requires_grad
        keys, ran = list(backbone.state_dict()), Mock(return_value=None)
        hooks = [block.register_forward_pre_hook(ran) for block in blocks_of(backbone)]
        tap.arm()
        with tap.last():
            family.predict(backbone, noise(8, 12), torch.tensor([900.0, 300.0]), conditioning, GUIDANCE)
        assert torch.equal(tap.take(), stream) and ran.call_count == index + 1
        assert list(backbone.state_dict()) == keys and len(blocks_of(backbone)) == count
        for hook in hooks:
            hook.remove()
    with pytest.raises(TrainingError, match=f"blocks 0 to {count - 1}"):
        Tap(backbone, count)


def losses(family: Family, backbone: Any, conditioning: dict[str, Tensor], tapped: bool = False) -> Tensor:
    """A velocity loss, and one on the tapped stream beside it."""
    tap = Tap(backbone, 1)
    tap.arm()
    predicted = family.predict(backbone, noise(), torch.tensor([900.0, 300.0]), conditioning, GUIDANCE)
    loss = (predicted.float() - noise().flip(0)).square().mean()
    return loss + tap.take().float().square().mean() if tapped else loss


def test_training_lowers_the_loss_and_the_export_draws(
    family: Family, conditioning: dict[str, Tensor], tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    backbone = family.load_transformer()
    optimizer, course = torch.optim.AdamW(backbone.parameters(), lr=3e-3), []
    for _ in range(5):
        loss = losses(family, backbone, conditioning)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    assert course[-1] < 0.9 * course[0]
    weights = {name: parameter.detach() for name, parameter in backbone.named_parameters()}
    export_candidate(family.path, weights, tmp_path / "candidate")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "candidate", **dict.fromkeys(family.absent))
    assert type(plain).__name__ == family.pipeline_class
    pictures = draw(family, plain, noise())
    trained = family.load_pipeline(transformer=backbone.eval())
    assert pictures.shape == (2, 32, 32, 3) and (pictures == draw(family, trained, noise())).all()
    assert (pictures != draw(family, family.load_pipeline(), noise())).any()


def test_gradient_checkpointing_changes_no_gradient(family: Family, conditioning: dict[str, Tensor]) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = family.load_transformer()
        if checkpointing:
            backbone.enable_gradient_checkpointing()
        losses(family, backbone, conditioning, tapped=True).backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys() and plain
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predicts_nearly_the_same(
    family: Family, conditioning: dict[str, Tensor], dtype: torch.dtype
) -> None:
    backbone = family.load_transformer()
    exact = losses(family, backbone, conditioning)
    half = losses(family, backbone.to(dtype), conditioning)
    half.backward()
    assert half.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.grad is not None)


def test_guidance_is_told_to_a_model_distilled_for_it(tmp_path: Path) -> None:
    distilled, plain = (family_of(save_flux(tmp_path / str(guided), guided)) for guided in (True, False))
    for family, heeds in ((distilled, True), (plain, False)):
        backbone = family.load_transformer().eval()
        text = text_of(family, CAPTIONS)
        with torch.no_grad():
            weak, strong = (family.predict(backbone, noise(), torch.full((2,), 500.0), text, g) for g in (1.0, 9.0))
        assert torch.equal(weak, strong) is not heeds


def _edited(bundle: Path, folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> Family:
    shutil.copytree(bundle, folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return family_of(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("proj_out.bias"), r"lack proj_out\.bias"),
        (lambda w: w.update({"proj_out.bias": torch.zeros(3)}), r"proj_out\.bias of shape \(3,\), not \(16,\)"),
        (lambda w: w.update({"surplus": torch.zeros(3)}), "have surplus, which config.json does not ask for"),
    ],
)
def test_weights_that_are_not_the_models_are_refused_by_name(
    tmp_path: Path, edit: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    family = _edited(save_sd3(tmp_path / "whole"), tmp_path / "broken", edit)
    with pytest.raises(TrainingError, match=message):
        family.load_transformer()


def test_weights_in_two_variants_are_refused(tmp_path: Path) -> None:
    folder = save_sd3(tmp_path) / "transformer"
    shutil.copy(folder / "diffusion_pytorch_model.safetensors", folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(TrainingError, match="more than one file"):
        family_of(tmp_path).load_transformer()


def test_a_bundle_without_a_part_is_refused(tmp_path: Path) -> None:
    shutil.rmtree(save_sd3(tmp_path) / "text_encoder_2")
    with pytest.raises(TrainingError, match="lacks text_encoder_2"):
        family_of(tmp_path)


def test_an_unknown_family_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
    with pytest.raises(TrainingError, match=r"SanaPipeline; .* FluxPipeline, QwenImagePipeline"):
        family_of(tmp_path)


def test_samples_are_of_the_text_and_size_that_are_trained_on(family: Family, tmp_path: Path) -> None:
    seen = SampleSettings(every=1, prompts=(CAPTIONS[0],), steps=2, guidance=1.0)
    settings = plain(family, buckets=((64, 32), (32, 32)), null_tokens=(1, TEXT), samples=seen)
    SampleGrid(settings, torch.device("cpu")).draw({}, tmp_path / "grid.png")
    asked = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": TEXT, "width": 64, "height": 32}
    pipeline, chance = family.load_pipeline(), torch.Generator().manual_seed(seen.seed)
    expected = pipeline([CAPTIONS[0]], generator=[chance], **family.sampling_arguments(asked, 1)).images[0]
    with Image.open(tmp_path / "grid.png") as drawn:
        assert drawn.size == (64, 32) and drawn.tobytes() == expected.tobytes()


def test_a_dropped_caption_is_what_the_pipeline_draws_against(family: Family, world: World, tmp_path: Path) -> None:
    """Classifier-free guidance is drawn against what dropped captions were trained on."""
    settings = plain(family, buckets=((32, 32),), processes=1)
    encode_pictures(settings, world.validated, tmp_path / "features")
    dropped = Features(tmp_path / "features", settings).conditioning([3], [True])
    sampling = {"guidance_scale": 4.0, "max_sequence_length": TEXT}
    negative = family.sampling_arguments(sampling, 1).get("negative_prompt", [""])
    asked = text_of(family, negative)
    assert all(torch.allclose(dropped[name], asked[name], atol=1e-5) for name in asked)


def test_qwens_language_model_reads_few_texts_at_once_and_makes_no_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, read = family_of(save_qwen_image(tmp_path)), []
    encoders = Encoders(plain(family))
    model = encoders.pipeline.text_encoder
    model.register_forward_hook(lambda module, inputs, output: read.append(output.logits.shape))
    encoders.encode("text", [f"a portrait, number {number}" for number in range(20)])
    width = model.config.text_config.hidden_size
    assert [shape[0] for shape in read] == [8, 8, 4] and {shape[-1] for shape in read} == {width}


def test_depths_are_of_all_blocks_and_a_model_keeps_no_stream(family: Family, world: World, tmp_path: Path) -> None:
    settings = world.settings(
        base_model=family.path,
        buckets=((32, 32),),
        processes=1,
        gradient_checkpointing=True,
        max_sequence_length=TEXT,
        replay=ReplaySettings(),
    )
    encode_pictures(settings, world.validated, tmp_path / "features")
    features = Features(tmp_path / "features", settings)
    model = SupervisedTransformer(family, features, settings)
    deepest = [tap for tap in model._structure_taps][-1]
    blocks = blocks_of(model.backbone)
    assert len(blocks) == (4 if "Flux" in family.pipeline_class else 3)
    assert deepest._catch in blocks[layers_at((0.75,), len(blocks))[0]]._forward_hooks.values()
    model(Batches(features, settings, family, rank=0, world=1)[0], Phase(0.5, False, 0.1)).loss.backward()
    assert all(tap._stream is None for tap in [model._tap, *model._structure_taps])


def test_every_block_is_compiled(family: Family) -> None:
    backbone = family.load_transformer()
    compile_blocks(backbone)
    assert all(hasattr(block.forward, "_torchdynamo_orig_callable") for block in blocks_of(backbone))


def test_captions_are_dropped_by_default_only_where_models_are_drawn_with_classifier_free_guidance(
    family: Family, world: World, tmp_path: Path
) -> None:
    settings = plain(family, buckets=((32, 32),), processes=1, steps=200, batch_size=4)
    encode_pictures(settings, world.validated, tmp_path / "features")
    shown: list[bool] = []
    features = Features(tmp_path / "features", settings)
    read = features.conditioning
    features.conditioning = lambda samples, dropped: shown.extend(dropped) or read(samples, dropped)  # type: ignore
    batches = Batches(features, settings, family, rank=0, world=1)
    for step in range(50):
        batches[step]
    assert (sum(shown) > 5) is ("Flux" not in family.pipeline_class)
