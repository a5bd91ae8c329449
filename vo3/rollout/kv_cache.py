"""Prefixes kept for later questions: the cache after the system turn and the overview of a video."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np

from vo3.models.qwen2_5_vl.cache import KVCache


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A prefilled beginning of a conversation.

    Attributes:
      cache: a snapshot; it is copied, never donated.
      length: tokens in it.
    """

    cache: KVCache
    length: int


class PrefixStore:
    """The prefixes used last, at most `entries` of them (each holds a whole cache on the device)."""

    def __init__(self, entries: int):
        if entries < 0:
            raise ValueError(f"a prefix store has 0 or more entries, not {entries}")
        self._entries = entries
        self._kept: collections.OrderedDict[bytes, Prefix] = collections.OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def wanted(self) -> bool:
        """Whether anything is kept at all."""
        return self._entries > 0

    def get(self, key: bytes) -> Prefix | None:
        """The prefix of `key`, which becomes the one used last."""
        found = self._kept.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, prefix: Prefix) -> None:
        """Keeps a prefix and drops the ones used longest ago."""
        self._kept[key] = prefix
        self._kept.move_to_end(key)
        while len(self._kept) > self._entries:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Drops everything: after the parameters have changed, what was computed with the old ones is wrong."""
        self._kept.clear()


def prefix_key(arrays: Iterable[np.ndarray]) -> bytes:
    """A key of token ids, positions and pixels: equal only for equal shapes, types and contents.

    The pixels are in it because the pad ids of two videos of one length are the same.
    """
    digest = hashlib.blake2b(digest_size=32)
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.digest()
