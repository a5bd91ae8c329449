"""Content keys: the same content has the same key on every machine, in every process and every run."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one content.

    Raises:
      ValueError: NaN or infinity, which JSON has no word for.
      TypeError: something that is not JSON.
    """
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )


def content_key(*parts: Any) -> str:
    """32 hexadecimal digits that name this content."""
    text = canonical(list(parts)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def draw(*parts: Any) -> float:
    """A number in [0, 1) that depends on the content alone: chance that a second run repeats."""
    return int(content_key(*parts)[:13], 16) / 16**13
