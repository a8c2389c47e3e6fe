"""Build the image of the steps from this checkout.

    tag = ensure_image()         # triptych:<hash of all that goes in>, built when the engine has it not

or, on the command line, ``python -m infra.images.build``. Equal content has an equal tag, so a tag never names
two images, and nothing is ever called ``latest``. The Python packages are fetched and built into wheels outside,
with the caller's own pip and its configuration; the build itself needs no package index.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from docker.errors import ImageNotFound

from infra.docker import ContainerError
from infra.docker.engine import SYSTEM_PATH, cache_folder, connect, engine
from infra.images.base import DOCKERFILE, ensure_base
from lineage.digests import digest_file, digest_json, hex_of

CHECKOUT = Path(__file__).resolve().parents[2]
EXTRAS = ("data", "training", "evaluation", "registry", "avatars", "cluster")
PYTHON = (3, 11)


@dataclass(frozen=True)
class Content:
    """All that decides what is in the image."""

    requirements: tuple[str, ...]
    constraints: str
    """The text of ``constraints.txt``: the exact version of every package."""
    sources: tuple[Path, ...]
    """Our files, relative to the checkout."""

    @property
    def wheels(self) -> str:
        """The hex digest that names this set of wheels."""
        parts = [list(self.requirements), self.constraints, list(PYTHON)]
        return hex_of(digest_json(parts))

    def tag(self) -> str:
        """The image's name and content hash."""
        sources = [[source.as_posix(), digest_file(CHECKOUT / source)] for source in self.sources]
        recipe = digest_file(DOCKERFILE)
        return f"triptych:{hex_of(digest_json([self.wheels, sources, recipe]))[:16]}"


def content() -> Content:
    """Read from the checkout what goes into its image.

    Raises:
        ContainerError: this is no checkout, or it has no ``constraints.txt``.
    """
    for name in ("pyproject.toml", "constraints.txt"):
        if not (CHECKOUT / name).is_file():
            raise ContainerError(f"{CHECKOUT} has no {name}; images are built from a whole checkout of Triptych")
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    project, packaging = settings["project"], settings["tool"]["setuptools"]
    extras = [name for extra in EXTRAS for name in project["optional-dependencies"][extra]]
    rooms = [pattern.removesuffix("*") for pattern in packaging["packages"]["find"]["include"]]
    suffixes = {".py", *(Path(pattern).suffix for pattern in packaging["package-data"]["*"])}
    files = {
        path.relative_to(CHECKOUT) for room in rooms for path in (CHECKOUT / room).rglob("*") if path.suffix in suffixes
    }
    named = {Path("pyproject.toml"), *(Path(name) for name in ("README.md", "LICENSE"))}
    return Content(
        requirements=tuple(sorted({*project["dependencies"], *extras, *settings["build-system"]["requires"]})),
        constraints=(CHECKOUT / "constraints.txt").read_text(),
        sources=tuple(sorted(files | {name for name in named if (CHECKOUT / name).is_file()})),
    )


def ensure_image() -> str:
    """The tag of this checkout's image on the engine that ``DOCKER_HOST`` names, building the image at need.

    Raises:
        ContainerError: it cannot be built.
    """
    tag = content().tag()
    client = connect()
    try:
        client.images.get(tag)
    except ImageNotFound:
        build(tag)
    finally:
        client.close()
    return tag


def build(tag: str) -> str:
    """Build this checkout's image as ``tag``; the image's id.

    Raises:
        ContainerError: the base image, the wheels or the build failed.
    """
    going_in = content()
    command = buildkit_client()
    client = connect(timeout=600)
    try:
        with ThreadPoolExecutor() as pool:
            base = pool.submit(ensure_base, client, command)  # while pip makes the wheels
            with _context(going_in) as context:
                _build(command, context, base.result(), tag)
        return str(client.images.get(tag).id)
    finally:
        client.close()


def buildkit_client() -> str:
    """A docker client on the path that can build with BuildKit: not every one has it.

    Raises:
        ContainerError: there is none.
    """
    for folder in SYSTEM_PATH.split(os.pathsep):
        candidate = shutil.which("docker", path=folder)
        if candidate is None:
            continue
        asked = subprocess.run([candidate, "build", "--help"], env=_environment(), capture_output=True)
        if asked.returncode == 0:
            return candidate
    raise ContainerError(
        "no docker client on the path builds with BuildKit; install one: apt-get install --no-install-recommends "
        "docker.io (Debian 12), or docker-buildx beside it (later ones)"
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "DOCKER_BUILDKIT": "1"}


def _build(command: str, context: Path, base: str, tag: str) -> None:
    # The host's network: a private engine has no other, and without Debian's base image apt needs one.
    arguments = ["build", "--network", "host", "--build-arg", f"BASE={base}", "--tag", tag, str(context)]
    status = _loudly([command, *arguments, "--progress", "plain"])
    if status != 0:
        raise ContainerError(f"building the image {tag} failed (docker's status {status}); see its log above")


def _loudly(command: list[str]) -> int:
    """Run a command, print what it prints (to whatever is ``sys.stdout`` now), and return its exit status."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=_environment()
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="")
    return process.returncode


@contextmanager
def _context(going_in: Content) -> Iterator[Path]:
    """Lay out the build context; always in the same place, because BuildKit then sends what changed only."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "context.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wheels = _wheels(going_in)
        context = cache_folder() / "context"
        shutil.rmtree(context, ignore_errors=True)
        shutil.copytree(wheels, context / "wheels", copy_function=os.link)
        (context / "wheels" / "constraints.txt").unlink()
        for source in going_in.sources:
            target = context / "source" / source
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / source, target)
        pinned = "".join(f"{line}\n" for line in going_in.requirements)
        (context / "requirements.txt").write_text(pinned)
        shutil.copyfile(DOCKERFILE, context / "Dockerfile")
        yield context


def _wheels(going_in: Content) -> Path:
    """A folder with a wheel of every package that goes in, made by the caller's pip where it is not there yet.

    Only the wheels that the constraints allow are in it, so it pins all versions.
    """
    folder = cache_folder() / "wheels" / going_in.wheels[:16]
    if folder.is_dir():
        return folder
    if sys.version_info[:2] != PYTHON:
        running = ".".join(str(part) for part in sys.version_info[:2])
        raise ContainerError(f"the image's Python is 3.11 and so are its wheels; this is {running}: run with 3.11")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
    try:
        (partial / "constraints.txt").write_text(going_in.constraints)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(partial)]
        status = _loudly([*pip, "--constraint", str(partial / "constraints.txt"), *going_in.requirements])
        if status != 0:
            raise ContainerError(f"pip cannot make the image's wheels (status {status}); see its log above")
        partial.rename(folder)
    finally:
        for other in folder.parent.iterdir():  # of earlier constraints, or partial
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def main() -> int:
    """Build the image on the engine that runs, or on a private one, and print its tag and id."""
    try:
        with engine():
            tag = ensure_image()
            client = connect()
            try:
                print(tag, client.images.get(tag).id)
            finally:
                client.close()
    except ContainerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
