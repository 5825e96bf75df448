"""The ONNX project's own backend tests, answered by a server instead of a session.

Each case is a model with inputs and expected outputs. Cases that ONNX Runtime itself fails in this
process are excepted, as are types for which the protocol has no datatype; all others are served
from one repository, and the server's answers are compared with the expected ones.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tritonclient.grpc")
import grpc
import ml_dtypes
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from tritonclient.grpc import service_pb2, service_pb2_grpc

from salver.types import BF16, DTYPES, Packed, dtype_of_array, pack_bytes

CHUNK = 500
LEAST_SERVED = 1500
"""Cases; fewer mean that what is excepted is excepted wrongly."""
GRPC_STEP = 15
"""Every so many cases one is asked for over gRPC, too."""
NO_TENSOR = "sequences, maps and optionals have no datatype in the protocol"
NO_DATATYPE = "float8, float4, int4, int2 and complex numbers have no datatype in the protocol"
NO_OPERATOR = "ONNX Runtime has no such operator, or not for these types"
OTHER_ANSWER = "ONNX Runtime itself gives other answers"
NOT_IN_RUNTIME = "ONNX Runtime itself cannot open or run it here"
TIMEOUT_S = 60
MAX_IR_VERSION = 13
"""What ONNX Runtime reads; the cases use nothing that newer ones brought."""
# It takes operators whose version is not final only if it is asked to, here and in the server.
os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"
NO_SUCH_OPERATOR = re.compile("NotImplemented|InvalidGraph|is not a registered|Type Error")
_ELEMENTS = {
    TensorProto.BOOL, TensorProto.STRING, TensorProto.FLOAT16, TensorProto.BFLOAT16,
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.UINT8, TensorProto.UINT16,
    TensorProto.UINT32, TensorProto.UINT64, TensorProto.INT8, TensorProto.INT16,
    TensorProto.INT32, TensorProto.INT64,
}  # fmt: skip


class Case(NamedTuple):
    """A model, its inputs and expected outputs, and how near the answers must be."""

    name: str
    model: bytes
    pairs: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


def as_array(value: Any) -> Any:
    """A tensor of a case, which may be a message, a scalar or an array; lists are no tensors."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return value if value is None or isinstance(value, list) else np.asarray(value)


def arrays(values: Any) -> list[Any]:
    return list(map(as_array, values))


def serialized(model: Any) -> bytes:
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    found: bytes = model.SerializeToString()
    return found


def node_cases() -> list[Case]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return [
            Case(
                case.name,
                serialized(case.model),
                [(arrays(inputs), arrays(outputs)) for inputs, outputs in case.data_sets],
                case.rtol,
                case.atol,
            )
            for case in collect_testcases(None)
        ]


def read(file: Path, kind: Any) -> Any:
    """A value from a file, as an array, or as a list for what is no tensor."""
    if kind.WhichOneof("value") != "tensor_type":
        return []
    return as_array(onnx.load_tensor(file))


def stored_cases(kind: str) -> list[Case]:
    """Cases that are kept in files."""
    found = []
    for case in load_model_tests(kind=kind):
        folder = Path(case.model_dir)
        model = onnx.load(folder / "model.onnx")
        pairs = [
            (
                values(data, "input", model.graph.input),
                values(data, "output", model.graph.output),
            )
            for data in sorted(folder.glob("test_data_set_*"))
        ]
        name = f"{kind}-{case.name}"
        found.append(Case(name, serialized(model), pairs, case.rtol, case.atol))
    return found


def values(folder: Path, what: str, declared: Any) -> list[Any]:
    count = len(list(folder.glob(f"{what}_*.pb")))
    return [read(folder / f"{what}_{i}.pb", declared[i].type) for i in range(count)]


def light_cases() -> list[Case]:
    """Networks of the model zoo with small weights; their input is a ramp."""
    found = []
    for file in sorted(Path(onnx.__file__).parent.glob("backend/test/data/light/*[!0-9].onnx")):
        model = onnx.load(file)
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        expected = [onnx.load_tensor(file.with_name(f"{file.stem}_output_0.pb"))]
        feeds = [Runner.generate_dummy_data(value) for value in inputs]
        found.append(Case(file.stem, serialized(model), [(feeds, arrays(expected))], 1e-3, 1e-7))
    return found


@cache
def cases() -> dict[str, Case]:
    """Every case by name."""
    found = [*node_cases(), *light_cases()]
    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        found += stored_cases(kind)
    return {case.name: case for case in found}


# ONNX Runtime in this process


def run_here(case: Case) -> None:
    """Raises whatever ONNX Runtime does, or AssertionError for other outputs than expected."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        case.model, options, providers=["CPUExecutionProvider"]
    )  # fmt: skip
    names = [value.name for value in session.get_inputs()]
    has_bf16 = any("bfloat16" in v.type for v in [*session.get_inputs(), *session.get_outputs()])
    for inputs, expected in case.pairs:
        feed = dict(zip(names, inputs, strict=True))
        if has_bf16:
            feed = {name: ort_value(array) for name, array in feed.items()}
            outputs = session.run_with_ort_values(None, feed)
            compare(case, expected, [from_ort_value(value) for value in outputs])
        else:
            compare(case, expected, session.run(None, feed))


def ort_value(array: Any) -> Any:
    make = onnxruntime.OrtValue
    if array.dtype == ml_dtypes.bfloat16:
        bits = np.ascontiguousarray(array).view(np.uint16)
        return make.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
    return make.ortvalue_from_numpy(np.ascontiguousarray(array))


def from_ort_value(value: Any) -> Any:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = value.shape()
    bits = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape)))
    return np.frombuffer(bits, ml_dtypes.bfloat16).reshape(shape)


def compare(case: Case, expected: list[Any], outputs: list[Any]) -> None:
    Runner.assert_similar_outputs(expected, outputs, case.rtol, case.atol)


@cache
def reason(name: str) -> str:
    """Why a case is excepted; empty if it must be served."""
    case = cases()[name]
    graph = onnx.load_from_string(case.model).graph
    kinds = [value.type for value in (*graph.input, *graph.output)]
    if any(kind.WhichOneof("value") != "tensor_type" for kind in kinds):
        return NO_TENSOR
    if any(kind.tensor_type.elem_type not in _ELEMENTS for kind in kinds):
        return NO_DATATYPE
    try:
        run_here(case)
    except AssertionError:
        return OTHER_ANSWER
    except Exception as error:
        text = f"{type(error).__name__} {error}"
        return NO_OPERATOR if NO_SUCH_OPERATOR.search(text) else NOT_IN_RUNTIME
    return ""


# The server


class Connections(NamedTuple):
    """To one server, by each protocol."""

    http: http.client.HTTPConnection
    grpc: grpc.Channel

    def close(self) -> None:
        self.http.close()
        self.grpc.close()


class Served:
    """Servers of a few hundred models each; one runs at a time."""

    def __init__(self, serve: Any, root: Path) -> None:
        self._serve = serve
        self._root = root
        self._names = list(cases())
        self._chunk = -1
        self._server: Any = None
        self._connections: Any = None

    def connections(self, name: str) -> Connections:
        """Connections to the server that has the model."""
        chunk = self._names.index(name) // CHUNK
        if chunk != self._chunk:
            self.stop()
            self._server = self._serve(self._folder(chunk), "--mode", "none")
            address = self._server.address
            self._connections = Connections(
                http.client.HTTPConnection(address, timeout=TIMEOUT_S),
                grpc.insecure_channel(address),
            )
            self._chunk = chunk
        found: Connections = self._connections
        return found

    def _folder(self, chunk: int) -> Path:
        folder = self._root / str(chunk)
        for name in self._names[chunk * CHUNK : (chunk + 1) * CHUNK]:
            if not reason(name):
                (folder / name).mkdir(parents=True)
                (folder / name / "model.onnx").write_bytes(cases()[name].model)
        return folder

    def stop(self) -> None:
        if self._server is not None:
            self._connections.close()
            self._server.stop()


@pytest.fixture(scope="module")
def served(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = Served(serve, tmp_path_factory.mktemp("models"))
    yield found
    found.stop()


def encoded(name: str, array: Any) -> tuple[dict[str, Any], bytes]:
    """An input of the protocol, and its bytes."""
    if array.dtype == ml_dtypes.bfloat16:
        dtype, data = BF16, array.tobytes()
    else:
        dtype = dtype_of_array(array)
        data = pack_bytes(array.ravel().tolist()) if not dtype.itemsize else array.tobytes()
    parameters = {"binary_data_size": len(data)}
    shape = list(array.shape)
    return {
        "name": name, "datatype": dtype.name, "shape": shape, "parameters": parameters
    }, data  # fmt: skip


def decoded(output: dict[str, Any], data: bytes) -> Any:
    """An output as an array; text as str."""
    dtype, shape = DTYPES[output["datatype"]], output["shape"]
    if not dtype.itemsize:
        items = Packed(data).items(int(np.prod(shape)), output["name"])
        return np.array([item.decode() for item in items], np.object_).reshape(shape)
    kind = ml_dtypes.bfloat16 if dtype is BF16 else dtype.numpy
    return np.frombuffer(data, kind).reshape(shape)


def infer_by_http(connections: Connections, name: str, inputs: list[Any]) -> list[Any]:
    """The outputs of a served model, in the model's order."""
    connection = connections.http
    connection.request("GET", f"/v2/models/{name}")
    answer = connection.getresponse()
    metadata = json.loads(answer.read())
    assert answer.status == 200, metadata["error"]
    names = [value["name"] for value in metadata["inputs"]]
    pairs = [encoded(*item) for item in zip(names, inputs, strict=True)]
    request = {"inputs": [head for head, _ in pairs], "parameters": {"binary_data_output": True}}
    head = json.dumps(request).encode()
    body = b"".join([head, *(data for _, data in pairs)])
    headers = {"Inference-Header-Content-Length": str(len(head))}
    connection.request("POST", f"/v2/models/{name}/infer", body, headers)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, content.decode()
    length = int(answer.headers["Inference-Header-Content-Length"])
    outputs, at = [], length
    for output in json.loads(content[:length])["outputs"]:
        end = at + output["parameters"]["binary_data_size"]
        outputs.append(decoded(output, content[at:end]))
        at = end
    return outputs


def infer_by_grpc(connections: Connections, name: str, inputs: list[Any]) -> list[Any]:
    """The same over gRPC, with tensors as bytes."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(connections.grpc)
    metadata = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=name), timeout=TIMEOUT_S)
    request = service_pb2.ModelInferRequest(model_name=name)
    for spec, array in zip(metadata.inputs, inputs, strict=True):
        head, data = encoded(spec.name, array)
        request.inputs.add(name=spec.name, datatype=head["datatype"], shape=head["shape"])
        request.raw_input_contents.append(data)
    answer = stub.ModelInfer(request, timeout=TIMEOUT_S)
    heads = (
        {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        for output in answer.outputs
    )
    return [
        decoded(head, data) for head, data in zip(heads, answer.raw_output_contents, strict=True)
    ]


def asked() -> list[Any]:
    """Every case by HTTP, and some by gRPC while the same server runs."""
    found = []
    for index, name in enumerate(cases()):
        found.append(pytest.param(name, infer_by_http, id=name))
        if index % GRPC_STEP == 0:
            found.append(pytest.param(name, infer_by_grpc, id=f"{name}-grpc"))
    return found


@pytest.mark.parametrize(("name", "infer"), asked())
def test_the_server_answers_as_expected(served: Served, name: str, infer: Any) -> None:
    why = reason(name)
    if why:
        pytest.skip(why)
    connections = served.connections(name)
    for inputs, expected in cases()[name].pairs:
        compare(cases()[name], expected, infer(connections, name, inputs))


def test_most_cases_are_served() -> None:
    assert sum(not reason(name) for name in cases()) >= LEAST_SERVED
