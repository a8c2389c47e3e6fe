"""The base image: pulled from its registry, or made from Debian's packages where no registry can be reached."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import docker
from docker.errors import DockerException, ImageNotFound

from infra.images.build import BASE_VARIABLE, DOCKERFILE, ContainerError

SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/sbin"))
SUITE = "bookworm"  # its Python is 3.11
PACKAGES = ("ca-certificates", "python3", "python3-venv", "tini")
MADE = f"triptych-base:{SUITE}-2"  # another number for other packages or leftovers
UNNEEDED = ("./dev/*", "./usr/share/doc/*", "./usr/share/man/*", "./var/cache/apt/*", "./var/lib/apt/lists/*")


def cache_folder() -> Path:
    """Where tests keep what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"


def ensure_base() -> str:
    """The reference of a base image that the engine has, pulled or made when it has none.

    Raises:
        ContainerError: neither worked.
    """
    named, client = os.environ.get(BASE_VARIABLE) or named_base(), docker.from_env(timeout=600)
    try:
        for reference in (named, MADE):
            try:
                client.images.get(reference)
                return reference
            except ImageNotFound:
                continue
        try:
            client.images.pull(named)
            return named
        except DockerException as error:
            print(f"{named} cannot be pulled ({error}); making a base image from Debian's packages")
            return make_base()
    finally:
        client.close()


def named_base() -> str:
    """The base image that the Dockerfile names."""
    lines = DOCKERFILE.read_text().splitlines()
    return next(line.removeprefix("ARG BASE=") for line in lines if line.startswith("ARG BASE="))


def make_base() -> str:
    """Make a base image by debootstrap and import it. Needs root.

    Raises:
        ContainerError: debootstrap is not there or failed.
    """
    debootstrap = shutil.which("debootstrap", path=SYSTEM_PATH)
    if debootstrap is None or os.geteuid() != 0:
        raise ContainerError(
            f"the base image {named_base()} cannot be pulled, and making one needs root and Debian's debootstrap: "
            "reach a registry, or apt-get install debootstrap and run as root"
        )
    cache_folder().mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="base-", dir=cache_folder()))
    try:
        _debootstrap(debootstrap, root)
        _import(root)
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(root)], check=True)
    return MADE


def _debootstrap(debootstrap: str, root: Path) -> None:
    command = [debootstrap, "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
    made = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PATH": SYSTEM_PATH}
    )
    if made.returncode != 0:
        last = " | ".join(made.stdout.splitlines()[-3:])
        raise ContainerError(f"debootstrap of {SUITE} failed: {last}; is Debian's package mirror reachable?")


def _import(root: Path) -> None:
    excluded = [f"--exclude={pattern}" for pattern in UNNEEDED]
    pack = ["tar", "--create", "--numeric-owner", *excluded, "--directory", str(root), "."]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as packing:
        loaded = subprocess.run(["docker", "import", "-", MADE], stdin=packing.stdout, capture_output=True, text=True)
    if packing.returncode != 0 or loaded.returncode != 0:
        raise ContainerError(f"the base image cannot be imported from {root}: {loaded.stderr.strip() or 'tar failed'}")
