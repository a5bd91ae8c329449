"""Shapes are types: jaxtyping annotations of every function are checked while the tests run.

Only array annotations (and `array | None`) are looked at. General type checkers either cannot read jaxtyping's
functions (typeguard 4) or refuse the fakes that tests hand in place of a tokenizer or a video.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray


def checked(function: Callable) -> Callable:
    """`function`, refusing arrays that are not of their annotated dtype and shape. For jaxtyping's import hook."""
    # A dataclass that is a pytree is also built from tracers' avals, None or object(): its fields are no promise.
    if function.__name__ == "__init__":
        return function
    signature = inspect.signature(function)
    wanted = {p.name: a for p in signature.parameters.values() if (a := _arrays(p.annotation))}
    result = _arrays(signature.return_annotation)
    if not wanted and not result:
        return function

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name, allowed in wanted.items():
            if name in given:
                _check(name, given[name], allowed)
        out = function(*args, **kwargs)
        if result:
            _check("the result", out, result)
        return out

    return wrapped


def _arrays(annotation: Any) -> tuple[type, ...]:
    """The types of an annotation made of arrays, unions of arrays, and None; nothing for any other annotation."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(annotation) if union else (annotation,)
    arrays = [p for p in parts if inspect.isclass(p) and issubclass(p, AbstractArray)]
    if not arrays or len(arrays) + (type(None) in parts) != len(parts):
        return ()
    return tuple(parts)


def _check(name: str, value: Any, allowed: tuple[type, ...]) -> None:
    # JAX takes numpy arrays wherever it takes its own.
    numbers = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf"
    also = jnp.asarray(value) if numbers else value
    if not any(isinstance(value, kind) or isinstance(also, kind) for kind in allowed):
        kind = getattr(value, "dtype", type(value).__name__)
        shape = list(getattr(value, "shape", ()))
        raise TypeError(f"{name} is {kind} {shape}, not {' or '.join(k.__name__ for k in allowed)}")
