"""Agents' dialects: how a checkpoint calls its tool and is answered. docs/dialects.md says how to write one."""

from __future__ import annotations

import functools
import importlib

from vo3.chat.dialects.base import Dialect, Limits
from vo3.chat.dialects.longvt import LongVT
from vo3.chat.dialects.video_o3 import VideoO3
from vo3.chat.dialects.videozoomer import VideoZoomer

DEFAULT = "video-o3"
DIALECTS: dict[str, Dialect] = {d.name: d for d in (VideoO3(), LongVT(), VideoZoomer())}

__all__ = ["DEFAULT", "DIALECTS", "Dialect", "Limits", "get_dialect"]


def get_dialect(name: str) -> Dialect:
    """A dialect by its name, or by `package.module:NAME` where NAME is a `Dialect` in that module.

    Raises:
      ValueError: there is none.
    """
    if ":" in name:
        return _imported(name)
    if name not in DIALECTS:
        raise ValueError(
            f"unknown dialect {name!r}; one of {', '.join(DIALECTS)}, or your own as package.module:NAME"
        )
    return DIALECTS[name]


@functools.cache
def _imported(name: str) -> Dialect:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ValueError(f"dialect {name!r}: {error}") from error
    if not isinstance(found, Dialect):
        raise ValueError(
            f"dialect {name!r}: {attribute!r} in {module} is {type(found).__name__}, not an instance of Dialect"
        )
    return found
