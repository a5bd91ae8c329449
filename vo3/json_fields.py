"""Whether what JSON gave fits the types of a dataclass: a `null` where a text belongs would else fail far from the line that holds it."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check(value: Any) -> None:
    """Checks the fields of a dataclass and of those in it.

    Raises:
      TypeError: a field of another type, by its name.
    """
    for name, kind in _fields(type(value)).items():
        given = getattr(value, name)
        if not _fits(given, kind):
            shown = repr(given)
            shown = shown if len(shown) <= 60 else shown[:60] + "..."
            raise TypeError(f"{type(value).__name__}.{name} is {shown}")


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in inner
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items()
        )
    if kind is float:
        kind = (int, float)
    if isinstance(value, bool):
        return kind is bool
    if not isinstance(value, kind):
        return False
    if dataclasses.is_dataclass(value):
        check(value)
    return True
