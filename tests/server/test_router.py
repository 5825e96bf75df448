from __future__ import annotations

import pytest

from salver.config import Limits
from salver.errors import MethodNotAllowed, NotFound
from salver.protocols.kserve_v2 import KserveV2
from salver.protocols.plain import PlainDoor
from salver.server.router import Router

KSERVE, PLAIN = KserveV2(Limits()), PlainDoor(Limits())
ROUTER = Router([PLAIN, KSERVE])


@pytest.mark.parametrize(
    ("method", "path", "template", "arguments"),
    [
        ("GET", "/v2", "/v2", {}),
        ("HEAD", "/v2/health/live", "/v2/health/live", {}),
        ("GET", "/v2/models/stats", "/v2/models/stats", {}),
        ("GET", "/v2/models/iris", "/v2/models/{model}", {"model": "iris"}),
        ("POST", "/v2/models/a.b/infer", "/v2/models/{model}/infer", {"model": "a.b"}),
        (
            "POST",
            "/v1/models/a:b:predict",
            "/v1/models/{model}:predict",
            {"model": "a:b"},
        ),
        ("GET", "/v1/models/a", "/v1/models/{model}", {"model": "a"}),
        (
            "POST",
            "/v1/models/a/labels/new:predict",
            "/v1/models/{model}/labels/{version}:predict",
            {"model": "a", "version": "new"},
        ),
        ("PUT", "/predict/m/top", "/predict/{model}/{method}", {"model": "m", "method": "top"}),
    ],
)
def test_finds(method, path, template, arguments):
    endpoint, found = ROUTER.find(method, path)
    assert endpoint.path == template
    assert found == arguments


@pytest.mark.parametrize("path", ["", "v2", "/v2/", "/V2", "/v2/models//infer", "/v2/models/a/b/c"])
def test_there_is_nothing_elsewhere(path):
    with pytest.raises(NotFound):
        ROUTER.find("GET", path)


def test_suggests_what_was_meant():
    with pytest.raises(NotFound, match="Did you mean '/v2/health/live'"):
        ROUTER.find("GET", "/v2/health/life")
    with pytest.raises(NotFound, match="Did you mean '/predict/iris'"):
        ROUTER.find("POST", "/predict/iris/")
    with pytest.raises(NotFound, match="Did you mean '/v2/models/iris/infer'"):
        ROUTER.find("POST", "/v2/models/iris/inferr")


def test_names_the_methods_that_are_offered():
    with pytest.raises(MethodNotAllowed, match="DELETE is not offered here; POST, PUT is"):
        ROUTER.find("DELETE", "/predict")
    with pytest.raises(MethodNotAllowed, match=r"GET is not offered here; POST is$"):
        ROUTER.find("GET", "/v1/models/iris:predict")
    for path in ("/v1/models/iris", "/v1/models/iris:classify"):
        with pytest.raises(MethodNotAllowed, match="Did you mean '/v1/models/iris:predict'"):
            ROUTER.find("POST", path)
    assert ROUTER.methods("/v2") == ["GET", "HEAD"]
    assert ROUTER.methods("/nothing") == []


def test_every_endpoint_knows_its_protocol():
    assert ROUTER.protocol_of(ROUTER.find("GET", "/v2")[0]) is KSERVE
    assert ROUTER.protocol_of(ROUTER.find("POST", "/predict")[0]) is PLAIN
