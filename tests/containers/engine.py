"""A Docker engine to work with: the one that runs already, or a private one for as long as it is needed.

    with engine() as address:
        ...                      # DOCKER_HOST names the engine meanwhile

or, on the command line, ``python -m tests.containers.engine -- COMMAND``.

A private engine has its own socket, its own data folder (``~/.cache/triptych/docker``: images stay for the next
time) and no network of its own: it adds no bridge and no firewall rule to the machine, and containers use the
machine's network. One process at a time has it; others wait for their turn.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from docker import DockerClient
from docker.errors import DockerException

from infra.images.build import BASE_VARIABLE, ContainerError
from tests.containers.base import SYSTEM_PATH, cache_folder, ensure_base

DEFAULT = "unix:///var/run/docker.sock"
START_SECONDS = 60
STOP_SECONDS = 30


@contextmanager
def engine() -> Iterator[str]:
    """Name an engine in ``DOCKER_HOST``, starting a private one where none runs; yields its address.

    Meanwhile ``PATH`` begins with a docker client that has BuildKit (Debian's), and images have a base that is there.

    Raises:
        ContainerError: no engine runs and none can be started here.
    """
    found = find_engine()
    if found is not None:
        with _named(found):
            yield found
    else:
        with private_engine(cache_folder() / "docker") as started, _named(started):
            yield started


def find_engine() -> str | None:
    """The address of the engine that runs already: ``DOCKER_HOST``, or else the default socket.

    Raises:
        ContainerError: ``DOCKER_HOST`` names an engine that does not answer.
    """
    address = os.environ.get("DOCKER_HOST")
    if address:
        if not answers(address):
            raise ContainerError(f"no Docker engine answers at DOCKER_HOST={address}; start it, or unset DOCKER_HOST")
        return address
    return DEFAULT if answers(DEFAULT) else None


def answers(address: str) -> bool:
    """Whether an engine answers at ``address``."""
    try:
        client = DockerClient(base_url=address, timeout=10)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except (DockerException, OSError):
        return False


@contextmanager
def private_engine(folder: Path) -> Iterator[str]:
    """Run an engine whose data lie in ``folder``; stop it at the end, whatever happens. Yields its address.

    Raises:
        ContainerError: it cannot be started.
    """
    dockerd = _dockerd()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        runtime = _runtime(folder)
        _clear(folder, runtime)
        runtime.mkdir(parents=True, mode=0o700)
        address = f"unix://{runtime}/docker.sock"
        process = _start(dockerd, address, folder, runtime)
        try:
            _await(process, address, folder)
            yield address
        finally:
            _stop(process)
            _clear(folder, runtime)


def _dockerd() -> str:
    path = shutil.which("dockerd", path=SYSTEM_PATH)
    if path is None:
        raise ContainerError(
            "no Docker engine runs here and none is installed; start one, or install Debian's: "
            "apt-get install --no-install-recommends docker.io debootstrap"
        )
    if os.geteuid() != 0:
        raise ContainerError("no Docker engine answers here and only root can start one; start Docker, or run as root")
    return path


def _runtime(folder: Path) -> Path:
    """A short path (a socket's is limited to about 100 characters), always the same for one data folder."""
    return Path("/run") / f"triptych-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]}"


def _start(dockerd: str, address: str, folder: Path, runtime: Path) -> subprocess.Popen[bytes]:
    configuration = runtime / "daemon.json"
    configuration.write_text("{}")
    command = [dockerd, "--config-file", str(configuration), "--host", address, "--pidfile", str(folder / "pid")]
    command += ["--data-root", str(folder / "data"), "--exec-root", str(runtime / "exec")]
    command += ["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--log-level=warn"]
    setpriv = shutil.which("setpriv", path=SYSTEM_PATH)
    if setpriv is not None:  # the engine ends also when this process is killed
        command = [setpriv, "--pdeathsig", "TERM", "--", *command]
    with (folder / "engine.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us, and we stop the engine after its containers
            env={**os.environ, "PATH": SYSTEM_PATH},
        )


def _await(process: subprocess.Popen[bytes], address: str, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            log = folder / "engine.log"
            last = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
            state = "is still silent" if process.poll() is None else f"ended with status {process.returncode}"
            raise ContainerError(f"the private Docker engine {state} after its start; its log {log} ends: {last}")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the engine and the containerd it started, gently and then not."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    for child in alive:
        child.kill()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process to finish with the Docker engine in {folder}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _clear(folder: Path, runtime: Path) -> None:
    """Remove what an engine that ended, or was killed, has left: its pid file, containers, mounts, socket."""
    pidfile = folder / "pid"
    if pidfile.exists():
        _await_end(int(pidfile.read_text()), folder)
        pidfile.unlink(missing_ok=True)
    _end_containers(runtime)
    mounted = [Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in reversed(mounted):
        if point.is_relative_to(runtime) or point.is_relative_to(folder.resolve()):
            subprocess.run(["umount", str(point)], check=False)  # one that is busy does not hinder the next engine
    shutil.rmtree(runtime, ignore_errors=True)


def _end_containers(runtime: Path) -> None:
    """End containers that outlived their engine: each hangs on a shim, which names this engine's socket."""
    for shim in psutil.process_iter(["name", "cmdline"]):
        line = shim.info["cmdline"] or []
        if shim.info["name"].startswith("containerd-shim") and any(part.startswith(f"{runtime}/") for part in line):
            with suppress(psutil.NoSuchProcess):
                for process in (*shim.children(recursive=True), shim):
                    process.kill()
                shim.wait(STOP_SECONDS)


def _await_end(pid: int, folder: Path) -> None:
    """Wait for the engine that a killed process has left behind; it is told to end when its parent does."""
    try:
        left = psutil.Process(pid)
        if str(folder / "data") not in left.cmdline():
            return
        left.wait(STOP_SECONDS)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired as error:
        raise ContainerError(f"an earlier engine (process {pid}) still uses {folder}; end it and try again") from error


@contextmanager
def _named(address: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({"DOCKER_HOST": address, "PATH": f"/usr/bin{os.pathsep}{before.get('PATH', '')}"})
    try:
        os.environ[BASE_VARIABLE] = ensure_base()
        yield
    finally:
        for name in ("DOCKER_HOST", "PATH", BASE_VARIABLE):
            os.environ.pop(name, None)
        os.environ.update(before)


def main(arguments: Sequence[str]) -> int:
    """Run a command while an engine is there; its exit status."""
    command = list(arguments[1:] if arguments[:1] == ["--"] else arguments)
    if not command:
        print("usage: python -m tests.containers.engine -- COMMAND...", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with engine():
            return subprocess.run(command).returncode
    except ContainerError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
