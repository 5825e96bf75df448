"""Trains the demo's models if need be, serves them, and shows what to try.

`--smoke` runs every command that it shows, and ends; its status tells whether all went well.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from rich.console import Console
from train import main as train

HERE = Path(__file__).parent
MODELS = HERE / "models"
ROW = "[0,0,5,13,9,1,0,0,0,0,13,15,10,15,5,0,0,3,15,2,0,11,8,0,0,4,12,0,0,8,8,0," \
      "0,5,8,0,0,9,8,0,0,4,11,0,1,12,7,0,0,2,14,5,10,12,0,0,0,0,6,13,10,0,0,0]"  # fmt: skip


def commands(url: str) -> list[tuple[str, str]]:
    """What to try: a line of explanation and a command for the shell."""
    folder = os.path.relpath(HERE)
    return [
        ("what is served", f"curl -s {url}/"),
        (
            "a picture to a Python class",
            f"curl -s -T {folder}/digit.png {url}/predict/digits-python",
        ),
        (
            "a table with gaps",
            f"curl -s -T {folder}/patients.csv -H 'Content-Type: text/csv' {url}/predict/diabetes",
        ),
        (
            "one row, as columns",
            f"curl -s {url}/predict/diabetes -d "
            """'{"input": {"age": 59, "bmi": 32.1, "glucose": null}}'""",
        ),
        (
            "as TensorFlow Serving's clients ask",
            f"curl -s {url}/v1/models/digits-sklearn:predict -d '{{\"instances\": [{ROW}]}}'",
        ),
        (
            "as Triton's and KServe's clients ask",
            f'curl -s {url}/v2/models/digits-onnx/infer -d \'{{"inputs": [{{"name": "input", '
            f'"datatype": "FP32", "shape": [1, 64], "data": {ROW}}}]}}\'',
        ),
        ("metrics", f"curl -s {url}/metrics"),
    ]


class Served:
    """The server beside this program."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "salver", "serve", str(MODELS), "--trust"]
        command += ["--port", str(port), "--access-log", "off"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.url = ""
        self._known = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def is_up(self) -> bool:
        """Waits until it serves; False if it ended instead."""
        self._known.wait()
        return bool(self.url)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            print(line, end="", file=sys.stderr)
            if found := re.search(r"Serving on (\S+)", line):
                self.url = found.group(1)
                self._known.set()
        self._known.set()

    def stop(self) -> int:
        """Ends the server; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait()
        self._reader.join()
        return status


def smoke(console: Console, url: str) -> bool:
    """Runs every command and shows its answer; False if one fails."""
    ok = True
    for what, command in commands(url):
        done = subprocess.run(
            command.replace("curl -s", "curl -s --fail-with-body --max-time 30", 1),
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )
        worked = done.returncode == 0 and bool(done.stdout)
        ok = ok and worked
        console.print(f"[{'green' if worked else 'red'}]{what}[/]", highlight=False)
        console.print(command, style="dim", markup=False, highlight=False, soft_wrap=True)
        console.print(done.stdout[:300].strip(), markup=False, highlight=False, soft_wrap=True)
    return ok


def show(console: Console, served: Served, *, smokes: bool) -> int:
    """Tells what to try until the server ends, or tries it; the exit status."""
    if not served.is_up():
        return served.process.wait() or 1
    if smokes:
        return 0 if smoke(console, served.url) else 1
    console.print(f"\n[bold]Open {served.url} and draw a digit.[/] Or try:\n")
    for what, command in commands(served.url):
        console.print(f"[dim]# {what}[/]", highlight=False)
        console.print(command, markup=False, highlight=False, soft_wrap=True)
    return served.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--smoke", action="store_true", help="run every command, then end")
    arguments = parser.parse_args()
    # Whoever ends this program wants the server to end as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    train(MODELS)
    served = Served(0 if arguments.smoke else arguments.port)
    status = 0
    try:
        status = show(Console(), served, smokes=arguments.smoke)
    except KeyboardInterrupt:
        pass
    return served.stop() or status


if __name__ == "__main__":
    sys.exit(main())
