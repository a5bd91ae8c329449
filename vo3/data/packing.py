"""Trajectories into rows: best-fit decreasing inside seeded windows.

A row holds whole trajectories one after the other. Packing all of an epoch at once would put every long trajectory beside
the same few short ones; packing windows of a shuffled order keeps neighbours random and costs O(n log n).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int64

Row = tuple[int, ...]

# Trajectories that are packed together. Larger windows pack tighter; from here on the gain is below 0.1 %.
WINDOW = 2048

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def shuffled(count: int, seed: Sequence[int]) -> Int64[np.ndarray, "N"]:
    """A permutation of 0 .. count - 1, a pure function of its arguments.

    The numbers are sorted by a hash (splitmix64) and not drawn from NumPy's generators, whose streams may change from one
    release to the next: hosts with different versions, or a run resumed after an upgrade, would disagree.

    Args:
      count: how many numbers.
      seed: non-negative integers, all of which matter.
    """
    state = np.zeros((), np.uint64)
    for part in seed:
        if part < 0:
            raise ValueError(f"a seed is made of non-negative integers, not {part!r}")
        state = _mix(state ^ np.uint64(part & (2**64 - 1)))
    keys = _mix(_mix(np.arange(count, dtype=np.uint64)) ^ state)
    return np.argsort(keys, kind="stable").astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser."""
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def pack(
    order: Int[np.ndarray, "N"],
    tokens: Int[np.ndarray, "M"],
    *,
    capacity: int,
    window: int = WINDOW,
) -> list[Row]:
    """Rows that hold every trajectory of `order` once.

    Args:
      order: numbers of trajectories, shuffled.
      tokens: tokens by number.
      capacity: most tokens of a row.
      window: trajectories packed together, in `order`.

    Raises:
      ValueError: a trajectory longer than a row.
    """
    rows: list[Row] = []
    for start in range(0, len(order), window):
        rows += _pack_window(order[start : start + window], tokens, capacity)
    return rows


def _pack_window(part: np.ndarray, tokens: np.ndarray, capacity: int) -> list[Row]:
    sizes = tokens[part]
    if sizes.size and sizes.max() > capacity:
        worst = int(part[sizes.argmax()])
        raise ValueError(
            f"trajectory {worst} has {int(sizes.max())} tokens, a row holds {capacity}; leave it out or raise the length"
        )
    rows: list[list[int]] = []
    # (room left, row), by room: the fullest row that still has room is found by bisection.
    open_rows: list[tuple[int, int]] = []
    for at in np.argsort(-sizes, kind="stable"):
        size, number = int(sizes[at]), int(part[at])
        place = bisect.bisect_left(open_rows, (size, -1))
        if place == len(open_rows):
            rows.append([number])
            room, row = capacity - size, len(rows) - 1
        else:
            room, row = open_rows.pop(place)
            rows[row].append(number)
            room -= size
        bisect.insort(open_rows, (room, row))
    return [tuple(row) for row in rows]
