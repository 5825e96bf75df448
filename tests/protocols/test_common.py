from __future__ import annotations

from types import SimpleNamespace

import orjson

from salver.interfaces import Query
from salver.protocols.common import answer, query


def test_a_query_has_its_name_and_the_arguments_of_the_path() -> None:
    operation = query("model_status")(SimpleNamespace(headers={}), {"model": "m"}, b"ignored")
    assert isinstance(operation, Query)
    assert (operation.name, operation.arguments) == ("model_status", {"model": "m"})


def test_its_value_is_answered_as_json() -> None:
    found = answer(Query(name="model_names"), {"models": ["a", "b"]})
    assert found.status == 200
    assert found.headers == b"Content-Type: application/json\r\n"
    assert orjson.loads(b"".join(found.body)) == {"models": ["a", "b"]}
