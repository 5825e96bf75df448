from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from salver.config import Limits
from salver.errors import NotFound
from salver.protocols.plain import PlainDoor
from salver.server.pages import Pages, page_file
from salver.server.router import Router

ROUTER = Router([PlainDoor(Limits()), Pages()])
STATE = {"models": [{"name": "iris", "version": "3", "state": "READY"}]}


def get(path: str, accept: str = "", result: Any = None) -> Any:
    head: Any = SimpleNamespace(headers={"accept": accept})
    endpoint, arguments = ROUTER.find("GET", path)
    return endpoint.encode(endpoint.decode(head, arguments, b""), result)


def test_browsers_get_the_page_and_programs_a_text() -> None:
    page = get("/", accept="text/html,*/*", result=STATE)
    text = get("/", accept="*/*", result=STATE)
    assert b"text/html" in page.headers
    assert b"<html" in page.body[0]
    assert b"text/plain" in text.headers
    assert b"iris  version 3  ready" in text.body[0]


@pytest.mark.parametrize("path", ["/docs", "/page/app.js", "/page/index.html"])
def test_files_forbid_whatever_they_do_not_need(path: str) -> None:
    headers = get(path).headers
    assert b"default-src 'none'" in headers
    assert b"X-Content-Type-Options: nosniff" in headers
    assert b"unsafe" not in headers


@pytest.mark.parametrize("name", ["../pages.py", "nothing.js", "", "__init__.py", "x" * 5000])
def test_only_files_of_the_page_can_be_had(name: str) -> None:
    with pytest.raises(NotFound) as caught:
        page_file(name)
    assert len(caught.value.message) < 200


def test_state_is_not_kept_by_browsers() -> None:
    assert b"Cache-Control: no-store" in get("/page/state", result=STATE).headers


def test_metrics_have_the_type_that_prometheus_reads() -> None:
    answer = get("/metrics", result=b"up 1\n")
    assert answer.headers == b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
    assert answer.body == [b"up 1\n"]
