from __future__ import annotations

import re
from importlib import resources

import pytest

FILES = {
    entry.name: entry.read_text(encoding="utf-8")
    for entry in resources.files("salver.server.page").iterdir()
    if entry.name.rpartition(".")[2] in {"html", "css", "js", "svg"}
}
PAGES = sorted(name for name in FILES if name.endswith(".html"))
SCRIPTS = sorted(name for name in FILES if name.endswith(".js"))


@pytest.mark.parametrize("name", PAGES)
def test_markup_keeps_the_content_security_policy(name: str) -> None:
    assert not re.search(r"\s(style|on\w+)=|<style|<script(?![^>]*src=)|javascript:", FILES[name])


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_build_nodes_and_never_parse_markup_or_code(name: str) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
    assert not re.search(forbidden, FILES[name])


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_comes_from_elsewhere(name: str) -> None:
    without_namespace = FILES[name].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|\burl\(|@import", without_namespace)


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_file_that_is_asked_for_exists(name: str) -> None:
    asked = re.findall(r"""(?:"/page/|from "\./)([\w.-]+\.\w+)\"""", FILES[name])
    assert set(asked) <= set(FILES)


@pytest.mark.parametrize("name", PAGES)
def test_every_id_that_its_scripts_need_exists(name: str) -> None:
    script = "docs.js" if name == "docs.html" else "app.js"
    ids = re.findall(r'find\("(\w+)"\)', FILES[script])
    assert ids
    assert all(f'id="{wanted}"' in FILES[name] for wanted in ids)


def test_the_page_stays_small() -> None:
    assert sum(len(FILES[name].encode()) for name in SCRIPTS if name != "docs.js") < 36_000
