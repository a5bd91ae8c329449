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

from pallas_kernels.visibility import Array, Visibility, pad

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


# Flags of a pair word: first and last pair of its major block, and how the pair is to be treated. Neither FULL_PAIR nor
# PARTIAL_PAIR: nothing to compute, the pair is there so that its major block is written.
FIRST, LAST, FULL_PAIR, PARTIAL_PAIR = 1, 2, 4, 8
# Both: the list lost pairs (a broken promise of `reach`), and whatever is computed from it is NaN.
LOST = FULL_PAIR | PARTIAL_PAIR
MINOR_SHIFT, MAJOR_SHIFT = 4, 17
MAX_MAJOR, MAX_MINOR = 1 << (32 - MAJOR_SHIFT), 1 << (MAJOR_SHIFT - MINOR_SHIFT)
# Pair words scalar memory takes: 1 MiB on v5e and v6e, of which libtpu wants some for itself (258,000 compiled).
MAX_PAIRS = 250_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """The active block pairs of one mask, by query block and by key block. Build once per step, outside the layer scan.

    A pair is one int32 word, `major << 17 | minor << 4 | flags`; block indices count through all rows (row * blocks + block).

    Attributes:
      by_q: words with the query block as major index, in order; the first `q_count` are valid.
      q_count: int32 scalar.
      by_kv: words with the key block as major index, in order; the first `kv_count` are valid.
      kv_count: int32 scalar.
      rows: rows b of the fields it was built from; 1 serves a batch that shares them.
      q_blocks, kv_blocks: blocks per row.
      block_q, block_kv: tokens per block.
      causal: whether `order` counts.
    """

    by_q: Int[Array, " words"]
    q_count: Int[Array, ""]
    by_kv: Int[Array, " words"]
    kv_count: Int[Array, ""]
    rows: int = dataclasses.field(metadata={"static": True})
    q_blocks: int = dataclasses.field(metadata={"static": True})
    kv_blocks: int = dataclasses.field(metadata={"static": True})
    block_q: int = dataclasses.field(metadata={"static": True})
    block_kv: int = dataclasses.field(metadata={"static": True})
    causal: bool = dataclasses.field(metadata={"static": True})


def make_plan(
    q_vis: Visibility,
    kv_vis: Visibility,
    *,
    block_q: int,
    block_kv: int,
    causal: bool,
    reach: int | None = None,
) -> Plan:
    """The Plan of fields [L] or [b, L]: numpy fields on the host, traced ones inside jit. Lengths are padded to blocks.

    Args:
      q_vis, kv_vis: who sees whom.
      block_q, block_kv: tokens per block.
      causal: whether `order` counts.
      reach: the caller's promise that places of a query and a key it sees are less than this many tokens apart (the longest
        window), None: no promise. The lists are then as long as the blocks of a side, not as the pairs. Traced fields
        that break it and whose pairs find no room give a list by which every output of the kernels is NaN.

    Raises:
      ValueError: numpy fields that break the promise of `reach`.
      NotImplementedError: more blocks than a pair word or scalar memory holds; larger blocks help.
    """
    q_vis, kv_vis = (_padded(vis, block) for vis, block in ((q_vis, block_q), (kv_vis, block_kv)))
    states = block_states(q_vis, kv_vis, block_q=block_q, block_kv=block_kv, causal=causal)
    rows, q_blocks, kv_blocks = states.shape
    per_q, per_kv = kv_blocks, q_blocks
    if reach is not None:
        per_q = min(kv_blocks, _spanned(block_q, block_kv, reach))
        per_kv = min(q_blocks, _spanned(block_kv, block_q, reach))
    words = rows * max(q_blocks * per_q, kv_blocks * per_kv)
    if words > MAX_PAIRS or max(q_blocks, kv_blocks) * rows > MAX_MINOR:
        raise NotImplementedError(
            f"{rows} rows of {q_blocks} x {kv_blocks} blocks do not fit the schedule ({MAX_PAIRS} pairs,"
            f" {MAX_MINOR} blocks a side): use larger blocks than {block_q} x {block_kv}, fewer rows, or `reach`"
        )
    by_q, q_count = compact(states, most=per_q)
    by_kv, kv_count = compact(states.swapaxes(1, 2), most=per_kv)
    return Plan(
        by_q, q_count, by_kv, kv_count, rows, q_blocks, kv_blocks, block_q, block_kv, causal
    )


def _spanned(block: int, other: int, reach: int) -> int:
    """Blocks of `other` tokens that the tokens within `reach` of a block of `block` tokens touch at most."""
    return -(-(block + 2 * (reach - 1) - 1) // other) + 1


def _padded(vis: Visibility, block: int) -> Visibility:
    if vis.order.ndim == 1:
        vis = jax.tree.map(lambda x: x[None], vis)
    return pad(vis, -vis.order.shape[-1] % block)


def compact(
    states: Int[Array, "b major minor"], *, most: int | None = None
) -> tuple[Int[Array, " words"], Int[Array, ""]]:
    """The words of every pair that is not EMPTY, major by major, and their number; the rest of the words is unspecified.

    A major block that sees nothing keeps one pair without FULL_PAIR and PARTIAL_PAIR. `most` promises how many pairs a major
    block has at most, None: all; the list has room for b * major * most words. Traced states with more pairs become one pair
    marked LOST per major block: all of it is written, as NaN.

    Raises:
      ValueError: numpy states with more pairs than `most` has room for.
    """
    xp = np if isinstance(states, np.ndarray) else jnp
    rows, majors, minors = states.shape
    active = states != EMPTY
    lone = ~active.any(axis=-1, keepdims=True) & (xp.arange(minors) == 0)[None, None]
    keep = active | lone
    rank = keep.astype(np.int32).cumsum(axis=-1, dtype=np.int32)
    flags = xp.where(keep & (rank == 1), np.int32(FIRST), np.int32(0))
    flags = flags | xp.where(keep & (rank == rank[..., -1:]), np.int32(LAST), np.int32(0))
    flags = flags | xp.where(states == FULL, np.int32(FULL_PAIR), np.int32(0))
    flags = flags | xp.where(states == PARTIAL, np.int32(PARTIAL_PAIR), np.int32(0))
    major = xp.arange(rows * majors, dtype=np.int32).reshape(rows, majors, 1)
    minor = xp.arange(rows * minors, dtype=np.int32).reshape(rows, 1, minors)
    # int32 shifts wrap: majors of 2^14 and more sit in the sign bit and are read by a logical shift.
    words = (major << np.int32(MAJOR_SHIFT)) | (minor << np.int32(MINOR_SHIFT)) | flags
    room = keep.size if most is None else rows * majors * most
    if xp is np:
        found = words[keep]
        if found.size > room:
            raise ValueError(
                f"{found.size} block pairs hold something to see, `reach` leaves room for {room}; pass the longest window"
            )
        return np.pad(found, (0, room - found.size)), np.int32(found.size)
    (index,) = jnp.nonzero(keep.reshape(-1), size=room, fill_value=0)
    words, count = words.reshape(-1)[index], keep.sum(dtype=jnp.int32)
    if room == keep.size:
        return words, count
    # `most` is at least 1, so there is room for a word per major block.
    lost = (major << np.int32(MAJOR_SHIFT)) | (minor[..., :1] << np.int32(MINOR_SHIFT))
    lost = (lost | np.int32(FIRST | LAST | LOST)).reshape(-1)
    kept = count <= np.int32(room)
    words = jnp.where(kept, words, jnp.pad(lost, (0, room - lost.size)))
    return words, jnp.where(kept, count, np.int32(lost.size))


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A compacted list, decoded: one entry per pair, numpy."""

    major: Int[np.ndarray, " pairs"]
    minor: Int[np.ndarray, " pairs"]
    first: np.ndarray
    last: np.ndarray
    full: np.ndarray
    partial: np.ndarray


def decode(words: Int[Array, " words"], count: Int[Array, ""]) -> Pairs:
    """The valid words of a list as Pairs, for tests, pictures and statistics."""
    words = np.asarray(words)[: int(count)].view(np.uint32)
    flag = lambda bit: (words & bit) != 0
    return Pairs(
        (words >> MAJOR_SHIFT).astype(np.int32),
        ((words >> MINOR_SHIFT) & (MAX_MINOR - 1)).astype(np.int32),
        flag(FIRST),
        flag(LAST),
        flag(FULL_PAIR),
        flag(PARTIAL_PAIR),
    )
