"""Digests the parts of a program: source files, arrays, and the settings that functions hold.

A task is a few functions, mostly closures: for a model, one holds the model and the loss; for micro-batches,
one holds the loss of a whole batch. So functions are followed to what they hold (closures,
defaults, arguments of partial functions, wrapped functions), objects to their attributes, and classes to
their bases. For each function and class, the whole source file is digested, or its own code if
there is no file, as in a notebook. Imports are not followed.

All files of this package are digested, but none of Python's library or of the packages whose versions are
known (`celo2.evaluate.environment.PACKAGES`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import zlib
from collections.abc import Mapping
from functools import cache, partial
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePath
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from celo2.evaluate.environment import PACKAGES

PACKAGE = Path(__file__).resolve().parents[2]
STANDARD = Path(os.__file__).parent  # Python's standard library
INSTALLED = {"site-packages", "dist-packages"}  # folders of installed packages
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
WHOLE_BYTES = 2**24  # maximum size of arrays that are read completely
PIECES, PIECE_BYTES = 256, 2**14  # sample of larger arrays, evenly spaced
_sources: WeakKeyDictionary[ModuleType, tuple[ModuleSpec | None, str]] = WeakKeyDictionary()


def read_sources() -> None:
    """Reads the source files of this package and of the user's modules, unless they have been read.

    This is called before the first run and after making a task, so that edits to a file hours
    later, while other tasks train, are not mistaken for the imported code. Installed packages are omitted:
    they have many files, and are not edited.
    """
    digest_package()
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and not _is_known(name):
            path = _find_file(module)
            if path and INSTALLED.isdisjoint(path.parts):
                _digest_source(module)


@cache
def digest_package() -> str:
    """Returns the digest of all Python files of this package, which are read once per process."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {_digest_file(path)}\n".encode())
    return digest.hexdigest()


def digest_program(*parts: Any) -> str:
    """Returns the digest of the parts of a program.

    Arrays are digested by shape, type and bytes; above 16 MiB, only a sample of 4 MiB is read. The same
    parts have the same digest in another process.

    Args:
        *parts: Tasks, optimizers, functions, or modules.
    """
    walk = _Walk()
    for part in parts:
        walk.visit(part)
    return walk.finish()


class _Walk:
    """Follows objects to what they hold, and digests each once, in the order of discovery."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._modules: dict[str, ModuleType] = {}
        self._seen: dict[int, tuple[int, Any]] = {}  # keeps objects alive, since ids are reused

    def finish(self) -> str:
        """Returns the digest of everything visited and of its source files."""
        for name in sorted(self._modules):
            self._add(name, _digest_source(self._modules[name]))
        return self._digest.hexdigest()

    def visit(self, thing: Any) -> None:
        """Digests an object and what it holds."""
        if isinstance(thing, PLAIN):
            self._add(type(thing).__name__, repr(thing))
            return
        if id(thing) in self._seen:
            self._add("again", str(self._seen[id(thing)][0]))
            return
        self._seen[id(thing)] = len(self._seen), thing
        match thing:
            case ModuleType():
                self._visit_module(thing.__name__)
            case type():
                self._visit_class(thing)
            case CodeType():
                self._add(thing.co_code.hex(), *thing.co_names)
                self._visit_all(*thing.co_consts)
            case FunctionType():
                self._visit_function(thing)
            case MethodType():
                self._visit_all(thing.__self__, thing.__func__)
            case partial():
                self._visit_all(thing.func, thing.args, thing.keywords)
            case np.ndarray() | jax.Array():
                self._add(*_describe_array(thing))
            case Mapping():
                self._visit_class(type(thing))
                self._visit_all(*(part for item in thing.items() for part in item))
            case list() | tuple():
                self._visit_class(type(thing))
                self._visit_all(*thing)
            case set() | frozenset():
                self._visit_class(type(thing))
                self._add(*sorted(repr(member) for member in thing if isinstance(member, PLAIN)))
            case PurePath():
                self._add(type(thing).__name__, str(thing))
            case SimpleNamespace():
                self._visit_all(*(part for item in vars(thing).items() for part in item))
            case _:
                self._visit_object(thing)

    def _add(self, *texts: str) -> None:
        self._digest.update("\0".join((*texts, "\n")).encode(errors="surrogatepass"))

    def _visit_all(self, *things: Any) -> None:
        self._add(str(len(things)))
        for thing in things:
            self.visit(thing)

    def _visit_module(self, name: str | None) -> bool:
        """Records a module; returns whether it has no file, so that the code itself must be read."""
        module = sys.modules.get(name or "")
        if not isinstance(module, ModuleType) or _is_known(module.__name__):
            return False
        self._modules[module.__name__] = module
        return _find_file(module) is None

    def _visit_class(self, kind: type) -> None:
        for base in kind.__mro__:
            self._add(base.__module__, base.__qualname__)
            if self._visit_module(base.__module__):
                self._visit_all(*(part for part in vars(base).values() if isinstance(part, FunctionType)))

    def _visit_function(self, function: FunctionType) -> None:
        self._add(str(function.__module__), function.__qualname__)
        if self._visit_module(function.__module__):
            self.visit(function.__code__)
        self._visit_all(function.__defaults__, function.__kwdefaults__, vars(function).get("__wrapped__"))
        for cell in function.__closure__ or ():
            try:
                self.visit(cell.cell_contents)
            except ValueError:  # it is empty
                continue

    def _visit_object(self, thing: Any) -> None:
        """Digests an object's class and attributes; of dataclasses only fields, as others may be caches."""
        self._visit_class(type(thing))
        held: Mapping[str, Any] = getattr(thing, "__dict__", {})
        if dataclasses.is_dataclass(thing):
            self._visit_all(*(getattr(thing, field.name, None) for field in dataclasses.fields(thing)))
        elif _is_known(type(thing).__module__) and not _is_ours(type(thing).__module__):
            functions = (held[name] for name in sorted(held) if isinstance(held[name], FunctionType))
            self._visit_all(held.get("__wrapped__"), *functions)  # what JAX or functools has wrapped
        else:
            self._visit_all(*(part for name in sorted(held) for part in (name, held[name])))


def _describe_array(array: Any) -> tuple[str, str, str]:
    """Returns the shape, type and checksum of an array; for large arrays, the checksum of a sample."""
    shape, dtype, checksum = str(array.shape), str(array.dtype), 0
    if isinstance(array, jax.Array):
        if isinstance(array, Tracer) or array.is_deleted():  # it is held but cannot be used
            return shape, dtype, ""
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
    if array.dtype.hasobject:
        return shape, dtype, ""
    for piece in _pieces(np.asarray(array)):
        checksum = zlib.crc32(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data, checksum)
    return shape, dtype, f"{checksum:08x}"


def _pieces(array: np.ndarray) -> list[np.ndarray]:
    """Returns the array, or pieces of it: the first and last elements, and some between."""
    if array.nbytes <= WHOLE_BYTES:
        return [array]
    length = max(1, PIECE_BYTES // array.itemsize)
    starts = np.linspace(0, array.size - length, PIECES).astype(int)
    return [array.flat[start : start + length] for start in starts.tolist()]


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE.name


def _is_known(name: str) -> bool:
    """Returns whether a module's file need not be read: it is this package's, or its version is known."""
    if _is_ours(name) or (top := name.partition(".")[0]) in PACKAGES:
        return True
    path = _find_file(sys.modules[name]) if name in sys.modules else None  # the user's may have the same name
    return top in sys.stdlib_module_names and (path is None or path.is_relative_to(STANDARD))


def _find_file(module: ModuleType) -> Path | None:
    """Returns a module's file; None for one without, such as an interactive session."""
    path = vars(module).get("__file__")
    return Path(path) if path else None


def _digest_source(module: ModuleType) -> str:
    """Returns the digest of a module's file; "" for one without.

    The file is read once for each import, since later edits are not what was imported.
    """
    spec = vars(module).get("__spec__")
    if module not in _sources or _sources[module][0] is not spec:  # it is new, or was reloaded
        path = _find_file(module)
        _sources[module] = spec, _digest_file(path) if path else ""
    return _sources[module][1]


def _digest_file(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
