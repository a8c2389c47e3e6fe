"""A scorer that runs as a process of its own: for dependencies that do not fit into this environment.

The command runs in the folder ``weights``, which holds its program, its weights and its lock, with two arguments: the
paths of a request that it reads and of a response that it writes, both JSON. `CONTRACT` names the version.

    request:  {"contract": CONTRACT, "scorer": NAME, "pictures": [{"image": "00000.png", "prompt": TEXT,
               "attributes": {...}}, ...]}
    response: {"contract": CONTRACT, "scores": {MEASURE: [one number a picture, ...], ...}, "ran": {...}}

Images are named relative to the request's folder. ``{folder}`` in the command stands for that folder, for those who
have to mount it into a container. ``ran`` is what the process says about itself (versions, digests); it is recorded.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, FiniteFloat, ValidationError

from components.evaluate.evaluation_set import EvaluationError, Prompt
from lineage.digests import digest_file, digest_json, digest_path
from lineage.frozen import Frozen

CONTRACT: Literal["triptych.scorer/1"] = "triptych.scorer/1"


class Response(Frozen):
    """What it has to answer."""

    contract: Literal["triptych.scorer/1"]
    scores: dict[str, list[FiniteFloat]] = Field(min_length=1)
    ran: dict[str, str] = Field(default_factory=dict)


class ProcessScorer:
    """Scores pictures by a command.

    Args:
        path: the folder the command runs in.
        command: the program and its arguments; the two paths are added.
        timeout: seconds that it may take for all pictures.
    """

    backbone = "a process of its own"

    def __init__(
        self,
        path: str,
        name: str,
        axis: str,
        command: Sequence[str],
        higher_is_better: bool = True,
        timeout: float = 3600,
    ) -> None:
        self.name, self.axis, self.higher_is_better = name, axis, higher_is_better
        self._folder, self._command, self._timeout = Path(path), list(command), timeout
        program = shutil.which(command[0])
        if program is None:
            raise OSError(f"the command {command[0]!r} is not there")
        self.digest = digest_json([self._command, digest_file(Path(program)), digest_path(path)])
        self.ran: dict[str, str] = {}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> dict[str, NDArray[np.float64]]:
        """Measure -> (N,).

        Raises:
            EvaluationError: the process failed, took too long, or answered something else than the contract says.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            pictures = []
            for place, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
                image.save(folder / f"{place:05d}.png")
                pictures.append({"image": f"{place:05d}.png", "prompt": prompt.text, "attributes": prompt.attributes})
            asked = {"contract": CONTRACT, "scorer": self.name, "pictures": pictures}
            (folder / "request.json").write_text(json.dumps(asked))
            self._run(folder)
            return self._read(folder / "response.json", len(pictures))

    def _run(self, folder: Path) -> None:
        command = [part.replace("{folder}", str(folder)) for part in self._command]
        process = subprocess.Popen(
            [*command, str(folder / "request.json"), str(folder / "response.json")],
            cwd=self._folder,
            # Compiled files beside the program would change the folder's digest.
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=self._timeout)
        except subprocess.TimeoutExpired as error:
            raise EvaluationError(f"scorer {self.name} took longer than {self._timeout:g} s and was stopped") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            raise EvaluationError(f"scorer {self.name} ended with status {process.returncode}: {said.strip()[-500:]}")

    def _read(self, path: Path, count: int) -> dict[str, NDArray[np.float64]]:
        try:
            response = Response.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise EvaluationError(f"scorer {self.name} did not answer as {CONTRACT} says: {error}") from error
        for measure, values in response.scores.items():
            if measure != self.axis and not measure.startswith(f"{self.axis}/"):
                raise EvaluationError(f"scorer {self.name} judges {self.axis}, but answered {measure!r}")
            if len(values) != count:
                raise EvaluationError(f"scorer {self.name} gave {len(values)} scores for {count} pictures")
        self.ran = response.ran
        return {measure: np.array(values, dtype=np.float64) for measure, values in response.scores.items()}
