"""The image of this checkout: the same code, nothing of the builder's, ready for any user."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from infra.images import build
from infra.images.build import ContainerError, build_image
from lineage.digests import code_digest

ROOMS = ("lineage", "training", "serving", "components", "pipelines", "infra", "examples")
STRANGER = "12345:12345"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.png", "*.safetensors")

needs_engine = [pytest.mark.containers, pytest.mark.timeout(900)]


def printed(client: docker.DockerClient, image: str, program: str, user: str | None = None) -> str:
    """What a Python program prints in a container of the image."""
    output = client.containers.run(image, ["python3", "-c", program], user=user, network_mode="none", remove=True)
    return output.decode().strip()


class TestImage:
    pytestmark = needs_engine

    def test_its_code_is_that_of_the_checkout(self, client: docker.DockerClient, image: str) -> None:
        program = f"from lineage.digests import code_digest; print(code_digest(*{ROOMS}))"
        assert printed(client, image, program) == code_digest(*ROOMS)

    def test_it_is_not_roots_and_serves_any_user(self, client: docker.DockerClient, image: str) -> None:
        program = "import os, torch, kfp, mlflow; print(os.getuid())"
        assert printed(client, image, program) == "65532"
        assert printed(client, image, program, user=STRANGER) == STRANGER.split(":")[0]

    def test_nothing_of_the_builders_pip_is_in_it(self, client: docker.DockerClient, image: str) -> None:
        """Where packages came from, and with which credentials, is the builder's affair."""
        listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
        values = [line.partition("=")[2].strip("'\" ") for line in listed.stdout.splitlines()]
        written = json.dumps([client.images.get(image).attrs, client.images.get(image).history()])
        assert [value for value in values if len(value) > 8 and value in written] == []
        program = "from pathlib import Path; print(Path('/etc/pip.conf').exists(), *Path('/tmp/wheels').glob('*'))"
        assert printed(client, image, program) == "False"

    def test_the_image_for_data_has_no_torch(self, client: docker.DockerClient, image: str) -> None:
        small = build_image("triptych-data")
        program = (
            "import importlib.util, components.register.register, components.gate.gate, infra.governed.app;"
            "print(importlib.util.find_spec('torch'))"
        )
        assert printed(client, small, program) == "None"
        sizes = {name: client.images.get(one).attrs["Size"] for name, one in (("data", small), ("torch", image))}
        print({name: f"{size / 1e6:.0f} MB" for name, size in sizes.items()})
        assert sizes["data"] < sizes["torch"]

    def test_it_follows_the_checkout(self, image: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Equal checkouts have one image, and another line of code makes another one."""
        names = ["LICENSE", "README.md", "constraints.txt", "pyproject.toml", "build", *ROOMS]
        for name in names:
            place, target = build.CHECKOUT / name, tmp_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(place, target, symlinks=True, ignore=LEFT_OUT) if place.is_dir() else shutil.copy(
                place, target
            )
        monkeypatch.setattr(build, "CHECKOUT", tmp_path)
        assert build_image("triptych-torch") == image
        (tmp_path / "lineage" / "notes.log").write_text("not installed")
        with (tmp_path / "lineage" / "digests.py").open("a") as source:
            source.write("ANOTHER = 1\n")
        assert build_image("triptych-torch") != image


def test_without_a_checkout_no_image_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "CHECKOUT", tmp_path)
    with pytest.raises(ContainerError, match=r"whole checkout of Triptych: .*constraints\.txt"):
        build_image("triptych-torch")
    assert not (tmp_path / "build").exists()
