"""The image of this checkout: the same code, nothing of the builder's, ready for any user."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import docker
import pytest

from infra.images import build
from infra.images.build import ContainerError, build_image
from lineage.digests import code_digest
from tests.runs import SECRETS, forms, secrets_in

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
        copy_checkout(tmp_path)
        monkeypatch.setattr(build, "CHECKOUT", tmp_path)
        assert build_image("triptych-torch") == image
        (tmp_path / "lineage" / "notes.log").write_text("not installed")
        with (tmp_path / "lineage" / "digests.py").open("a") as source:
            source.write("ANOTHER = 1\n")
        assert build_image("triptych-torch") != image

    def test_no_secret_of_the_builders_is_in_its_layers(
        self, client: docker.DockerClient, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Neither of the environment, nor of files that lie in the checkout and are not the product's."""
        checkout, layers = tmp_path / "checkout", tmp_path / "layers"
        copy_checkout(checkout)
        with (checkout / "lineage" / "digests.py").open("a") as source:
            source.write("BUILT_WITH_SECRETS_AROUND = 1\n")
        for name, value in SECRETS.items():
            monkeypatch.setenv(name, value)
            for place in (".env", ".triptych/lineage/keys/root.pem", "lineage/notes.log", "examples/.netrc"):
                (checkout / place).parent.mkdir(parents=True, exist_ok=True)
                with (checkout / place).open("a") as left:
                    left.write(f"{name}={value}\n")
        monkeypatch.setattr(build, "CHECKOUT", checkout)
        made = client.images.get(build_image("triptych-data"))
        with (tmp_path / "image.tar").open("wb") as saved:
            saved.writelines(made.save())
        with tarfile.open(tmp_path / "image.tar") as image:
            image.extractall(layers / "image", filter="data")
        unpacked = 0
        for path in [path for path in (layers / "image").rglob("*") if path.is_file() and tarfile.is_tarfile(path)]:
            with tarfile.open(path) as layer:
                for member in layer:
                    content = reader.read() if (reader := layer.extractfile(member)) else b""
                    hits = [name for name, value in SECRETS.items() if any(form in content for form in forms(value))]
                    assert hits == [], f"{member.name} holds {hits}"
                    unpacked += member.name.endswith("lineage/digests.py") and b"BUILT_WITH_SECRETS_AROUND" in content
        assert unpacked == 1, "the layer with the code was not looked into"
        assert secrets_in(layers / "image") == []


def copy_checkout(target: Path) -> None:
    """What of this checkout an image is built from."""
    for name in ("LICENSE", "README.md", "constraints.txt", "pyproject.toml", "build", *ROOMS):
        place = build.CHECKOUT / name
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            shutil.copytree(place, target / name, symlinks=True, ignore=LEFT_OUT)
        else:
            shutil.copy(place, target / name)


def test_without_a_checkout_no_image_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "CHECKOUT", tmp_path)
    with pytest.raises(ContainerError, match=r"whole checkout of Triptych: .*constraints\.txt"):
        build_image("triptych-torch")
    assert not (tmp_path / "build").exists()
