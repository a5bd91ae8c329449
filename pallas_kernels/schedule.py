"""Which blocks of the score matrix hold something to see, from O(L) fields alone.

A block pair is EMPTY (no query sees any key), FULL (every query sees every key) or PARTIAL. Both EMPTY and FULL are proven from
bounds per block (min and max of `order`, `enter`, `leave`, AND and OR of `hide`, `kind`); what cannot be proven is PARTIAL, which is
always right and only slower. The same functions serve numpy (host) and traced (inside jit) fields.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from pallas_kernels.visibility import Array, Visibility

EMPTY, PARTIAL, FULL = 0, 1, 2

_MAX = np.int32(2**31 - 1)
_MIN = np.int32(-(2**31))


@dataclasses.dataclass(frozen=True)
class _Bounds:
    """Per block, [b, blocks]. `low_*`, `high_*`, `all_*` run over tokens that can see or be seen, `*_any` over all tokens."""

    low_order: Array
    high_order: Array
    low_enter: Array
    high_enter: Array
    low_leave: Array
    high_leave: Array
    all_hide: Array
    any_hide: Array
    all_kind: Array
    any_kind: Array
    dead: Array


def _bounds(vis: Visibility, block: int) -> _Bounds:
    """Bounds of each block of `block` tokens; fields [b, L] with L a multiple of it."""
    xp = np if isinstance(vis.order, np.ndarray) else jnp
    rows, length = vis.order.shape
    if length % block:
        raise ValueError(f"length {length} is no multiple of block size {block}; pad the fields")
    field = lambda x: x.reshape(rows, length // block, block)
    order, enter, leave = field(vis.order), field(vis.enter), field(vis.leave)
    kind, hide = field(vis.kind), field(vis.hide)
    live = (enter >= 0) & (enter < leave)
    low = lambda x: xp.where(live, x, _MAX).min(axis=-1)
    high = lambda x: xp.where(live, x, _MIN).max(axis=-1)

    def bits_or(x):
        if xp is np:
            return np.bitwise_or.reduce(x, axis=-1)
        return jax.lax.reduce(x, np.int32(0), jax.lax.bitwise_or, (x.ndim - 1,))

    def bits_and(x):
        return ~bits_or(~xp.where(live, x, np.int32(-1)))

    return _Bounds(
        low_order=low(order),
        high_order=high(order),
        low_enter=low(enter),
        high_enter=high(enter),
        low_leave=low(leave),
        high_leave=high(leave),
        all_hide=bits_and(hide),
        any_hide=bits_or(hide),
        all_kind=bits_and(kind),
        any_kind=bits_or(kind),
        dead=~live.all(axis=-1),
    )


def block_states(
    q_vis: Visibility, kv_vis: Visibility, *, block_q: int, block_kv: int, causal: bool
) -> Int[Array, "b q_blocks kv_blocks"]:
    """EMPTY, PARTIAL or FULL per block pair, int32.

    Args:
      q_vis, kv_vis: fields [b, L] and [b, S], multiples of the block sizes (`visibility.pad`); b may be 1 in one of them.
      block_q, block_kv: tokens per block.
      causal: whether `order` counts.
    """
    xp = np if isinstance(q_vis.order, np.ndarray) and isinstance(kv_vis.order, np.ndarray) else jnp
    expand = lambda axis: lambda x: xp.expand_dims(x, axis)
    q = jax.tree.map(expand(-1), dataclasses.asdict(_bounds(q_vis, block_q)))
    k = jax.tree.map(expand(-2), dataclasses.asdict(_bounds(kv_vis, block_kv)))
    # A block without a live token has high = MIN and low = MAX, so every test for empty holds.
    empty = (q["high_enter"] < k["low_enter"]) | (q["low_enter"] >= k["high_leave"])
    # AND over no live token is -1: such a block is empty already.
    empty = empty | ((q["all_hide"] & k["all_kind"]) != 0)
    full = (k["high_enter"] <= q["low_enter"]) & (q["high_enter"] < k["low_leave"])
    full = full & ((q["any_hide"] & k["any_kind"]) == 0) & ~q["dead"] & ~k["dead"]
    if causal:
        empty = empty | (k["low_order"] > q["high_order"])
        full = full & (k["high_order"] <= q["low_order"])
    states = xp.where(full, np.int32(FULL), np.int32(PARTIAL))
    return xp.where(empty, np.int32(EMPTY), states)
