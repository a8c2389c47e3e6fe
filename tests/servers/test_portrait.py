"""A model folder without code of its own, stored and loaded through a governed server."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from components.fine_tune.installed import installed
from components.register.model_folder import write_model_folder
from lineage.artifacts import WEIGHTS_FOLDER, folder_digest, listing
from lineage.digests import LineageError, digest_path
from tests.servers.governed import Server
from tests.training.test_portrait import MADE, SAMPLING
from tests.training.tiny_families import save_sd3


def test_the_model_that_a_server_keeps_loads_and_is_what_was_stored(open_server: Server, tmp_path: Path) -> None:
    weights = save_sd3(tmp_path / "weights")
    write_model_folder(tmp_path / "model", "drawn", digest_path(weights), SAMPLING, MADE, installed())
    shutil.copytree(weights, tmp_path / "model" / WEIGHTS_FOLDER)
    mlflow.set_tracking_uri(open_server.url)
    client = MlflowClient()
    run = client.create_run(client.create_experiment("drawn")).info
    client.log_artifacts(run.run_id, str(tmp_path / "model"), "model")
    client.create_registered_model("drawn")
    client.create_model_version("drawn", f"{run.artifact_uri}/model", run.run_id)
    fetched = Path(mlflow.artifacts.download_artifacts("models:/drawn/1", dst_path=str(tmp_path / "fetched")))
    assert folder_digest(listing(fetched)) == folder_digest(listing(tmp_path / "model"))
    model = mlflow.pyfunc.load_model("models:/drawn/1")
    (png,) = model.predict(pd.DataFrame({"prompt": ["a portrait"], "seed": [7]}))["image"]
    assert png.startswith(b"\x89PNG")
    with pytest.raises(LineageError, match="not tree-sha256:0: do not use them"):
        mlflow.pyfunc.load_model("models:/drawn/1", model_config={"digest": "tree-sha256:0"})
