"""Message classes of our .proto files, from a descriptor pool of our own.

Protobuf's default pool is left alone: a client library in the same process may define the same
public names there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

if TYPE_CHECKING:
    from collections.abc import Mapping

_DESCRIPTORS: Final = Path(__file__).parent / "proto" / "descriptors.binpb"


@cache
def files() -> Mapping[str, bytes]:
    """Every file's serialized FileDescriptorProto by its name, each after those it imports."""
    found = FileDescriptorSet.FromString(_DESCRIPTORS.read_bytes())
    return {file.name: file.SerializeToString() for file in found.file}


@cache
def pool() -> DescriptorPool:
    """The private pool with all files."""
    pool = DescriptorPool()
    for file in files().values():
        pool.AddSerializedFile(file)
    return pool


@cache
def services() -> tuple[str, ...]:
    """Full names of all services, sorted."""
    return tuple(
        sorted(
            service.full_name
            for name in files()
            for service in pool().FindFileByName(name).services_by_name.values()
        )
    )


@cache
def message(full_name: str) -> Any:
    """The class of a message, such as `inference.ModelInferRequest`.

    Raises: KeyError if no file defines it.
    """
    return GetMessageClass(pool().FindMessageTypeByName(full_name))


def decode_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The length that starts at `at`, and the place behind it.

    Raises: IndexError if it is cut off, OverflowError if it is longer than any length may be.
    """
    value = 0
    for shift in range(0, 35, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise OverflowError("a length of more than five bytes")


def varint(value: int) -> bytes:
    """A number of at least 0 as protobuf writes it, seven bits a byte, lowest first."""
    if value < 0x80:
        return _ONE_BYTE[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_ONE_BYTE: Final = tuple(bytes((value,)) for value in range(256))


def field(tag: int, payload: bytes) -> bytes:
    """A length-delimited field; `tag` is the number and wire type in one byte."""
    return _ONE_BYTE[tag] + varint(len(payload)) + payload
