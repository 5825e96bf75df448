"""Starts the servers that are measured, as their users would, and reads what they cost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.models import MODELS, tiny_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HERE = Path(__file__).parent
PYTRITON = "nvidia-pytriton==0.5.14"  # bundles Triton 2.51, the last one for Debian 12's glibc
READY_TIMEOUT_S = 30.0


@dataclass
class Server:
    """A running server: its process leads a session that holds all its children."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    ready_s: float = 0.0
    """Time from the start of the process to the first good answer to the readiness probe."""

    def _stats(self) -> Iterator[list[str]]:
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(") ")[2].split()
                if int(fields[3]) == self.process.pid:
                    yield fields

    def cpu_s(self) -> float:
        """CPU time that all its processes have used (user and system, 10 ms steps)."""
        ticks = sum(int(fields[11]) + int(fields[12]) for fields in self._stats())
        return ticks / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Resident memory of all its processes, shared pages counted in each."""
        pages = sum(int(fields[21]) for fields in self._stats())
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self) -> None:
        """Asks it to end; after ten seconds kills whatever is left of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def machine_cpu_s() -> float:
    """CPU time that all processes of the machine have used, stolen time included (proc(5))."""
    user, nice, system, _, _, irq, softirq, steal = (
        int(ticks) for ticks in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A TCP port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    context = ssl._create_unverified_context() if url.startswith("https") else None
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 405  # the Flask example has no readiness probe: it is up
    except OSError:
        return False


def _start(
    command: Sequence[str], ready_url: str, server_ports: tuple[int, int], log: Path,
    environment: Mapping[str, str] | None = None,
) -> Server:  # fmt: skip
    if not Path(command[0]).exists():
        raise BenchmarkError(f"{command[0]} is not installed")
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    server = Server(process, *server_ports)
    try:
        while not _answers(ready_url):
            if process.poll() is not None or time.monotonic() - began > READY_TIMEOUT_S:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                raise BenchmarkError(f"{' '.join(command[:4])} … did not become ready:\n{tail}")
            time.sleep(0.005)
    except BaseException:
        server.stop()
        raise
    server.ready_s = time.monotonic() - began
    return server


@dataclass(frozen=True)
class Salver:
    """`salver serve` with its defaults, but for the line per request that Triton does not write."""

    models: tuple[str, ...]
    batching: bool = True
    tls: bool = False
    label: str = "salver"

    def start(self, cache: Path) -> Server:
        """Raises: BenchmarkError."""
        port = free_port()
        paths = [self._path(name, cache) for name in self.models]
        options = ["--trust"] if any(path.suffix == ".joblib" for path in paths) else []
        if self.tls:
            cert, key = certificate(cache)
            options += ["--tls-cert", str(cert), "--tls-key", str(key)]
        program = Path(sys.executable).with_name("salver")
        options += ["--access-log", "off"]
        command = [str(program), "serve", *map(str, paths), "--port", str(port), *options]
        url = f"{'https' if self.tls else 'http'}://127.0.0.1:{port}/v2/health/ready"
        return _start(command, url, (port, port), cache / "salver.log")

    def _path(self, name: str, cache: Path) -> Path:
        if name == "forest":
            return forest(cache / "models")
        path = MODELS[name].save(cache / "models")
        if self.batching:
            return path
        folder = cache / "unbatched" / name
        (folder / "1").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "1" / "model.onnx")
        (folder / "model.yaml").write_text("batching: {max_size: 1}\n")
        return folder


@dataclass(frozen=True)
class Triton:
    """Triton 2.51 with its Python backend, from the PyTriton wheel.

    Its best settings here. Small inputs: dynamic batching (three times the requests of none) and
    otherwise defaults; other numbers of HTTP threads or instances and a queue delay only cost.
    Large inputs: no batching, two instances and shared memory that need not grow.
    """

    models: tuple[str, ...]
    label: str = "triton"

    def start(self, cache: Path) -> Server:
        """Raises: BenchmarkError."""
        root = _install_triton(cache / "triton")
        site = next(root.glob("lib/python3*/site-packages"))
        home = site / "pytriton" / "tritonserver"
        http_port, grpc_port = free_port(), free_port()
        command = [
            str(home / "bin" / "tritonserver"),
            f"--model-repository={self._repository(cache / 'triton-models')}",
            f"--backend-directory={home / 'backends'}",
            f"--http-port={http_port}",
            f"--grpc-port={grpc_port}",
            "--allow-metrics=false",
            f"--backend-config=python,shm-default-byte-size={256 << 20}",
        ]
        environment = {
            "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(site),
            "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        }
        url = f"http://127.0.0.1:{http_port}/v2/health/ready"
        ports = (http_port, grpc_port)
        return _start(command, url, ports, cache / "triton.log", environment)

    def _repository(self, parent: Path) -> Path:
        repository = parent / "+".join(self.models)
        for name in self.models:
            model = MODELS[name]
            version = repository / name / "1"
            version.mkdir(parents=True, exist_ok=True)
            shutil.copy(HERE / "triton_model.py", version / "model.py")
            np.save(version / "weights.npy", tiny_weights())
            dims = ", ".join(map(str, model.row))
            small = np.prod(model.row) < 1000
            batching, instances = ("dynamic_batching { }\n", 1) if small else ("", 2)
            (repository / name / "config.pbtxt").write_text(
                f'name: "{name}"\nbackend: "python"\nmax_batch_size: 64\n{batching}'
                f'input [ {{ name: "x" data_type: TYPE_FP32 dims: [ {dims} ] }} ]\n'
                f'output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {model.width} ] }} ]\n'
                f"instance_group [ {{ count: {instances} kind: KIND_CPU }} ]\n"
            )
        return repository


def _install_triton(root: Path) -> Path:
    """A virtual environment of its own: the wheel wants NumPy 1 and an old grpcio."""
    if (root / "installed").exists():
        return root
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(root)],
        [str(root / "bin" / "pip"), "install", "--quiet", "--no-deps", PYTRITON, "numpy<2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"Triton cannot be installed:\n{done.stderr}")
    home = next(root.glob("lib/python3*/site-packages")) / "pytriton" / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = "triton_python_backend_stub"
    shutil.copy(home / "python_backend_stubs" / python / stub, home / "backends" / "python" / stub)
    (home / "bin" / "tritonserver").chmod(0o755)
    (home / "backends" / "python" / stub).chmod(0o755)
    (root / "installed").touch()
    return root


@dataclass(frozen=True)
class Flask:
    """A tutorial's Flask and ONNX Runtime server: Werkzeug with a thread per connection."""

    models: tuple[str, ...]
    label: str = "flask"

    def start(self, cache: Path) -> Server:
        """Raises: BenchmarkError."""
        port = free_port()
        model = MODELS[self.models[0]].save(cache / "models")
        command = [sys.executable, str(HERE / "flask_app.py"), str(model), str(port)]
        url = f"http://127.0.0.1:{port}/predict"
        return _start(command, url, (port, port), cache / "flask.log")


Peer = Salver | Triton | Flask


@contextlib.contextmanager
def running(peers: Sequence[Peer], cache: Path) -> Iterator[list[Server]]:
    """The servers of `peers`, stopped at the end whatever happens."""
    with contextlib.ExitStack() as stack:
        servers = []
        for peer in peers:
            servers.append(peer.start(cache))
            stack.callback(servers[-1].stop)
        yield servers


def forest(folder: Path) -> Path:
    """A scikit-learn forest of 300 trees on four columns: some 20 ms a call in scikit-learn."""
    import joblib
    from sklearn.ensemble import RandomForestClassifier

    path = folder / "forest.joblib"
    if not path.exists():
        rows = np.random.default_rng(2).standard_normal((2000, 4)).astype(np.float32)
        model = RandomForestClassifier(300, random_state=0).fit(rows, (rows[:, 0] > 0).astype(int))
        folder.mkdir(parents=True, exist_ok=True)
        joblib.dump(model, path)
    return path


def certificate(cache: Path) -> tuple[Path, Path]:
    """A self-signed P-256 certificate for 127.0.0.1 and its key."""
    cert, key = cache / "tls.pem", cache / "tls.key"
    if not cert.exists():
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "365", "-subj", "/CN=127.0.0.1", "-keyout", key, "-out", cert],
            check=True, capture_output=True,
        )  # fmt: skip
    return cert, key
