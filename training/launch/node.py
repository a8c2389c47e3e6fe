"""What each node of a training job on a cluster runs: ``python -m training.launch.node --place URI``.

The place holds ``request.json``. Each node finds its rank in the variables that the cluster's trainer gives it and
starts its share of the processes, as `training.launch.launch` does on one machine. The first node brings back:

    candidate/  curves.jsonl                      what training made
    curves-samples/  marks/                       pictures, weights to choose among, where the settings ask for them
    training.json                                 the record comes last: where it is, everything is
    checkpoints/                                  on a mounted volume: a job that was cut off is taken up again
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lineage.digests import code_digest, digest_path
from lineage.frozen import Frozen
from lineage.policy import differences
from training.encode.info import features_digest
from training.errors import TrainingError
from training.launch.launch import RECORD, Nodes, fine_tune, join
from training.launch.transfer import Place
from training.settings import TrainingSettings
from training.train.job import CODE, MARKS, marks_folder, pictures_beside

REQUEST, CANDIDATE, CURVES, CHECKPOINTS = "request.json", "candidate", "curves.jsonl", "checkpoints"
PICTURES = pictures_beside(Path(CURVES)).name


class TrainingRequest(Frozen):
    """``request.json``: what to train, and what it has to be trained from."""

    settings: TrainingSettings
    features: str
    """URI of the features folder."""
    digests: dict[str, str]
    """`input_digests` of the step that asks; a node that has others trains nothing."""


def input_digests(settings: TrainingSettings, features: Path) -> dict[str, str]:
    """What training reads besides its settings, by digest."""
    return {
        "features": features_digest(features),
        "base model": digest_path(settings.base_model),
        "training code": code_digest(*CODE),
    }


def nodes_of(environment: Mapping[str, str]) -> Nodes:
    """The machines of the job and this one's rank, as Kubeflow's trainer tells each node of a torch runtime.

    Raises:
        TrainingError: a variable is missing or is not a number.
    """
    try:
        numbers = [int(environment[f"PET_{name}"]) for name in ("NNODES", "NODE_RANK", "MASTER_PORT")]
        environment["PET_MASTER_ADDR"]
    except (KeyError, ValueError) as error:
        raise TrainingError(
            f"this is no node of a training job: {error}; PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and "
            "PET_MASTER_PORT come from a training runtime whose mlPolicy is torch"
        ) from error
    return Nodes(*numbers[:2])


def run_node(place: Place, nodes: Nodes) -> None:
    """Run this node's part of the job at ``place``.

    Raises:
        TrainingError: there is no request, this node has other inputs than it names, or training failed.
    """
    text = place.read(REQUEST)
    if text is None:
        raise TrainingError(f"there is no {REQUEST} at {place.uri}; the step that submits the job writes it")
    request = TrainingRequest.model_validate_json(text)
    settings = request.settings
    with tempfile.TemporaryDirectory(prefix="triptych-node-") as scratch:
        work = Path(scratch)
        source = Place(request.features)
        features = source.path or work / "features"
        if source.path is None:
            source.download(features)
        if other := list(differences(request.digests, input_digests(settings, features))):
            raise TrainingError(
                f"this node has other inputs than were asked for: {'; '.join(other)}; give the training job the image "
                "of the step that submits it, and the same base model at the same place"
            )
        shared = place.path / CHECKPOINTS if place.path else None
        if nodes.rank:
            join(settings, features, work, nodes, shared)
            return
        fine_tune(settings, features, work / CANDIDATE, work / CURVES, checkpoints=shared, nodes=nodes)
        place.remove(RECORD, CANDIDATE, CURVES, PICTURES, MARKS)
        (place / CANDIDATE).upload(work / CANDIDATE)
        (place / PICTURES).upload(work / PICTURES)
        (place / MARKS).upload(marks_folder(shared, work / CANDIDATE))
        place.write(CURVES, (work / CURVES).read_text("utf-8"))
        place.write(RECORD, (work / RECORD).read_text("utf-8"))


def main() -> None:
    """Run one node."""
    parser = argparse.ArgumentParser(description="one node of a training job; submitted by the fine-tune step")
    parser.add_argument("--place", required=True, help="URI of the job's folder, with request.json")
    try:
        run_node(Place(parser.parse_args().place), nodes_of(os.environ))
    except TrainingError as error:
        sys.exit(f"training failed: {error}")


if __name__ == "__main__":
    main()
