from __future__ import annotations

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2

from salver.codecs.protobuf import message
from salver.codecs.reflection import answer
from salver.errors import InvalidInput

V1ALPHA = "grpc.reflection.v1alpha"


def ask(**question):
    request = reflection_pb2.ServerReflectionRequest(host="h", **question)
    found = reflection_pb2.ServerReflectionResponse.FromString(
        answer(request.SerializeToString(), V1ALPHA)
    )
    assert found.original_request == request
    assert found.valid_host == "h"
    return found


def names(response):
    found = response.file_descriptor_response.file_descriptor_proto
    return [FileDescriptorProto.FromString(file).name for file in found]


def test_lists_services():
    found = [s.name for s in ask(list_services="").list_services_response.service]
    assert "inference.GRPCInferenceService" in found
    assert "grpc.health.v1.Health" in found


@pytest.mark.parametrize(
    "symbol",
    [
        "inference.GRPCInferenceService",
        "inference.GRPCInferenceService.ModelInfer",
        "inference.ModelInferRequest.InferInputTensor",
    ],
)
def test_finds_the_file_of_a_symbol_with_its_imports(symbol):
    assert names(ask(file_containing_symbol=symbol)) == ["grpc_service.proto", "model_config.proto"]


def test_finds_a_file_by_name():
    assert names(ask(file_by_filename="model_config.proto")) == ["model_config.proto"]


def test_extensions():
    name = "inference.ModelInferRequest"
    found = ask(all_extension_numbers_of_type=name).all_extension_numbers_response
    assert (found.base_type_name, list(found.extension_number)) == (name, [])


@pytest.mark.parametrize(
    "question",
    [
        {"file_by_filename": "none.proto"},
        {"file_containing_symbol": "inference.Nothing"},
        {"file_containing_extension": {"containing_type": "x", "extension_number": 1}},
        {"all_extension_numbers_of_type": "inference.Nothing"},
        {},
    ],
)
def test_unknown(question):
    assert ask(**question).error_response.error_code == 5


def test_v1():
    package = "grpc.reflection.v1"
    request = message(f"{package}.ServerReflectionRequest")(list_services="*")
    found = message(f"{package}.ServerReflectionResponse").FromString(
        answer(request.SerializeToString(), package)
    )
    assert len(found.list_services_response.service) == 4


def test_not_a_message():
    with pytest.raises(InvalidInput):
        answer(b"\x0a\xff", V1ALPHA)
