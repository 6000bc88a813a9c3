"""Names are files: ``calibrate`` is ``zoo/steps/calibrate.py``. No registry, no import by dotted path."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from zoo.errors import RecipeError, suggest

T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def names(package: str) -> list[str]:
    """List the public modules of a package below ``zoo``, without importing them."""
    folder = Path(__file__).parent.joinpath(*package.split(".")[1:])
    return sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if not m.name.startswith("_"))


def load(package: str, name: str, where: str) -> Any:
    """Import ``package.name``; an unknown name raises RecipeError with the nearest known one."""
    known = names(package)
    if not _NAME.match(name) or name not in known:
        kind = package.rsplit(".", 1)[-1].rstrip("s").replace("_", " ")
        raise RecipeError(f"{where}: {kind} {name!r} is unknown{suggest(name, known)}")
    return importlib.import_module(f"{package}.{name}")


def check_arguments(function: Callable[..., Any], where: str, /, *given: Any, **args: Any) -> None:
    """Raise RecipeError, which names ``where``, unless ``function(*given, **args)`` is a call it takes."""
    signature = inspect.signature(function)
    try:
        signature.bind(*given, **args)
    except TypeError as error:
        known = ", ".join(list(signature.parameters)[len(given) :]) or "none"
        raise RecipeError(f"{where}: {error} (known: {known})") from None


def class_name(name: str) -> str:
    """Return the class that a file of this name holds: ``fold_batchnorm`` -> ``FoldBatchnorm``."""
    return "".join(part.capitalize() for part in name.split("_"))


def build(cls: type[T], fields: Any, where: str) -> T:
    """Build a dataclass from plain data, nested ones included.

    Unknown fields, wrong types and missing fields raise RecipeError that names the path of the field.
    """
    if not isinstance(fields, dict):
        raise RecipeError(f"{where}: expected fields of {cls.__name__}, got {fields!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in fields:
        if key not in known:
            raise RecipeError(f"{where}: field {key!r} is unknown{suggest(str(key), known)}")
    values = {k: _convert(hints[k], v, f"{where}.{k}") for k, v in fields.items()}
    for key, field in known.items():
        if key not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{where}: field {key!r} is missing")
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{where}: {error}") from None


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        failures = []
        for option in kinds:
            try:
                return _convert(option, value, where)
            except RecipeError as error:
                failures.append(error)
        raise failures[0]
    if origin is typing.Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        near = suggest(value, [str(a) for a in args]) if isinstance(value, str) else f" (known: {args})"
        raise RecipeError(f"{where}: {value!r} is unknown{near}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{where}: expected a list, got {value!r}")
        if args[-1] is Ellipsis:
            return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise RecipeError(f"{where}: expected {len(args)} values, got {len(value)}")
        return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: expected a mapping, got {value!r}")
        return {_convert(args[0], k, where): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, typing.cast(type, kind)) else build(typing.cast(type, kind), value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is float and not math.isfinite(value):
        raise RecipeError(f"{where}: expected a finite number, got {value!r}")
    if type(value) is not kind:
        raise RecipeError(f"{where}: expected {kind.__name__}, got {value!r} ({type(value).__name__})")
    return value
