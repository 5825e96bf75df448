"""Turns the `options` of an ONNX model into session options and execution providers."""

from __future__ import annotations

import mmap
import re
from typing import TYPE_CHECKING, Any, Final

from salver.errors import LoadFailed
from salver.runtimes.files import refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from salver.interfaces import LoadSpec

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"

_FATAL: Final = 4
_ENTRY: Final = re.compile(rb"((?:session|optimization|mlas|memory)\.[a-zA-Z0-9_.]*[a-zA-Z0-9])\0")


def session_options(spec: LoadSpec) -> Any:
    """SessionOptions for `spec`: our defaults, then what the user says in `options.session`.

    Raises: LoadFailed naming a key that does not exist or a value of the wrong type.
    """
    from onnxruntime import SessionOptions

    options = spec.config.options
    refuse_unknown(options, ("session", "providers"), "option")
    wanted = dict(_mapping(options.get("session", {}), "options.session"))
    entries = _mapping(wanted.pop("config_entries", {}), "options.session.config_entries")
    session = SessionOptions()
    session.intra_op_num_threads = spec.threads
    session.inter_op_num_threads = 1
    # Errors come as exceptions; a log line for each would let a client fill the disk.
    session.log_severity_level = _FATAL
    public = [key for key in dir(session) if not key.startswith("_")]
    settable = [key for key in public if not callable(getattr(session, key))]
    refuse_unknown(wanted, [*settable, "config_entries"], "session option")
    for key, value in wanted.items():
        setattr(session, key, _typed(key, value, getattr(session, key)))
    # Instances share the cores: a pool that spins after a run takes them from the others.
    session.add_session_config_entry("session.intra_op.allow_spinning", "0")
    _check_entries(entries)
    for key, value in entries.items():
        session.add_session_config_entry(key, _entry(value))
    return session


def _typed(key: str, value: Any, default: Any) -> Any:
    """`value` as the type of `default`; the members of enumerations are given by name."""
    members = getattr(type(default), "__members__", None)
    if members is not None:
        refuse_unknown([value], members, key)
        return members[value]
    if type(value) is not type(default):
        expected = {bool: "true or false", int: "a whole number", str: "text"}[type(default)]
        raise LoadFailed(f"session option {key!r} must be {expected}, not {value!r}")
    return value


def _check_entries(entries: Mapping[str, Any]) -> None:
    """ONNX Runtime takes any key in silence, so it is looked for among those in its library.

    Keys that begin with `ep.` belong to providers in other libraries.
    """
    for key, value in entries.items():
        if not isinstance(value, str | int | float):
            raise LoadFailed(
                f"session config entry {key!r} must be text or a number, not {value!r}"
            )
    keys = [key for key in entries if not key.startswith("ep.")]
    if not keys:
        return
    from onnxruntime.capi import onnxruntime_pybind11_state as library

    with (
        open(library.__file__, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        known = {key.decode() for key in _ENTRY.findall(mapped)}
    refuse_unknown(keys, known, "session config entry")


def _entry(value: str | float) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise LoadFailed(f"{where} must be keys and values, not {value!r}")
    return value


Provider = tuple[str, dict[str, Any]]


def providers(spec: LoadSpec) -> list[Provider]:
    """The wanted providers with their options, most wanted first.

    Raises: LoadFailed for a provider or device that ONNX Runtime does not know.
    """
    listed = spec.config.options.get("providers")
    device, _, number = spec.device.partition(":")
    if device not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise LoadFailed(f"ONNX Runtime takes device cpu, cuda or cuda:1, not {spec.device!r}")
    if listed is None:
        wanted: list[Provider] = [(CUDA if device == "cuda" else CPU, {})]
    else:
        wanted = _listed(listed)
    for name, options in wanted:
        if name == CUDA and number:
            options.setdefault("device_id", number)
    return wanted


def _listed(listed: Any) -> list[Provider]:
    from onnxruntime import get_all_providers, get_available_providers

    if not isinstance(listed, list | tuple) or not listed:
        raise LoadFailed(f"options.providers must be a list of names, not {listed!r}")
    wanted: list[Provider] = []
    for item in listed:
        if isinstance(item, dict) and len(item) == 1:
            ((name, options),) = item.items()
            options = dict(_mapping(options or {}, f"options.providers: {name}"))
        else:
            name, options = item, {}
        refuse_unknown([name], {*get_all_providers(), *get_available_providers()}, "provider")
        wanted.append((name, {key: str(value) for key, value in options.items()}))
    return wanted


def available(wanted: Sequence[Provider]) -> list[Provider]:
    """Those of `wanted` that this installation has. A list that ends in the CPU may lose others.

    Raises: LoadFailed.
    """
    from onnxruntime import get_available_providers

    have = get_available_providers()
    missing = [name for name, _ in wanted if name not in have]
    if missing and not may_fall_back(wanted):
        refuse(missing)
    return [provider for provider in wanted if provider[0] in have]


def may_fall_back(wanted: Sequence[Provider]) -> bool:
    return wanted[-1][0] == CPU


def refuse(missing: Sequence[str]) -> None:
    """Raises: LoadFailed with the ways out."""
    raise LoadFailed(
        f"{' and '.join(missing)} cannot be used here: install the ONNX Runtime that has it "
        f"(onnxruntime-gpu for CUDA), serve with device cpu, or end options.providers with {CPU} "
        "to allow that"
    )
