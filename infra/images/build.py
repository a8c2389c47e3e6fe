"""Build the images of the steps from this checkout: BuildKit builds what has changed, this lays out the wheels.

    image = build_image("triptych-torch")        # the image's id

or, on the command line, ``python -m infra.images.build [TARGET...]``. The Python packages are fetched and built into
wheels outside, with the caller's own pip and its configuration; the build itself needs no package index.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from infra.checkout import CHECKOUT, checkout_commit
from lineage.files import whole_folder
from lineage.progress import MARK

DOCKERFILE = Path(__file__).with_name("Dockerfile")
WITHOUT_TORCH = ("data", "gate", "registry", "server", "cluster")
TARGETS = {
    "triptych-data": WITHOUT_TORCH,
    "triptych-torch": (*WITHOUT_TORCH, "training", "evaluation", "avatars", "serving"),
}
"""Target of the Dockerfile -> the extras of ``pyproject.toml`` that are in it."""
PYTHON = (3, 11)
BASE_VARIABLE = "TRIPTYCH_BASE_IMAGE"
"""The environment variable that names another base image: a mirror's, or one by digest."""


class ContainerError(Exception):
    """An engine, an image or a container is not as it must be; the message says which and what to do."""


def build_image(target: str) -> str:
    """Build an image of this checkout on the engine that ``DOCKER_HOST`` names; the image's id.

    Raises:
        ContainerError: this is no checkout, or the wheels or the build failed.
    """
    print(f"{MARK}building image {target}; the first time takes minutes", flush=True)
    lay_out_wheels()
    # The host's network: without a slim Python as base image apt is needed, and an engine may have no bridge.
    command = ["docker", "build", "--network", "host", "--progress", "plain", "--file", str(DOCKERFILE)]
    if base := os.environ.get(BASE_VARIABLE):
        command += ["--build-arg", f"BASE={base}"]
    for name, value in {"version": _settings()["project"]["version"], "revision": checkout_commit()}.items():
        command += ["--label", f"org.opencontainers.image.{name}={value}"]
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "id"
        # The tag keeps it from being pruned; whoever runs it names it by its id.
        _run([*command, "--target", target, "--tag", f"{target}:checkout", "--iidfile", str(told), str(CHECKOUT)])
        return told.read_text()


def lay_out_wheels() -> None:
    """Have ``build/image`` hold each target's requirements and a wheel of every package that the constraints allow.

    Raises:
        ContainerError: this is no checkout, pip fails, or this Python is not the images'.
    """
    constraints, settings = _read("constraints.txt"), _settings()
    files, pinned = {}, CHECKOUT / "build" / "image.constraints.txt"  # beside what goes into the build
    for target, extras in TARGETS.items():
        names = {name for extra in extras for name in settings["project"]["optional-dependencies"][extra]}
        names |= {*settings["project"]["dependencies"], *settings["build-system"]["requires"]}
        files[f"{target}.txt"] = "".join(f"{name}\n" for name in sorted(names))
    folder = CHECKOUT / "build" / "image"
    expected = {pinned: constraints, **{folder / name: text for name, text in files.items()}}
    if folder.is_dir() and all(path.is_file() and path.read_text() == text for path, text in expected.items()):
        return
    if sys.version_info[:2] != PYTHON:
        raise ContainerError(
            f"the images' Python is 3.11 and so are their wheels; this is {sys.version}: run with 3.11"
        )
    with whole_folder(folder) as partial:
        for name, text in files.items():
            (partial / name).write_text(text)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(partial / "wheels")]
        needed = [part for target in TARGETS for part in ("-r", str(partial / f"{target}.txt"))]
        _run([*pip, "--constraint", str(CHECKOUT / "constraints.txt"), *needed])
    pinned.write_text(constraints)


def _settings() -> dict[str, Any]:
    return tomllib.loads(_read("pyproject.toml"))


def _read(name: str) -> str:
    try:
        return (CHECKOUT / name).read_text()
    except OSError as error:
        raise ContainerError(f"images are built from a whole checkout of Triptych: {error}") from error


def _run(command: list[str]) -> None:
    """Run a command and print what it prints, to whatever is ``sys.stdout`` now."""
    told = {**os.environ, "DOCKER_BUILDKIT": "1"}
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=told
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
    except OSError as error:
        raise ContainerError(f"{command[0]} cannot be run ({error.strerror}); install Docker with BuildKit") from error
    if process.returncode:
        name = " ".join(command[:4] if command[0] == sys.executable else command[:2])
        raise ContainerError(f"{name} failed with status {process.returncode}; its output is above, or in the log")


def main(targets: list[str]) -> int:
    """Build targets, all of them by default, and print each with its id and its size, unpacked."""
    try:
        for target in targets or TARGETS:
            image = build_image(target)
            size = subprocess.check_output(["docker", "image", "inspect", "--format", "{{.Size}}", image])
            print(f"{target} {image} {int(size) / 1e6:.0f} MB")
    except ContainerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
