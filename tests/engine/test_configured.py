from __future__ import annotations

from typing import Any

import pytest

from salver.config import Batching, ModelConfig
from salver.engine.configured import chosen, max_batch
from salver.errors import LoadFailed
from salver.interfaces import Traits
from salver.signature import Method, Signature, TensorSpec
from salver.types import FP32, INT64

X = TensorSpec(name="x", dtype=FP32, shape=(-1, 2))
LABEL = TensorSpec(name="label", dtype=INT64, shape=(-1,), role="label")
METHOD = Method(inputs=(X,), outputs=(LABEL,), batching="rows")


def test_the_smaller_limit_bounds_a_batch() -> None:
    def limit(configured: int, own: int) -> int:
        return max_batch(ModelConfig(batching=Batching(max_size=configured)), Traits(max_batch=own))

    assert [limit(0, 0), limit(8, 0), limit(0, 4), limit(8, 4)] == [0, 8, 4, 4]


def test_a_request_has_no_more_rows_than_a_batch() -> None:
    def limit(configured: int, own: int, **method: Any) -> int:
        signature = Signature({"a": Method(inputs=(X,), outputs=(X,), **method)})
        config = ModelConfig(batching=Batching(max_size=configured))
        return chosen(signature, config, Traits(max_batch=own)).methods["a"].max_rows

    limits = [(0, 0), (8, 0), (0, 4), (8, 4)]
    assert [limit(*given, batching="rows") for given in limits] == [0, 8, 4, 4]
    assert limit(8, 2, batching="rows", max_rows=2) == 2
    assert limit(8, 1, batching="rows", max_rows=1) == 1
    assert limit(8, 4, batching="items") == 0
    # Not to share a run is no bound on one's own rows.
    assert limit(1, 0, batching="rows") == limit(0, 1, batching="rows") == 0


def test_the_configured_method_comes_first() -> None:
    signature = Signature({"a": METHOD, "b": METHOD})
    assert chosen(signature, ModelConfig(), Traits()).default == "a"
    assert list(chosen(signature, ModelConfig(default_method="b"), Traits()).methods) == ["b", "a"]
    with pytest.raises(LoadFailed, match=r"default_method: no method 'c'"):
        chosen(signature, ModelConfig(default_method="c"), Traits())


def test_names_are_given_where_they_fit() -> None:
    config = ModelConfig(columns=("w", "h"), labels=("no", "yes"))
    method = chosen(Signature({"a": METHOD}), config, Traits()).methods["a"]
    assert method.inputs[0].columns == ("w", "h")
    assert method.outputs[0].labels == ("no", "yes")
    other = chosen(Signature({"a": METHOD}), ModelConfig(columns=("w",)), Traits()).methods["a"]
    assert other.inputs[0].columns == ()
