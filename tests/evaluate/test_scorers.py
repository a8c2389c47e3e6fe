"""Scorers load real checkpoints: the same classes with tiny random weights, compared with the libraries' values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchmetrics.multimodal.clip_score import CLIPScore

from components.evaluate.evaluation_set import EvaluationError, Prompt
from components.evaluate.scorers.pictures import ClipScore, LaionAesthetic, PickScore
from components.evaluate.scorers.sets import Cmmd, FdDinov2, Fid, Kid, Memorisation
from components.evaluate.scoring import FeatureScorer, PictureScorer, load_scorers
from components.evaluate.settings import ScorerSettings
from tests.training.tiny import save_clip_tokenizer
from training.teach.leakage import probe_pictures

PICTURES = probe_pictures(40, 48)
PROMPTS = [
    Prompt(id=str(place), text="a portrait, " + "abcdefgh"[place % 8] * 3, seeds=(0,), attributes={})
    for place in range(40)
]


def save_clip(path: Path, seed: int = 0) -> Path:
    """A random CLIPModel with its tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    size = save_clip_tokenizer(path)
    text = {"vocab_size": size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 40, "bos_token_id": 1, "eos_token_id": 3}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(path)
    save_processor(path, "CLIPImageProcessorPil")
    return path


def save_dinov2(path: Path, seed: int = 0) -> Path:
    """A random Dinov2Model with its image processor."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    Dinov2Model(config).save_pretrained(path)
    save_processor(path, "BitImageProcessorPil")
    return path


def save_processor(path: Path, kind: str) -> None:
    import transformers

    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    getattr(transformers, kind)(**size).save_pretrained(path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dinov2(tmp_path_factory.mktemp("dinov2"))


def test_clip_score_is_that_of_torchmetrics(clip: Path) -> None:
    from transformers import AutoImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    class OfOldSignature(CLIPModel):
        """torchmetrics 1.9 expects tensors, as transformers gave them before version 5."""

        def get_image_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().get_image_features(*args, **kwargs).pooler_output

        def get_text_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().get_text_features(*args, **kwargs).pooler_output

    def both() -> object:
        processor = CLIPProcessor(AutoImageProcessor.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip))
        return OfOldSignature.from_pretrained(clip).eval(), processor

    library = CLIPScore(both)
    tensors = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in PICTURES]
    for tensor, prompt in zip(tensors, PROMPTS, strict=True):
        library.update(tensor, prompt.text)
    scores = ClipScore(str(clip)).score(PICTURES, PROMPTS)["alignment"]
    assert max(0.0, scores.mean()) == pytest.approx(float(library.compute()), abs=1e-3)
    assert scores.shape == (40,) and scores.std() > 0


def test_a_score_does_not_depend_on_company(clip: Path) -> None:
    scorer = ClipScore(str(clip))
    together = scorer.score(PICTURES, PROMPTS)["alignment"]
    assert np.array_equal(together, scorer.score(PICTURES, PROMPTS)["alignment"])
    alone = [scorer.score([PICTURES[place]], [PROMPTS[place]])["alignment"][0] for place in (0, 35)]
    assert alone == pytest.approx(together[[0, 35]].tolist(), abs=1e-4)
    assert scorer.score([], [])["alignment"].shape == (0,)


def test_pick_score_is_cosine_by_its_own_scale(clip: Path) -> None:
    from transformers import CLIPModel

    cosine = ClipScore(str(clip)).score(PICTURES, PROMPTS)["alignment"] / 100
    scale = CLIPModel.from_pretrained(clip).logit_scale.exp().item()
    scores = PickScore(str(clip)).score(PICTURES, PROMPTS)["aesthetics"]
    assert scores == pytest.approx(scale * cosine, rel=1e-5)
    assert (PickScore.name, PickScore.axis) == ("pick-score", "aesthetics")


def test_the_aesthetic_head_is_read_from_safetensors(tmp_path: Path) -> None:
    save_clip(tmp_path / "backbone")
    torch.manual_seed(1)
    head = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)).eval()
    with pytest.raises(EvaluationError, match="convert the published one to safetensors"):
        load_scorers([ScorerSettings(scorer="laion-aesthetic", weights=str(tmp_path))])
    save_file({f"layers.{name}": value for name, value in head.state_dict().items()}, tmp_path / "head.safetensors")
    scorer = LaionAesthetic(str(tmp_path))
    embedded = torch.from_numpy(scorer.features(PICTURES)).float()
    expected = head(embedded / embedded.norm(dim=1, keepdim=True))[:, 0].detach().numpy()
    assert scorer.score(PICTURES, PROMPTS)["aesthetics"] == pytest.approx(expected, rel=1e-4)


def test_set_level_scorers_give_features_of_their_backbones(clip: Path, dinov2: Path) -> None:
    for scorer, width in (
        (Kid(str(dinov2)), 24),
        (Fid(str(dinov2)), 24),
        (FdDinov2(str(dinov2)), 24),
        (Memorisation(str(dinov2)), 24),
        (Cmmd(str(clip)), 12),
    ):
        assert isinstance(scorer, FeatureScorer) and not isinstance(scorer, PictureScorer)
        seen = scorer.features(PICTURES)
        assert seen.shape == (40, width) and np.isfinite(seen).all()
        assert scorer.digest.startswith("tree-sha256:") and scorer.backbone
    assert np.linalg.norm(Cmmd(str(clip)).features(PICTURES), axis=1) == pytest.approx(np.ones(40))
    assert not isinstance(ClipScore(str(clip)), FeatureScorer)


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    save_clip(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EvaluationError, match=r"lacks visual_projection\.weight"):
        load_scorers([ScorerSettings(scorer="cmmd", weights=str(tmp_path))])


def test_weights_that_are_a_pickle_are_refused(clip: Path, tmp_path: Path) -> None:
    save_clip(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(EvaluationError, match="scorer 'cmmd' does not load"):
        load_scorers([ScorerSettings(scorer="cmmd", weights=str(tmp_path))])
