"""The images of this checkout: the same code, nothing of the builder's, ready for any user."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import docker
import pytest

from infra.checkout import checkout_commit
from infra.images import build
from infra.images.build import ContainerError, build_image
from lineage.digests import code_digest
from pipelines.steps import Image
from tests.runs import AVATARS, SECRETS, forms

ROOMS = ("lineage", "training", "serving", "components", "pipelines", "infra", "examples")
STRANGER = "12345:12345"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.png", "*.safetensors")

needs_engine = [pytest.mark.containers, pytest.mark.timeout(900)]


def printed(client: docker.DockerClient, image: str, program: str, **given: Any) -> str:
    """What a Python program prints in a container of the image."""
    output = client.containers.run(image, ["python3", "-c", program], network_mode="none", remove=True, **given)
    return output.decode().strip()


class TestEach:
    pytestmark = needs_engine

    @pytest.fixture(params=["data", "torch"])
    def image(self, images: dict[Image, str], request: pytest.FixtureRequest) -> str:
        return images[request.param]

    def test_its_code_is_that_of_the_checkout(self, client: docker.DockerClient, image: str) -> None:
        program = f"from lineage.digests import code_digest; print(code_digest(*{ROOMS}))"
        assert printed(client, image, program) == code_digest(*ROOMS)

    def test_it_is_not_roots_and_serves_any_user(self, client: docker.DockerClient, image: str) -> None:
        program = "import os, kfp, mlflow; print(os.getuid())"
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

    def test_it_says_what_it_was_built_from(self, client: docker.DockerClient, image: str) -> None:
        labels = client.images.get(image).labels
        version = tomllib.loads((build.CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
        said = {name: labels[f"org.opencontainers.image.{name}"] for name in ("version", "revision")}
        assert said == {"version": version, "revision": checkout_commit()}

    def test_no_compiler_is_in_it(self, client: docker.DockerClient, image: str) -> None:
        compilers = ("gcc", "cc", "g++", "c++", "clang", "nvcc", "make")
        program = f"import shutil; print([name for name in {compilers} if shutil.which(name)])"
        assert printed(client, image, program) == "[]"


class TestImage:
    pytestmark = needs_engine

    def test_the_image_for_data_has_no_torch(self, client: docker.DockerClient, images: dict[Image, str]) -> None:
        """What its steps import late is there all the same: the plan of a supervised run compares weights."""
        program = (
            "import importlib.util, pathlib, components.register.register, components.gate.gate, matplotlib.figure;"
            "from training.teach.leakage import shared_tensors;"
            "teacher = pathlib.Path('/teacher');"
            "print(len(shared_tensors(teacher, teacher)) > 1, importlib.util.find_spec('torch'))"
        )
        teacher = {str(AVATARS / "models" / "teacher"): {"bind": "/teacher", "mode": "ro"}}
        assert printed(client, images["data"], program, volumes=teacher) == "True None"

    def test_both_images_name_the_packages_of_both(self, client: docker.DockerClient, images: dict[Image, str]) -> None:
        program = "import os, pathlib; print(pathlib.Path(os.environ['TRIPTYCH_PACKAGES']).read_text())"
        told = {printed(client, images[name], program) for name in images}
        assert len(told) == 1
        assert any(name.startswith(f"torch-{version('torch')}") for name in told.pop().splitlines())

    def test_the_image_for_data_works_on_a_read_only_root(
        self, client: docker.DockerClient, images: dict[Image, str]
    ) -> None:
        frozen = {"read_only": True, "tmpfs": {"/tmp": ""}, "network_mode": "none", "remove": True}
        told = client.containers.run(images["data"], ["triptych", "--help"], **frozen).decode()
        assert "retrain" in told and "submit" in told
        program = "import infra.governed.app, infra.governed.stores; print('imported')"
        assert printed(client, images["data"], program, read_only=True, tmpfs={"/tmp": ""}) == "imported"
        with pytest.raises(docker.errors.ContainerError, match="Read-only file system"):
            printed(client, images["data"], "open('/opt/venv/new', 'w')", read_only=True, user="0")

    def test_the_image_with_torch_works_on_a_read_only_root(
        self, client: docker.DockerClient, images: dict[Image, str]
    ) -> None:
        program = (
            "import torch, diffusers, deepspeed;"
            "vae = diffusers.AutoencoderKL(block_out_channels=(32,));"
            "print(tuple(vae(torch.zeros(1, 3, 8, 8)).sample.shape))"
        )
        told = printed(client, images["torch"], program, read_only=True, tmpfs={"/tmp": ""})
        assert told.splitlines()[-1] == "(1, 3, 8, 8)"

    @pytest.mark.parametrize("names", [("data",), pytest.param(("data", "torch"), marks=pytest.mark.drill)])
    def test_what_is_downloaded_for_a_step_without_torch_is_small(
        self, client: docker.DockerClient, images: dict[Image, str], names: tuple[Image, ...], tmp_path: Path
    ) -> None:
        with saved(tmp_path, [images[name] for name in names]) as (archive, layers):
            sizes = {
                layer: compressed(extracted(archive, layer)) for layer in {one for named in layers for one in named}
            }
        for name, named in zip(names, layers, strict=True):
            unpacked, packed = client.images.get(images[name]).attrs["Size"], sum(sizes[layer] for layer in named)
            print(f"triptych-{name}: {unpacked / 1e6:.0f} MB, in a registry {packed / 1e6:.0f} MB")
        assert sum(sizes[layer] for layer in layers[0]) < 600e6

    def test_it_follows_the_checkout(self, image: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Equal checkouts have one image, and another line of code makes another one."""
        copy_checkout(tmp_path)
        monkeypatch.setattr(build, "CHECKOUT", tmp_path)
        assert build_image("triptych-torch") == image
        (tmp_path / "lineage" / "notes.log").write_text("not installed")
        with (tmp_path / "lineage" / "digests.py").open("a") as source:
            source.write("ANOTHER = 1\n")
        assert build_image("triptych-torch") != image

    @pytest.mark.parametrize(
        "targets", [("triptych-data",), pytest.param(tuple(build.TARGETS), marks=pytest.mark.drill)]
    )
    def test_no_secret_of_the_builders_is_in_its_layers(
        self, engine: str, targets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Neither of the environment, nor of files that lie in the checkout and are not the product's."""
        checkout = tmp_path / "checkout"
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
        made, unpacked = [build_image(target) for target in targets], []
        with saved(tmp_path, made) as (archive, layers):
            for name, content in contents(archive, {layer for named in layers for layer in named}):
                hits = [secret for secret, value in SECRETS.items() if any(form in content for form in forms(value))]
                assert hits == [], f"{name} holds {hits}"
                if name.endswith("lineage/digests.py") and b"BUILT_WITH_SECRETS_AROUND" in content:
                    unpacked.append(name)
        assert len(unpacked) == len(made), "the layers with the code were not looked into"


@contextmanager
def saved(folder: Path, images: Iterable[str]) -> Iterator[tuple[tarfile.TarFile, list[list[str]]]]:
    """Images in one archive, and for each the names of its layers in there."""
    path, named = folder / "images.tar", list(images)
    subprocess.run(["docker", "save", "--output", str(path), *named], check=True)
    try:
        with tarfile.open(path) as archive:
            manifest = json.load(extracted(archive, "manifest.json"))
            layers = {one["Config"].split("/")[-1].removesuffix(".json"): one["Layers"] for one in manifest}
            yield archive, [layers[image.removeprefix("sha256:")] for image in named]
    finally:
        path.unlink()


def extracted(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> IO[bytes]:
    """What reads a regular file of an archive."""
    reader = archive.extractfile(member)
    assert reader is not None
    return reader


def compressed(layer: IO[bytes]) -> int:
    """How many bytes of a layer a registry keeps: gzip, at its usual level."""
    packing = zlib.compressobj(wbits=31)
    packed = sum(len(packing.compress(part)) for part in iter(functools.partial(layer.read, 2**20), b""))
    return packed + len(packing.flush())


def contents(archive: tarfile.TarFile, layers: Collection[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Name and content of every regular file of an archive, and in place of a layer those in it."""
    for member in archive:
        if member.name in layers:
            with tarfile.open(fileobj=extracted(archive, member)) as layer:
                yield from contents(layer)
        elif member.isreg():
            yield member.name, extracted(archive, member).read()


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
