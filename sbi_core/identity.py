"""What a program is made of: a hash of its code and of all that it reads, the same in every process."""

import argparse
import dataclasses
import dis
import functools
import hashlib
import re
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.parameters import Parameter
from sbi_core.priors import describe

_PRINTED = (range, slice, bytearray, Fraction, Decimal, date, timedelta, time, re.Pattern, torch.dtype, torch.device)
"""What its text says all about."""

_READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_CLOSED_OVER = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_WRITES = ("STORE_GLOBAL", "STORE_DEREF", "DELETE_GLOBAL", "DELETE_DEREF")


def plain(value: Any) -> Any:
    """Make a setting comparable and writable: arrays become a hash, functions their name and a hash of their code."""
    from sbi_core.simulator import Simulator

    if isinstance(value, Tensor | np.ndarray):
        return _array(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Simulator):
        return {"simulator": value.name, "version": value.version, **value.settings}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Parameter):
        return dataclasses.asdict(value)
    if isinstance(value, types.FunctionType):
        return f"{value.__qualname__}:{identity(value.__code__)}"
    return getattr(value, "__qualname__", type(value).__qualname__)


def program(value: Any) -> str:
    """Name of a function, or of an object that can be called, with its `identity`."""
    return f"{getattr(value, '__qualname__', type(value).__qualname__)}:{identity(value)}"


def identity(value: Any) -> str:
    """Hash of a function, or of an object that can be called, with all that decides what it does, 16 hex digits.

    These are its code, defaults and closure; the module-level functions, classes, numbers, containers, arrays and
    networks that it names, by value, and theirs in turn; the public attributes of objects (so a private one may be a
    cache). What Python or an installed package defines is known by its name. Not seen are: what a name is only found
    out to mean while the function runs (an import inside it, `getattr`, `globals()[...]`), files, compiled code, and
    tables of other libraries. A name to which the function itself assigns is its state, and is left out.

    So is what has a leading underscore in its name, a cache perhaps, unless it is code. Of a function that is installed
    itself, its own code counts too. Byte code differs between minor versions of Python.

    >>> one, same, two = (identity(functools.partial(max, k)) for k in (1, 1, 2))
    >>> one == same != two
    True
    """
    root = value
    while isinstance(root, functools.partial | types.MethodType):
        root = root.func if isinstance(root, functools.partial) else root.__func__
    installed = isinstance(root, types.FunctionType) and _origin(root.__module__) != "own"
    try:
        return _hash((root.__code__, value), {}) if installed else _hash(value, {})
    except RecursionError:
        return hashlib.sha256(_name(type(value)).encode()).hexdigest()[:16]


def _hash(value: Any, seen: dict[int, tuple[Any, str]]) -> str:
    if value is None or (
        isinstance(value, bool | int | float | complex | str | bytes) and not isinstance(value, np.generic)
    ):
        return f"{type(value).__name__} {value!r}"
    if id(value) not in seen:
        seen[id(value)] = value, "itself"  # holds it, so that nothing else gets its id meanwhile
        parts = _parts(value, lambda part: _hash(part, seen))
        seen[id(value)] = value, hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return seen[id(value)][1]


def _parts(value: Any, of: Callable[[Any], str]) -> list[Any]:
    """What a thing consists of, as text that is the same in every process."""
    from sbi_core.simulator import Simulator

    kind = type(value)
    name = _name(kind)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return [_array(value)]
    if isinstance(value, _PRINTED):
        return [name, repr(value)]
    if isinstance(value, list | tuple | deque):
        simple = all(type(item) in (int, float, bool, str) for item in value)
        return [name, repr(list(value))] if simple else [name, *map(of, value)]
    if isinstance(value, set | frozenset):
        return [name, *sorted(map(of, value))]
    if isinstance(value, dict | types.MappingProxyType) or (
        isinstance(value, Mapping) and _origin(kind.__module__) != "Python"  # not the environment
    ):
        return [name, *sorted((of(key), of(item)) for key, item in value.items())]
    if isinstance(value, functools.partial):
        return [name, of(value.func), of(value.args), of(value.keywords)]
    if isinstance(value, types.MethodType):
        return [name, of(value.__func__), of(value.__self__)]
    if isinstance(value, property | functools.cached_property):
        return [name, of(value.fget if isinstance(value, property) else value.func)]
    if isinstance(value, Simulator):
        return [name, value.version, *((key, of(item)) for key, item in _state(value))]
    if isinstance(value, Distribution):
        return [name, of(describe(value))]
    if isinstance(value, types.CodeType):
        return _code(value, of)
    if isinstance(value, types.FunctionType):
        return _function(value, of)
    if isinstance(value, type):
        return _class(value, of)
    inner = getattr(value, "__wrapped__", getattr(value, "py_func", None))  # lru_cache, staticmethod, jit
    if inner is not None:
        return [name, of(inner)]
    if _origin(kind.__module__) == "Python" and not isinstance(value, types.SimpleNamespace | argparse.Namespace):
        return [name, getattr(value, "__module__", ""), getattr(value, "__qualname__", getattr(value, "__name__", ""))]
    return [name, getattr(value, "__name__", ""), of(kind), *((key, of(item)) for key, item in _state(value))]


def _name(kind: type) -> str:
    """What a class is called; the user's own, wherever it was loaded from, without its module."""
    return kind.__qualname__ if _origin(kind.__module__) == "own" else f"{kind.__module__}.{kind.__qualname__}"


def _function(value: types.FunctionType, of: Callable[[Any], str]) -> list[Any]:
    module = value.__globals__.get("__name__")
    if _origin(module) == "own":
        read = sorted({name: of(thing) for name, thing in _read(value)}.items())
        code = _code(value.__code__, of, skip=value.__doc__)
        return [value.__qualname__, code, of(value.__defaults__), of(value.__kwdefaults__), read]
    name = [module, value.__qualname__]
    if hasattr(value, "__wrapped__"):
        return [*name, of(value.__wrapped__)]
    return [*name, *(of(cell.cell_contents) for cell in value.__closure__ or () if _filled(cell))]


def _class(value: type, of: Callable[[Any], str]) -> list[Any]:
    name = _name(value)
    if _origin(value.__module__) != "own":
        return [name]
    kept = [(key, item) for key, item in sorted(vars(value).items()) if callable(item) or not key.startswith("__")]
    return [name, *map(of, value.__bases__), *((key, of(item)) for key, item in kept)]


def _state(value: Any) -> Iterator[tuple[str, Any]]:
    """Public attributes of an object; weights and parts of a network too."""
    slots = (slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ()))
    found = {slot: getattr(value, slot) for slot in slots if isinstance(slot, str) and hasattr(value, slot)}
    found |= getattr(value, "__dict__", {})
    network = ("_parameters", "_buffers", "_modules") if isinstance(value, torch.nn.Module) else ()
    yield from ((key, item) for key, item in sorted(found.items()) if not key.startswith("_") or key in network)


def _code(code: types.CodeType, of: Callable[[Any], str], skip: str | None = None) -> list[Any]:
    """Byte code, which comments, layout and names of local variables leave alone, and which is what runs."""
    kept = code.co_consts[1:] if skip is not None and code.co_consts[:1] == (skip,) else code.co_consts
    constants = [_code(part, of) if isinstance(part, types.CodeType) else of(part) for part in kept]
    arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    return [code.co_code.hex(), code.co_exceptiontable.hex(), code.co_names, arguments, constants]


def _read(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function finds under the names that it reads from its module and its closure, `module.name` too."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closure = {name: cell.cell_contents for name, cell in cells if _filled(cell)}
    steps = [step for code in _codes(function.__code__) for step in dis.get_instructions(code)]
    written = {step.argval for step in steps if step.opname in _WRITES}
    name, thing = "", None
    for step in steps:
        scope = function.__globals__ if step.opname in _READS else closure if step.opname in _CLOSED_OVER else {}
        if step.argval in scope and step.argval not in written and not _hidden(scope[step.argval], step.argval):
            name, thing = step.argval, scope[step.argval]
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(thing, types.ModuleType):
            own = _origin(thing.__name__) == "own"
            name, inner = f"{name}.{step.argval}", getattr(thing, step.argval, None)
            thing = inner if own or isinstance(inner, types.ModuleType) else f"{thing.__name__}.{step.argval}"
        elif step.opname != "EXTENDED_ARG":
            thing = None
            continue
        if not isinstance(thing, types.ModuleType):
            yield name, thing


def _hidden(value: Any, name: str) -> bool:
    """Whether something is left out: a cache, the module's own description. Functions and modules are not."""
    return name.startswith("_") and not isinstance(value, types.FunctionType | types.ModuleType | type)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _origin(module: str | None) -> str:
    """Who wrote a module: "Python", "others" (an installed package, or this one), or "own"."""
    if module is None or module == "__main__":
        return "own"
    top, file = module.partition(".")[0], getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return "Python" if top in sys.stdlib_module_names else "own"
    if top == "sbi_core" or {"site-packages", "dist-packages"} & set(Path(file).parts):
        return "others"
    return "Python" if Path(file).is_relative_to(sysconfig.get_path("stdlib")) else "own"


def _array(value: Tensor | np.ndarray | np.generic) -> str:
    try:
        return _numbers(value)
    except (NotImplementedError, TypeError, RuntimeError):  # no numbers, or of a kind that NumPy has not
        return f"{type(value).__qualname__} {value.dtype} {list(value.shape)}"


def _numbers(value: Tensor | np.ndarray | np.generic) -> str:
    kind = str(value.dtype).removeprefix("torch.")
    if isinstance(value, Tensor):
        value = value.to_dense() if value.layout != torch.strided else value
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)
    array = np.ascontiguousarray(value)
    if array.dtype.hasobject:  # which holds addresses
        return f"{kind}{list(np.shape(value))}:{identity(array.tolist())}"
    return f"{kind}{list(np.shape(value))}:{hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
