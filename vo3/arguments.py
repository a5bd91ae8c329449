"""What the commands of `vo3` share in reading their arguments."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from etils import epath


class UsageError(ValueError):
    """An argument that cannot be used; the message names it and the remedy."""


def number(text: str) -> float:
    """An argument's type: a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """An argument's type: a finite number above 0, read by `int` or `float`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not (math.isfinite(value) and value > 0):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


def check_writable(flag: str, path: str | None) -> None:
    """An output that cannot be written is refused before the work, not after it.

    Args:
      flag: that gives the path, for the message.
      path: None and `-` name no file.

    Raises:
      UsageError: it is a directory, or its folder is not there.
    """
    if path is None or path == "-":
        return
    target = epath.Path(path)
    if target.is_dir():
        raise UsageError(f"{flag} {path} is a directory; give a file name")
    if not target.parent.exists():
        raise UsageError(
            f"{flag} {path}: the folder {target.parent} does not exist; create it first"
        )
