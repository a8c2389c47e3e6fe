"""The registered model: MLflow loads it, and it draws what the judges saw. Tiny random models of each family."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from components.evaluate.evaluation_set import EvaluationSet, Prompt, SetDescription
from components.evaluate.sampling import draw
from components.evaluate.settings import DrawingSettings
from components.fine_tune.installed import installed
from components.register.model_folder import write_model_folder
from lineage.artifacts import LOADER, WEIGHTS_FOLDER, folder_digest, listing
from lineage.digests import LineageError, digest_path
from tests.training.tiny_families import save_flux, save_qwen_image, save_sd3, save_sd3_with_t5
from training import portrait
from training.errors import TrainingError
from training.families import family_of
from training.families.drawing import Drawer

BUNDLES: dict[str, Callable[[Path], Path]] = {
    "sd3": save_sd3,
    "sd3-t5": save_sd3_with_t5,
    "flux": save_flux,
    "qwen-image": save_qwen_image,
}
SAMPLING: dict[str, Any] = {
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "max_sequence_length": 300,
    "height": 32,
    "width": 32,
}
"""A text long enough to reach the prompt behind the template of Qwen-Image, which is read letter by letter here."""
PROMPTS, SEEDS = ["a portrait, glasses", "ein Porträt, “Bart”"], [7, 8]
MADE = "2026-01-02T02:00:03.500+02:00"


def model_folder(target: Path, weights: Path, created: str = MADE, precision: str = "float32") -> Path:
    """As it lies in an artifact store."""
    write_model_folder(target, "portraits", digest_path(weights), SAMPLING, created, installed(), precision)
    shutil.copytree(weights, target / WEIGHTS_FOLDER)
    return target


def pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).tobytes()


@pytest.fixture(scope="module", params=list(BUNDLES))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUNDLES[request.param](tmp_path_factory.mktemp("bundle") / "weights")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd3(tmp_path_factory.mktemp("one") / "weights")


@pytest.fixture
def registered(weights: Path, tmp_path: Path, migrated: bytes) -> Path:
    """``models:/portraits/1`` in a store without a server; gives the folder in the store."""
    (tmp_path / "mlflow.db").write_bytes(migrated)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client, source = MlflowClient(), model_folder(tmp_path / "store" / "model", weights)
    client.create_registered_model("portraits")
    client.create_model_version("portraits", source.as_uri())
    return source


def test_judged_and_registered_pictures_are_the_same(bundle: Path, tmp_path: Path) -> None:
    """In every family: guided as its own pipeline guides, to the last bit."""
    prompts = tuple(
        Prompt(id=str(seed), text=text, seeds=(seed,), attributes={}) for text, seed in zip(PROMPTS, SEEDS, strict=True)
    )
    described = SetDescription(name="two", version=1, **SAMPLING)
    judged, _ = draw(bundle, EvaluationSet(tmp_path, described, prompts, "sha256:two"), 1, tmp_path, "candidate")
    model = mlflow.pyfunc.load_model(str(model_folder(tmp_path / "model", bundle)))
    drawn = model.predict(pd.DataFrame({"prompt": PROMPTS, "seed": SEEDS}))
    pipeline = family_of(bundle).load_pipeline()
    asked = dict(SAMPLING)
    if "Qwen" in type(pipeline).__name__:
        asked |= {"true_cfg_scale": asked.pop("guidance_scale"), "negative_prompt": " "}
    for prompt, seed, png in zip(PROMPTS, SEEDS, drawn["image"], strict=True):
        with Image.open(judged / f"{seed}-{seed}.png") as seen:
            assert pixels(png) == seen.tobytes()
        alone = pipeline(prompt, generator=torch.Generator().manual_seed(seed), **asked).images[0]
        assert pixels(png) == alone.tobytes()


def test_a_registered_model_draws_in_the_precision_that_it_was_judged_in(weights: Path, tmp_path: Path) -> None:
    prompts = (Prompt(id="7", text=PROMPTS[0], seeds=(7,), attributes={}),)
    asked = EvaluationSet(tmp_path, SetDescription(name="one", version=1, **SAMPLING), prompts, "sha256:one")
    how = DrawingSettings(precision="bfloat16")
    judged, _ = draw(weights, asked, 1, tmp_path, "candidate", how=how)
    rows, drawn = pd.DataFrame({"prompt": PROMPTS[:1], "seed": [7]}), {}
    for precision in ("bfloat16", "float32"):
        model = mlflow.pyfunc.load_model(str(model_folder(tmp_path / precision, weights, precision=precision)))
        drawn[precision] = pixels(model.predict(rows)["image"][0])
    with Image.open(judged / "7-7.png") as seen:
        assert drawn["bfloat16"] == seen.tobytes() != drawn["float32"]


def test_guidance_counts_in_every_family(bundle: Path) -> None:
    drawer = Drawer(bundle)
    (strong,), (weak,) = (drawer.draw(PROMPTS[:1], [7], SAMPLING | {"guidance_scale": g}) for g in (3.0, 1.0))
    assert strong.tobytes() != weak.tobytes()


def test_pictures_drawn_together_are_those_drawn_alone(bundle: Path) -> None:
    """But for rounding: texts of a batch are padded to one length."""
    drawer = Drawer(bundle)
    for together, prompt, seed in zip(drawer.draw(PROMPTS, SEEDS, SAMPLING), PROMPTS, SEEDS, strict=True):
        (alone,) = drawer.draw([prompt], [seed], SAMPLING)
        difference = torch.tensor(list(together.tobytes())) - torch.tensor(list(alone.tobytes()))
        assert difference.abs().max() <= 1


def test_a_bundle_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(TrainingError, match=f"the bundle at {tmp_path} cannot be read"):
        Drawer(tmp_path)


def test_every_picture_says_what_it_is(registered: Path, weights: Path) -> None:
    model = mlflow.pyfunc.load_model("models:/portraits/1")
    rows = pd.DataFrame({"prompt": PROMPTS, "seed": SEEDS})
    drawn = model.predict(rows)
    assert list(drawn["seed"]) == SEEDS
    image = Image.open(io.BytesIO(drawn["image"][1]))
    assert image.size == (32, 32)
    assert image.text["model"] == "portraits"  # type: ignore[attr-defined]
    assert image.text["model-digest"] == digest_path(weights)  # type: ignore[attr-defined]
    assert image.text["prompt"] == PROMPTS[1]  # type: ignore[attr-defined]
    assert image.text["seed"] == "8"  # type: ignore[attr-defined]
    assert json.loads(image.text["sampling"]) == SAMPLING  # type: ignore[attr-defined]
    assert model.predict(rows)["image"][1] == drawn["image"][1], "the same prompt and seed draw the same picture"


def test_sampling_can_be_changed_and_the_seed_left_out(registered: Path) -> None:
    params = {"num_inference_steps": 1, "guidance_scale": 2.5}
    drawn = mlflow.pyfunc.load_model("models:/portraits/1").predict(pd.DataFrame({"prompt": PROMPTS[:1]}), params)
    image = Image.open(io.BytesIO(drawn["image"][0]))
    assert params.items() <= json.loads(image.text["sampling"]).items()  # type: ignore[attr-defined]
    assert int(image.text["seed"]) == drawn["seed"][0]  # type: ignore[attr-defined]


def test_the_folder_holds_no_code_and_no_path_of_this_machine(registered: Path, tmp_path: Path) -> None:
    beside = [p for p in registered.rglob("*") if p.is_file() and registered / WEIGHTS_FOLDER not in p.parents]
    assert {path.name for path in beside} == {"MLmodel", "python_env.yaml", "requirements.txt"}
    assert portrait.__name__ == LOADER
    flavor = mlflow.models.Model.load(registered).flavors["python_function"]
    assert flavor["loader_module"] == "training.portrait" and "code" not in flavor
    text = "".join(path.read_text() for path in beside)
    assert not any(place in text for place in (str(tmp_path), str(Path.home()), sys.prefix))


def test_equal_candidates_have_equal_folders(weights: Path, tmp_path: Path) -> None:
    one, two = (digest_path(model_folder(tmp_path / name, weights)) for name in ("one", "two"))
    assert one == two
    assert digest_path(model_folder(tmp_path / "later", weights, "2026-01-02T03:00:00+00:00")) != one


def test_mlflow_names_what_must_be_installed(registered: Path) -> None:
    needs = Path(mlflow.pyfunc.get_model_dependencies("models:/portraits/1")).read_text().splitlines()
    named = {line.partition("==")[0] for line in needs if not line.startswith("#")}
    assert {"diffusers", "torch", "transformers", "rfc8785"} <= named
    assert not any(line.startswith("triptych") for line in needs), "an index may have a stranger's package"


def test_loading_leaves_the_digest_of_the_folder_as_it_was(registered: Path) -> None:
    before = folder_digest(listing(registered))
    mlflow.pyfunc.load_model("models:/portraits/1")
    assert folder_digest(listing(registered)) == before
    assert digest_path(registered) != before, "MLflow notes the version there"
    (registered / WEIGHTS_FOLDER / "registered_model_meta").write_text("anything")
    assert folder_digest(listing(registered)) != before, "only at the folder's top"


def test_changed_weights_do_not_load(registered: Path) -> None:
    config = registered / WEIGHTS_FOLDER / "vae" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(LineageError, match=r"have digest tree-sha256:.* do not use them"):
        mlflow.pyfunc.load_model("models:/portraits/1")


def test_whoever_knows_the_digest_has_it_checked_whatever_the_folder_says(registered: Path, weights: Path) -> None:
    """A changed ``MLmodel`` may name any digest; the ledger's is given while loading."""
    wanted = digest_path(weights)
    mlflow.pyfunc.load_model("models:/portraits/1", model_config={"digest": wanted})
    config = registered / WEIGHTS_FOLDER / "vae" / "config.json"
    config.write_text(config.read_text() + " ")
    described = registered / "MLmodel"
    described.write_text(described.read_text().replace(wanted, digest_path(registered / WEIGHTS_FOLDER)))
    mlflow.pyfunc.load_model("models:/portraits/1")
    with pytest.raises(LineageError, match=f"not {wanted}: do not use them"):
        mlflow.pyfunc.load_model("models:/portraits/1", model_config={"digest": wanted})
