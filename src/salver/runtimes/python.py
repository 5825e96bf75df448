"""Python files: a class or function with type hints, as `salver.authoring` describes it."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import logging
import re
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salver.authoring import CURRENT, Declaration, Scope
from salver.codecs.python_source import candidates, declared, model_file
from salver.errors import LoadFailed, did_you_mean
from salver.interfaces import Probe, Traits
from salver.observe.user_metrics import forget, own_registry
from salver.places import told
from salver.runtimes.files import must_be_trusted
from salver.runtimes.hints import HintError
from salver.runtimes.imports import OWN_PREFIX, importable, is_authors
from salver.runtimes.methods import ServedMethod
from salver.runtimes.private_loop import PrivateLoop, Run
from salver.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from salver.codecs.python_source import Candidate
    from salver.config import ModelConfig
    from salver.interfaces import Caller, Emit, LoadSpec, Results
    from salver.types import Work

log = logging.getLogger("salver.runtimes.python")

_serial = itertools.count(1)


class PythonRuntime:
    """Loads a `.py` file, or a folder with `model.py`.

    Files beside it can be imported while it loads; each load gets its own copy of them.
    """

    name = "python"

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        file = model_file(path, config)
        if file is None:
            return None
        problem = ""
        try:
            found = candidates(file)
            if not _is_meant(found, config):
                return None
            declared(found, file, config)
        except LoadFailed as error:
            # It is a Python model; `load` refuses it for this reason.
            problem = error.message
        return Probe(
            runtime=self.name,
            file=file.name,
            size_bytes=file.stat().st_size,
            trust=_why_trust(file),
            problem=problem,
        )

    def load(self, spec: LoadSpec) -> PythonModel:
        file = model_file(spec.path, spec.config)
        if file is None:
            raise LoadFailed(
                f"{spec.path.name}: there is no {spec.config.file or 'model.py'} in it"
            )
        must_be_trusted(spec, _why_trust(file))
        file = file.resolve()
        found = declared(candidates(file), file, spec.config)
        for message in found.unread:
            spec.warn(message)
        module = f"{OWN_PREFIX}{next(_serial)}_{re.sub(r'[^0-9A-Za-z]', '_', spec.ref.name)}"
        token = CURRENT.set(Scope(spec.caller))
        try:
            with importable(file.parent), own_registry(module):
                return _open(file, module, found.target, spec)
        except BaseException:
            sys.modules.pop(module, None)
            raise
        finally:
            CURRENT.reset(token)


def _why_trust(file: Path) -> str:
    return f"{file.name} is Python code, which runs with all rights of the server"


def _is_meant(found: list[Candidate], config: ModelConfig) -> bool:
    """A file beside weights may define their network: then it is no model of its own."""
    wanted = config.class_name.rpartition(":")[2]
    names = [candidate.name for candidate in found]
    return config.runtime == PythonRuntime.name or (wanted in names if wanted else bool(names))


def _open(file: Path, module_name: str, name: str, spec: LoadSpec) -> PythonModel:
    where = importlib.util.spec_from_file_location(module_name, file)
    assert where is not None
    assert where.loader is not None
    module = importlib.util.module_from_spec(where)
    sys.modules[module_name] = module
    with _blamed_on_author(file):
        where.loader.exec_module(module)
    target = getattr(module, name, None)
    if target is None:
        raise LoadFailed(
            f"{file.name}: defines no {name!r}.{did_you_mean(name, vars(module))} "
            "class_name names the class or function to serve"
        )
    if spec.cancelled():
        raise LoadFailed("loading was cancelled")
    declaration = getattr(target, "__salver__", Declaration())
    arguments = _arguments(target, file, spec, declaration)
    user = target
    if isinstance(target, type):
        with _blamed_on_author(file):
            user = target(**arguments)
    methods = _served(user, file, spec.warn)
    labels = spec.config.labels or declaration.labels
    fits = [method.set_labels(labels) for method in methods.values() if labels]
    if labels and not any(fits):
        spec.warn(f"{file.name}: no output fits the {len(labels)} labels")
    return PythonModel(user, methods, _traits(spec.config, declaration), module_name, spec.caller)


class PythonModel:
    """The author's object, ready to run."""

    def __init__(
        self,
        user: Any,
        methods: dict[str, ServedMethod],
        traits: Traits,
        module_name: str,
        caller: Caller | None,
    ) -> None:
        self.signature = Signature({name: method.method for name, method in methods.items()})
        self.traits = traits
        self._methods = methods
        self._module_name = module_name
        self._caller = caller
        self._close = getattr(user, "close", None)
        is_async = any(method.is_async for method in methods.values())
        if is_async or inspect.iscoroutinefunction(self._close):
            self._private: PrivateLoop | None = PrivateLoop(module_name)
        else:
            self._private = None
        self._runs: dict[int, Run] = {}

    def run(self, work: Work, emit: Emit) -> Results:
        run = self._runs[id(work)] = Run(self._private)
        token = CURRENT.set(Scope(self._caller, work))
        try:
            return self._methods[work.method].run(work, emit, run)
        finally:
            CURRENT.reset(token)
            del self._runs[id(work)]

    def cancel(self, work: Work, index: int) -> None:
        """Ends a stream before its next item, and a coroutine where it waits; batches run on."""
        run = self._runs.get(id(work))
        if run is not None and work.num_calls == 1:
            run.cancel()

    def close(self) -> None:
        """Calls the author's own `close`, if there is one."""
        try:
            if callable(self._close) and inspect.iscoroutine(ended := self._close()):
                Run(self._private).wait(ended)
        except Exception:
            log.exception("a model's own close() failed")
        if self._private is not None:
            self._private.close()
        sys.modules.pop(self._module_name, None)
        forget(self._module_name)


def _traits(config: ModelConfig, declaration: Declaration) -> Traits:
    idempotent = config.idempotent
    return Traits(
        holds_gil=True,
        idempotent=declaration.idempotent if idempotent is None else idempotent,
        thread_safe=declaration.thread_safe,
        max_batch=config.batching.max_size or declaration.max_batch,
    )


def _arguments(target: Any, file: Path, spec: LoadSpec, declaration: Declaration) -> dict[str, Any]:
    """What `__init__` is given: the options of `model.yaml`, and device and threads if it asks."""
    known = inspect.signature(target).parameters if isinstance(target, type) else {}
    given = dict(spec.config.options)
    offered = {
        "device": spec.config.device or declaration.device or spec.device,
        "threads": spec.threads,
    }
    given = {key: value for key, value in offered.items() if key in known} | given
    if "device" not in known and spec.device != "cpu":
        spec.warn(f"{file.name}: __init__ takes no 'device'; its code chooses, not {spec.device}")
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for key in given:
        if key not in known and not takes_any:
            raise LoadFailed(
                f"{file.name}: __init__ takes no {key!r}, which options give."
                f"{did_you_mean(key, known)}"
            )
    for key, parameter in known.items():
        is_single = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if is_single and key not in given and parameter.default is parameter.empty:
            raise LoadFailed(f"{file.name}: __init__ needs {key!r}; give it under options")
    return given


def _served(user: Any, file: Path, warn: Callable[[str], None]) -> dict[str, ServedMethod]:
    """Methods to serve by name: `predict` or else `__call__` first, then others with hints.

    Raises: LoadFailed if there is none, or the first one has hints that cannot be served.
    """
    found: dict[str, ServedMethod] = {}
    for name, function, is_main in _functions(user, file.parent):
        try:
            found[name] = ServedMethod(name, function)
        except HintError as error:
            if is_main:
                raise LoadFailed(f"{file.name}: {name}: {error}") from None
            warn(f"{file.name}: {name} is not served: {error}")
    if not found:
        raise LoadFailed(f"{file.name}: no public method of {type(user).__name__} has type hints")
    return found


def _functions(user: Any, folder: Path) -> Iterator[tuple[str, Callable[..., Any], bool]]:
    """Served name, function, and whether it must be servable."""
    if inspect.isfunction(user):
        yield user.__name__, user, True
        return
    names: dict[str, Any] = {}
    for base in reversed(type(user).__mro__):
        module = sys.modules.get(base.__module__)
        if is_authors(getattr(module, "__file__", None), folder):
            names |= {name: f for name, f in vars(base).items() if inspect.isfunction(f)}
    main = next((name for name in ("predict", "__call__") if name in names), "")
    if main:
        yield "predict", getattr(user, main), True
    for name, function in names.items():
        is_public = not name.startswith("_") and name not in (main, "close")
        if is_public and "return" in function.__annotations__:
            yield name, getattr(user, name), False


@contextmanager
def _blamed_on_author(file: Path) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        raise LoadFailed(_explain(error, file.parent)) from error


def _explain(error: BaseException, folder: Path) -> str:
    """The error as its author sees it: the last line of their own code that led to it."""
    where, message = "", told(error)
    for frame in traceback.extract_tb(error.__traceback__):
        if is_authors(frame.filename, folder):
            where = f"{Path(frame.filename).relative_to(folder)}:{frame.lineno}: "
    if isinstance(error, SyntaxError) and is_authors(error.filename, folder):
        where = f"{Path(str(error.filename)).relative_to(folder)}:{error.lineno}: "
        message = f"{type(error).__name__}: {error.msg}"
    if isinstance(error, FileNotFoundError) and (folder / str(error.filename)).exists():
        message += "; it lies beside the model: use Path(__file__).parent / ..."
    return f"{where}{message}"
