"""Run the pipeline's steps as processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kfp import local
from kfp.local import config

from lineage.records import RUN_VARIABLE


@contextmanager
def processes(run: str, pipeline_root: Path) -> Iterator[None]:
    """Inside this block a pipeline that is called is the run ``run``, each of its steps a process."""
    # KFP hands the environment on.
    with (
        patch.dict(os.environ, {RUN_VARIABLE: run}),
        initialised(local.SubprocessRunner(use_venv=False), pipeline_root),
    ):
        yield


@contextmanager
def initialised(runner: Any, pipeline_root: Path) -> Iterator[None]:
    """Have KFP use ``runner`` inside this block, and what it used before afterwards."""
    with patch.object(config.LocalExecutionConfig, "instance", None):
        # An empty workspace_root: no workspace, instead of a temporary folder that nobody removes.
        local.init(runner=runner, pipeline_root=str(pipeline_root), workspace_root="", raise_on_error=True)
        yield
