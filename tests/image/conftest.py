"""The image, built without a daemon, and run as a container would be: as pid 1, uid 1000, on a
read-only root."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".cache" / "image"
TAG = "localhost/salver:test"
CERTIFICATES = "/etc/ssl/certs"
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60

RUN = """
set -e
root=$1 models=$2 user=$3
shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$models" "$root/models"
exec chroot --userspec="$user" "$root" "$@"
"""


def call(*command: str | Path) -> str:
    """What a program prints; its complaint if it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()


def buildah(*arguments: str | Path) -> str:
    """buildah on a store of its own, by the driver that works everywhere."""
    store = ("--root", CACHE / "storage", "--runroot", CACHE / "run", "--storage-driver", "vfs")
    return call("buildah", *store, *arguments)


def base_tag() -> str:
    """The image that the Dockerfile builds on."""
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (REPOSITORY / "Dockerfile").read_text(), re.M)
    assert found is not None
    return f"docker.io/library/{found[1]}"


def make_base(tag: str, folder: Path) -> None:
    """A small Debian with its own Python, from this machine's mirror, under the tag's name."""
    suite = tag.rpartition("-")[2]
    query = ("--format", "$(REPO_URI)", "Created-By: Packages", f"Release: {suite}")
    mirror = call("apt-get", "indextargets", *query).split()[:1]
    root = folder / "base"
    call("debootstrap", "--variant=minbase", "--include=python3-venv", suite, root, *mirror)
    for leftover in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / leftover)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, root, "/")
    buildah("commit", "--quiet", "--rm", container, tag)
    shutil.rmtree(root)


def pip_mounts(folder: Path) -> list[str]:
    """This machine's certificates and pip's settings, lent to the build. Folders stay here."""
    lines = call(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = (line.partition("=") for line in lines)
    settings = {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, _, value in pairs}
    for key in ("find-links", "index-url", "extra-index-url"):
        words = [word for word in settings.get(key, "").split() if re.match("https?:", word)]
        settings[key] = " ".join(words)
    conf = folder / "pip.conf"
    written = (f"{key} = {value}\n" for key, value in settings.items() if value)
    conf.write_text("[global]\n" + "".join(written))
    mounts = [f"{conf}:/etc/pip.conf:ro", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
    if "cert" in settings and not settings["cert"].startswith(CERTIFICATES):
        mounts.append(f"{settings['cert']}:{settings['cert']}:ro")
    return [word for mount in mounts for word in ("--volume", mount)]


class Image:
    """The built image: its root folder and what its Dockerfile says about running it."""

    def __init__(self, root: Path, config: dict[str, Any]) -> None:
        self.root = root
        self.user: str = config["User"]
        self.command: list[str] = config["Entrypoint"] + config["Cmd"]
        self.env: dict[str, str] = dict(line.split("=", 1) for line in config["Env"])
        self._healthcheck: list[str] = config["Healthcheck"]["Test"][1:]

    def healthy(self, port: int) -> bool:
        """What HEALTHCHECK finds on a port."""
        chroot = ["chroot", f"--userspec={self.user}", str(self.root)]
        env = {**self.env, "SALVER_PORT": str(port)}
        done = subprocess.run([*chroot, *self._healthcheck], env=env, capture_output=True)
        return done.returncode == 0


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Builds the image. Its base is kept between runs."""
    if os.environ.get("SALVER_TEST_IMAGE") != "1":
        pytest.skip("takes minutes: `make image`")
    if os.geteuid() != 0:
        pytest.skip("building and mounting an image needs root")
    for program in ("buildah", "debootstrap", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    folder = tmp_path_factory.mktemp("image")
    if not buildah("images", "--quiet", "--filter", f"reference={base_tag()}"):
        make_base(base_tag(), folder)
    options = ("--isolation", "chroot", "--pull-never", "--format", "docker", "--tag", TAG)
    buildah("bud", *options, *pip_mounts(folder), REPOSITORY)
    container = buildah("from", "--pull-never", TAG)
    found = json.loads(buildah("inspect", "--type", "image", TAG))
    yield Image(Path(buildah("mount", container)), found["Docker"]["config"])
    buildah("rm", container)
    buildah("rmi", TAG)


class Container:
    """The image's command on a folder of models, with this machine's network."""

    def __init__(self, image: Image, models: Path) -> None:
        self.port = free_port()
        unshare = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", RUN, "run"]
        place = [str(image.root), str(models), image.user]
        self._process = subprocess.Popen(
            [*unshare, *place, *image.command],
            env={**image.env, "HOME": "/tmp", "COLUMNS": "200", "SALVER_PORT": str(self.port)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.wait_for("Serving on")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The server's, as this machine numbers it."""
        parent = self._process.pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text())

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, text: str) -> None:
        """Reads on until the server has said so."""
        said = ""
        while text not in (line := self._lines.get(timeout=START_TIMEOUT_S)):
            said += line
            assert line, f"the server ended: {said}"

    def stop(self) -> int:
        """Ends the server by SIGTERM; its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self._process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Ends everything; no matter what has ended before."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)
        self._reader.join()
        if self._process.stderr is not None:
            self._process.stderr.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def run(image: Image) -> Iterator[Callable[[Path], Container]]:
    """Runs containers that end with the test."""
    containers: list[Container] = []

    def start(models: Path) -> Container:
        containers.append(Container(image, models))
        return containers[-1]

    yield start
    for container in containers:
        container.close()
