"""Answers of gRPC's reflection service: what the server offers, as descriptors.

Follows github.com/grpc/grpc/blob/master/doc/server-reflection.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from salver.codecs.protobuf import files, message, pool, services
from salver.errors import InvalidInput

if TYPE_CHECKING:
    from salver.types import Buffer

_NOT_FOUND = 5


def answer(data: Buffer, package: str) -> bytes:
    """The serialized answer to one request of `package` (`grpc.reflection.v1` or `.v1alpha`).

    Raises: InvalidInput if the bytes are not a request.
    """
    try:
        request = message(f"{package}.ServerReflectionRequest").FromString(data)
    except DecodeError:
        raise InvalidInput("the message is not a ServerReflectionRequest") from None
    response = message(f"{package}.ServerReflectionResponse")(
        valid_host=request.host, original_request=request
    )
    try:
        _fill(response, request)
    except KeyError:
        response.error_response.error_code = _NOT_FOUND
        response.error_response.error_message = "there is no such file, symbol or extension"
    encoded: bytes = response.SerializeToString()
    return encoded


def _fill(response: Any, request: Any) -> None:
    kind = request.WhichOneof("message_request")
    if kind == "list_services":
        for name in services():
            response.list_services_response.service.add(name=name)
    elif kind == "all_extension_numbers_of_type":
        found = pool().FindMessageTypeByName(request.all_extension_numbers_of_type)
        response.all_extension_numbers_response.base_type_name = found.full_name
    elif kind == "file_by_filename":
        _fill_files(response, pool().FindFileByName(request.file_by_filename))
    elif kind == "file_containing_symbol":
        _fill_files(response, _file_of(request.file_containing_symbol))
    else:
        raise KeyError(kind)


def _file_of(symbol: str) -> Any:
    try:
        return pool().FindFileContainingSymbol(symbol)
    except KeyError:
        return pool().FindMethodByName(symbol).containing_service.file


def _fill_files(response: Any, file: Any) -> None:
    """Adds the file and then all that it imports."""
    wanted = {file.name: file}
    waiting = [file]
    while waiting:
        for needed in waiting.pop().dependencies:
            if needed.name not in wanted:
                wanted[needed.name] = needed
                waiting.append(needed)
    response.file_descriptor_response.file_descriptor_proto.extend(files()[name] for name in wanted)
