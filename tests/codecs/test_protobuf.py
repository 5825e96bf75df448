from __future__ import annotations

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from salver.codecs.proto.build import DESCRIPTORS, compile_descriptors
from salver.codecs.protobuf import decode_varint, files, message, pool, services, varint

# KServe's clients read these fields, in Triton's form the messages are empty.
KSERVE_ONLY = {"RepositoryModelLoadResponse", "RepositoryModelUnloadResponse"}


def fields(descriptor):
    found = {}
    for field in descriptor.fields:
        kind = field.message_type or field.enum_type
        found[field.name] = (
            field.number,
            field.type,
            field.is_repeated,
            kind.full_name if kind else None,
            field.containing_oneof.name if field.containing_oneof else None,
        )
    return found


def messages(descriptors):
    for descriptor in descriptors:
        yield descriptor
        yield from messages(descriptor.nested_types)


def test_committed_descriptors_are_compiled_from_the_committed_files():
    committed = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    assert committed == FileDescriptorSet.FromString(compile_descriptors())


@pytest.mark.parametrize(
    ("ours", "public"),
    [
        ("grpc_service.proto", service_pb2),
        ("model_config.proto", model_config_pb2),
        ("grpc/health/v1/health.proto", health_pb2),
        ("grpc/reflection/v1alpha/reflection.proto", reflection_pb2),
    ],
)
def test_fields_are_the_public_ones(ours, public):
    known = {m.full_name: m for m in messages(public.DESCRIPTOR.message_types_by_name.values())}
    checked = 0
    for descriptor in messages(pool().FindFileByName(ours).message_types_by_name.values()):
        if descriptor.name in KSERVE_ONLY:
            continue
        expected = fields(known[descriptor.full_name])
        assert fields(descriptor).items() <= expected.items(), descriptor.full_name
        checked += 1
    assert checked >= 2


@pytest.mark.parametrize("ours", [n for n in files() if n != "grpc/reflection/v1/reflection.proto"])
def test_enums_are_the_public_ones(ours):
    for enum in pool().FindFileByName(ours).enum_types_by_name.values():
        public = descriptor_pool.Default().FindEnumTypeByName(enum.full_name)
        assert {v.name: v.number for v in enum.values} == {v.name: v.number for v in public.values}


def test_methods_are_the_public_ones():
    def described(service):
        return {
            m.name: (
                m.input_type.full_name,
                m.output_type.full_name,
                m.client_streaming,
                m.server_streaming,
            )
            for m in service.methods
        }

    name = "inference.GRPCInferenceService"
    public = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert described(pool().FindServiceByName(name)) == described(public)
    assert services() == (
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        name,
    )


def test_a_client_library_keeps_its_own_classes():
    ours = message("inference.ModelInferRequest")
    assert ours is message("inference.ModelInferRequest")
    assert ours.DESCRIPTOR.file.pool is not descriptor_pool.Default()
    theirs = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"x"])
    assert ours.FromString(theirs.SerializeToString()).raw_input_contents == [b"x"]


def test_unknown_message():
    with pytest.raises(KeyError):
        message("inference.Nothing")


@given(st.integers(0, 2**35 - 1))
def test_varints_come_back(value):
    written = varint(value)
    assert decode_varint(b"?" + written + b"!", 1) == (value, len(written) + 1)


def test_bad_varints():
    with pytest.raises(IndexError):
        decode_varint(b"\x80", 0)
    with pytest.raises(OverflowError, match="more than five"):
        decode_varint(b"\x80" * 5 + b"\x01", 0)
