"""The image of this checkout: the same code, nothing of the builder's, ready for any user."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from infra.images import build
from infra.images.build import buildkit_client, content
from lineage.digests import code_digest

ROOMS = ("lineage", "training", "components", "pipelines", "infra", "examples")
STRANGER = "12345:12345"

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


def test_the_tag_follows_what_goes_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((build.CHECKOUT / name).read_text())
    source = tmp_path / "lineage" / "digests.py"
    source.parent.mkdir()
    source.write_text("one = 1\n")
    monkeypatch.setattr(build, "CHECKOUT", tmp_path)
    first = content().tag()
    (tmp_path / "lineage" / "notes.log").write_text("not installed")
    assert content().tag() == first
    source.write_text("one = 2\n")
    changed = content().tag()
    (tmp_path / "constraints.txt").write_text("torch==0\n")
    assert len({first, changed, content().tag()}) == 3


def test_a_client_without_buildkit_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder, status in (("old", 1), ("new", 0)):
        client = tmp_path / folder / "docker"
        client.parent.mkdir()
        client.write_text(f"#!/bin/sh\nexit {status}\n")
        client.chmod(0o755)
    monkeypatch.setattr(build, "SYSTEM_PATH", f"{tmp_path / 'old'}:{tmp_path / 'new'}")
    assert buildkit_client() == str(tmp_path / "new" / "docker")
