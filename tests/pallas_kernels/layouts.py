"""Random layouts of every kind the project uses, small enough for a dense oracle."""

from __future__ import annotations

import jax
import numpy as np

from pallas_kernels.visibility import CLIP, OVERVIEW, Visibility

KINDS = ("causal", "packed", "tree", "forest", "tdam", "windows", "permuted", "noise")


def lengths(rng, total, most=5):
    """A few lengths that sum to at most `total`."""
    cuts = np.sort(rng.integers(0, total + 1, rng.integers(1, most + 1)))
    return [int(x) for x in np.diff(np.r_[0, cuts])]


def tdam(rng, vis):
    """Random runs of overview, clip, and hiding tokens."""
    size = vis.order.shape[-1]
    kind, hide = np.zeros(size, np.int32), np.zeros(size, np.int32)
    for bit in (OVERVIEW, CLIP):
        for field in (kind, hide):
            start = rng.integers(0, size)
            field[start : start + rng.integers(0, size // 2 + 1)] |= bit
    return vis.with_kinds(kind, hide)


def layout(rng, kind, size):
    """A Visibility [size] of the named kind."""
    if kind == "causal":
        return Visibility.causal(size, valid=int(rng.integers(0, size + 1)))
    if kind in ("packed", "windows"):
        return Visibility.packed(lengths(rng, size), size)
    if kind == "tree":
        prefix, *leaves = lengths(rng, max(size - 16, 1))
        return Visibility.tree(prefix, leaves, align=int(rng.choice([1, 2, 4])), total=size)
    if kind == "forest":
        halves = size // 2, size - size // 2
        return Visibility.concat([layout(rng, "tree", x) for x in halves], size)
    if kind == "tdam":
        return tdam(rng, layout(rng, str(rng.choice(["causal", "packed", "tree"])), size))
    if kind == "permuted":
        vis = layout(rng, str(rng.choice(["packed", "tree", "tdam"])), size)
        run = int(rng.choice([1, 4, 8]))
        order = np.arange(size)[: size // run * run].reshape(-1, run)
        order = np.r_[rng.permutation(order).reshape(-1), np.arange(size)[size // run * run :]]
        return jax.tree.map(lambda x: x[order], vis)
    enter = rng.integers(-1, 5, size).astype(np.int32)
    leave = np.where(enter < 0, -1, enter + rng.integers(1, 4, size)).astype(np.int32)
    bits = lambda: (1 << rng.integers(0, 8, size)).astype(np.int32) * (rng.random(size) < 0.3)
    bits = [x.astype(np.int32) for x in (bits(), bits())]
    return Visibility(rng.integers(0, size, size).astype(np.int32), enter, leave, *bits)
