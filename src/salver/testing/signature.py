"""What makes a signature well formed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from salver.signature import ANY, Signature
from salver.testing.clauses import expect
from salver.types import BYTES, DTYPES

if TYPE_CHECKING:
    from salver.signature import Method, TensorSpec


def check_signature(signature: Signature) -> None:
    """Raises: AssertionError naming the method, the tensor and what is wrong with it."""
    clause = "Model.signature is a Signature with at least one method"
    expect(isinstance(signature, Signature) and bool(signature.methods), clause, repr(signature))
    for name, method in signature.methods.items():
        expect(bool(name), "A method has a name", repr(name))
        _check_method(f"method {name!r}", method)


def _check_method(where: str, method: Method) -> None:
    for specs in (method.inputs, method.outputs):
        names = [spec.name for spec in specs]
        clause = "Inputs, and outputs, have names that differ"
        expect(all(names) and len(set(names)) == len(names), clause, f"{where}: {names}")
        for spec in specs:
            _check_spec(f"{where}, {spec.name!r}", method, spec)
    expect(
        bool(method.default_outputs()),
        "A method gives an output without being asked for it",
        f"{where} has none",
    )
    expect(
        method.batching != "rows" or bool(method.inputs),
        "A method that is batched by rows has inputs",
        f"{where} has none",
    )
    for role in ("label", "probabilities"):
        found = [spec.name for spec in method.outputs if spec.role == role]
        expect(len(found) < 2, f"At most one output has the role {role!r}", f"{where}: {found}")


def _check_spec(where: str, method: Method, spec: TensorSpec) -> None:
    clause = "TensorSpec.dtype is one of salver.types"
    expect(DTYPES.get(spec.dtype.name) is spec.dtype, clause, f"{where}: {spec.dtype!r}")
    clause = "TensorSpec.shape is a tuple of lengths, -1 for any"
    is_shape = type(spec.shape) is tuple and all(type(d) is int and d >= ANY for d in spec.shape)
    expect(is_shape, clause, f"{where}: {spec.shape!r}")
    expect(
        method.batching != "rows" or spec.shape[:1] in ((ANY,), (method.max_rows or ANY,)),
        "Dimension 0 of every input and output counts rows where batching is 'rows'",
        f"{where}: {list(spec.shape)}",
    )
    expect(
        spec.content == "tensor" or spec.dtype is BYTES,
        "TensorSpec.content says what BYTES hold",
        f"{where}: {spec.content!r} of {spec.dtype.name}",
    )
    if spec.role == "probabilities" and spec.labels and spec.shape and spec.shape[-1] != ANY:
        expect(
            len(spec.labels) == spec.shape[-1],
            "TensorSpec.labels name the classes of its last dimension",
            f"{where}: {len(spec.labels)} labels, shape {list(spec.shape)}",
        )
