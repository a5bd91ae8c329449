"""The static shapes of training: which row lengths to compile for, given how many programs there may be."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int

from vo3.data.lengths import Lengths
from vo3.data.packing import pack, shuffled


def choose_buckets(
    lengths: Lengths, *, programs: int, max_length: int, multiple: int = 128
) -> tuple[int, ...]:
    """The row lengths, at most `programs` of them, that pad least.

    The trajectories are packed once as every epoch packs them, and the histogram of the rows' tokens is cut by a dynamic
    programme. Any two rows of a packing fill more than one whole row together, so that few buckets cover what is left.

    Args:
      lengths: sizes of the trajectories.
      programs: most buckets; each is one compiled program.
      max_length: most tokens of a row.
      multiple: buckets are multiples of this; the largest is `max_length` rounded up.

    Returns:
      Row lengths in rising order; the last one holds every row.

    Raises:
      ValueError: arguments out of range.
    """
    if programs < 1 or multiple < 1 or max_length < 1:
        raise ValueError(
            f"programs ({programs}), max_length ({max_length}) and multiple ({multiple}) must be at least 1"
        )
    usable = np.flatnonzero((lengths.tokens > 0) & (lengths.tokens <= max_length))
    order = usable[shuffled(usable.size, (0,))]
    rows = pack(order, lengths.tokens, capacity=max_length)
    totals = np.array([lengths.tokens[list(row)].sum() for row in rows], np.int64)
    top = math.ceil(max_length / multiple)
    return tuple(int(b) * multiple for b in cut(-(-totals // multiple), programs, top))


def cut(sizes: Int[np.ndarray, "N"], count: int, top: int) -> tuple[int, ...]:
    """At most `count` upper bounds, `top` among them, that minimise the sum over sizes of (bound - size).

    Least-cost partition of a histogram: cost[k, j] = min over i < j of cost[k - 1, i] + j (n_j - n_i), with n_j the number of
    sizes <= j; the sizes' own sum is constant. O(count U^2) over U distinct sizes.

    Args:
      sizes: in [1, top].
      count: most bounds.
      top: the largest bound.

    Returns:
      Bounds in rising order.
    """
    values = np.unique(np.append(sizes, top))
    below = np.searchsorted(np.sort(sizes), values, side="right").astype(np.float64)
    cost = values * below  # one bucket for everything up to each value
    choices = []
    for _ in range(min(count, values.size) - 1):
        # [j, i]: the last bucket is values[j] and the one before it values[i], i < j
        table = cost[None, :] + values[:, None] * (below[:, None] - below[None, :])
        table[np.triu_indices(values.size)] = np.inf
        best = table.argmin(axis=1)
        new = np.minimum(table.min(axis=1), cost)
        choices.append(np.where(table.min(axis=1) < cost, best, -1))
        cost = new
    bounds, at = [int(values[-1])], values.size - 1
    for choice in reversed(choices):
        if choice[at] >= 0:
            at = int(choice[at])
            bounds.append(int(values[at]))
    return tuple(reversed(bounds))
