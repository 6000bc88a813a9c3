"""Words of a command line: names, and ``key=value``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from zoo.errors import RecipeError
from zoo.resolve import build

T = TypeVar("T")


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names and the options; RecipeError for an option without value or given twice.

    A word with ``=`` is an option if no ``/`` comes first: the path of a folder may hold one.
    """
    names, options = [], dict[str, str]()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or "/" in key:
            names.append(argument)
        elif not value or key in options:
            raise RecipeError(f"{argument!r}: {'is given twice' if value else 'expected key=value'}; see --help")
        else:
            options[key] = value
    return names, options


def typed(kind: type[T], options: dict[str, str], where: str) -> T:
    """Return the options as a dataclass; RecipeError for an unknown one or a wrong value."""
    plain: dict[str, Any] = {k: {"true": True, "false": False}.get(v, v) for k, v in options.items()}
    return build(kind, plain, where)
