"""The page's scripts as a browser runs them, driven over the Chrome DevTools Protocol."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.tool, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]
HOSTILE = "<img src=x onerror=document.title='broken'>"
MODEL = """
import dataclasses

@dataclasses.dataclass
class Order:
    price: float
    count: int = 3
    note: str | None = None

class Shop:
    def predict(self, order: Order) -> float:
        return order.price * order.count
"""
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-pipe",
)
# The browser reads commands from descriptor 3 and writes what happens to descriptor 4.
ON_3_AND_4 = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); " \
    "os.execv(sys.argv[3], sys.argv[3:])"  # fmt: skip
# Gives what `find` gives as soon as that is something; pages change, so each change is looked at.
UNTIL = """new Promise((done, fail) => {
  setTimeout(() => fail(document.body.innerText), 30000);
  const look = () => { const found = (%s)(); if (found) { watch.disconnect(); done(found); } };
  const watch = new MutationObserver(look);
  watch.observe(document, { subtree: true, childList: true, attributes: true });
  look();
})"""
OPEN = """() => {
  const card = [...document.querySelectorAll("#list > li")].find(
    (each) => each.querySelector("button.name").textContent === %s);
  if (card && !card.querySelector("form")) card.querySelector("button.name").click();
  return card?.querySelector("form") && (window.card = card) && true;
}"""


class Browser:
    """A tab of a headless Chromium."""

    def __init__(self, folder: Path) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # Copies, so that none of them is 3 or 4 itself.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", ON_3_AND_4, *map(str, theirs)),
                *(str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}"),
            ],
            pass_fds=theirs,
            stderr=subprocess.DEVNULL,
        )
        for fd in (*theirs, theirs_in, theirs_out):
            os.close(fd)
        self._send = os.fdopen(ours_out, "wb", buffering=0)
        self._receive = os.fdopen(ours_in, "rb")
        self._numbers = count(1)
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": session["sessionId"]}

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        self._send.write(json.dumps(message).encode() + b"\0")
        while (answer := json.loads(self._read())).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> bytes:
        message = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        return bytes(message)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        given = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in given, given
        return given["result"].get("value")

    def until(self, find: str) -> Any:
        """What the function `find` gives, once that is something."""
        return self.run(UNTIL % find)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.call("Browser.close")
        self._send.close()
        self._receive.close()
        self.process.wait()


@pytest.fixture(scope="module")
def page(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page of a server with a model that takes a dataclass, and one with a hostile name."""
    models = tmp_path_factory.mktemp("models")
    for name in ("shop", HOSTILE):
        (models / name).mkdir()
        (models / name / "model.py").write_text(MODEL)
        (models / name / "model.yaml").write_text(f"description: {json.dumps(HOSTILE)}\n")
    server = serve(models, "--trust")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    browser.call("Page.enable")
    browser.call("Page.navigate", url=f"{server.url}/")
    browser.until("() => document.querySelectorAll('#list > li').length === 2")
    yield browser
    browser.close()


def test_a_server_without_traffic_has_no_latency(page: Browser) -> None:
    said = page.until("""() => [...document.querySelectorAll("#pulse p")].map(
      (each) => each.textContent).find((text) => text.includes("median"))""")
    assert said == "– ms median latency"


def test_the_form_that_is_filled_in_can_be_run(page: Browser) -> None:
    page.until(OPEN % json.dumps("shop"))
    filled = page.run("window.card.querySelector('textarea').value")
    assert json.loads(filled) == {"price": 0.0, "count": 3, "note": None}
    page.run("window.card.querySelector('form').requestSubmit()")
    assert page.until("() => window.card.querySelector('.big')?.textContent") == "0"


def test_an_input_that_is_typed_is_answered_and_shown_as_commands(page: Browser) -> None:
    page.until(OPEN % json.dumps("shop"))
    page.run("""{
      const field = window.card.querySelector("textarea");
      field.value = '{"price": 2.5, "count": 4}';
      field.dispatchEvent(new Event("input", { bubbles: true }));
      window.card.querySelector("form").requestSubmit();
    }""")
    find = "() => window.card.querySelector('.big')?.textContent === '10' && 'shown'"
    assert page.until(find) == "shown"
    doors = page.run("window.card.querySelector('.doors').textContent")
    assert doors.count("curl") == 3
    assert '{"input":{"price":2.5,"count":4}}' in doors


def test_a_refusal_is_shown(page: Browser) -> None:
    page.until(OPEN % json.dumps("shop"))
    page.run("""{
      window.card.querySelector("textarea").value = "{}";
      window.card.querySelector("form").requestSubmit();
    }""")
    said = page.until("() => window.card.querySelector('form + div .alert')?.textContent")
    assert "missing required field `price`" in said


def test_hostile_names_are_text(page: Browser) -> None:
    page.until(OPEN % json.dumps(HOSTILE))
    assert page.run("window.card.querySelector('.panel > p').textContent") == HOSTILE
    assert page.run("document.querySelectorAll('#list img').length") == 0
    assert page.run("document.title") == "Salver"
    page.run("window.card.querySelector('form').requestSubmit()")
    assert page.until("() => window.card.querySelector('.big')?.textContent") == "0"
