"""Visibility: who sees whom, in O(L) memory. The one place where masking semantics live.

Rows of the drawn matrices are queries, columns keys; 1 is seen. `tests/pallas_kernels/test_visibility.py` reads the drawings
and compares them with `Visibility.dense`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

Array = jax.Array | np.ndarray

# Kinds of task-decoupled attention masking: what a key is, and what a query may be told to hide.
OVERVIEW, CLIP = 1, 2
# Bits of `kind` and `hide` the kernels keep: 8 policies' worth.
KIND_BITS = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visibility:
    """Per-token fields, int32 [L] or [B, L], that decide which key a query sees.

        visible(q, k) = (order[k] <= order[q], if causal) and (enter[k] <= enter[q] < leave[k])
                        and ((hide[q] & kind[k]) == 0)

    Use the constructors; each draws the matrix it means. Fields of one row may be cut, permuted and indexed alike
    (`jax.tree.map`): queries and keys carry their own, and `order` stays the global index.

    Attributes:
      order: position for causality, the global index in the packed row.
      enter, leave: an interval on a depth-first walk, 0 <= enter < leave. Disjoint intervals (leave = enter + 1) are packed
        documents or windows; an enclosing interval is a prefix that its leaves see. enter = leave = -1 is padding: it sees
        nothing and nothing sees it.
      kind: bit set that a key carries, 0 to 255.
      hide: bit set of kinds that a query does not see, 0 to 255.
    """

    order: Int[Array, "*B L"]
    enter: Int[Array, "*B L"]
    leave: Int[Array, "*B L"]
    kind: Int[Array, "*B L"]
    hide: Int[Array, "*B L"]

    @classmethod
    def causal(cls, length: int, *, valid: int | None = None) -> Visibility:
        """One document of `valid` tokens (default: all) in a row of `length`, the rest padding. numpy fields [L].

        causal(4, valid=3), causal:

            1 0 0 0
            1 1 0 0
            1 1 1 0
            0 0 0 0
        """
        return cls.packed([length if valid is None else valid], length)

    @classmethod
    def packed(cls, lengths: Sequence[int], total: int | None = None) -> Visibility:
        """Documents of the given lengths one after the other, then padding up to `total`. numpy fields [L].

        packed([2, 3], 6), causal:

            1 0 0 0 0 0
            1 1 0 0 0 0
            0 0 1 0 0 0
            0 0 1 1 0 0
            0 0 1 1 1 0
            0 0 0 0 0 0

        Raises:
          ValueError: a negative length, or more tokens than `total`.
        """
        return cls.segments(_repeat(lengths, total))

    @classmethod
    def windows(cls, lengths: Sequence[int], total: int | None = None) -> Visibility:
        """Windows (or frames) that see themselves whole, then padding; to be used with causal=False. numpy fields [L].

        windows([2, 1, 2], 6), not causal:

            1 1 0 0 0 0
            1 1 0 0 0 0
            0 0 1 0 0 0
            0 0 0 1 1 0
            0 0 0 1 1 0
            0 0 0 0 0 0

        Raises:
          ValueError: a negative length, or more tokens than `total`.
        """
        return cls.segments(_repeat(lengths, total))

    @classmethod
    def segments(cls, ids: Int[Array, "*B L"]) -> Visibility:
        """Tokens see their own segment only; a negative id is padding. numpy in, numpy out; traced in, traced out.

        segments([0, 1, 0, -1]), not causal:

            1 0 1 0
            0 1 0 0
            1 0 1 0
            0 0 0 0
        """
        xp = np if isinstance(ids, np.ndarray) else jnp
        ids = ids.astype(np.int32)
        dead = ids < 0
        order = xp.broadcast_to(xp.arange(ids.shape[-1], dtype=np.int32), ids.shape)
        zero = xp.zeros_like(ids)
        minus = xp.full_like(ids, -1)
        enter = xp.where(dead, minus, ids)
        return cls(order, enter, xp.where(dead, minus, ids + np.int32(1)), zero, zero)

    @classmethod
    def document(cls, order: Int[Array, "*B L"], live: Bool[Array, "*B L"]) -> Visibility:
        """One document whose tokens stand at `order`; tokens that are not `live` are padding. numpy in, numpy out; traced in, traced out.

        For what does not lie in order in one piece: the slots of a cache, a chunk of queries.

        document([0, 2, 1, 3], [True, True, True, False]), causal:

            1 0 0 0
            1 1 1 0
            1 0 1 0
            0 0 0 0
        """
        xp = np if isinstance(order, np.ndarray) and isinstance(live, np.ndarray) else jnp
        vis = cls.segments(xp.where(live, np.int32(0), np.int32(-1)))
        return dataclasses.replace(vis, order=xp.where(live, order, np.int32(0)).astype(np.int32))

    @classmethod
    def tree(
        cls, prefix: int, leaves: Sequence[int], *, align: int = 1, total: int | None = None
    ) -> Visibility:
        """A prefix that every leaf sees; leaves do not see each other. numpy fields [L].

        Leaves begin on multiples of `align` (padding before them), at `leaf_starts(prefix, leaves, align=align)`: a leaf that
        shares no block with another leaf costs no partial block.

        tree(2, [1, 2], align=2, total=7), causal:

            1 0 0 0 0 0 0
            1 1 0 0 0 0 0
            1 1 1 0 0 0 0
            0 0 0 0 0 0 0
            1 1 0 0 1 0 0
            1 1 0 0 1 1 0
            0 0 0 0 0 0 0

        Raises:
          ValueError: a negative length, align < 1, or more tokens than `total`.
        """
        starts = leaf_starts(prefix, leaves, align=align)
        end = int(starts[-1]) + leaves[-1] if len(leaves) else prefix
        total = _total(end, total)
        enter = np.full(total, -1, np.int32)
        leave = np.full(total, -1, np.int32)
        # Depth first: the prefix enters at 0, leaf i at i + 1, and the prefix is left after the last leaf.
        enter[:prefix], leave[:prefix] = 0, len(leaves) + 1
        for index, (start, length) in enumerate(zip(starts, leaves, strict=True)):
            enter[start : start + length] = index + 1
            leave[start : start + length] = index + 2
        zero = np.zeros(total, np.int32)
        return cls(np.arange(total, dtype=np.int32), enter, leave, zero, zero)

    @classmethod
    def padding(cls, *shape: int) -> Visibility:
        """Nothing but padding, numpy fields of the given shape: unwritten cache slots.

        padding(2), causal:

            0 0
            0 0
        """
        zero, minus = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        order = np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape).copy()
        return cls(order, minus, minus, zero, zero)

    @classmethod
    def concat(cls, parts: Sequence[Visibility], total: int | None = None) -> Visibility:
        """Rows (documents, packs, trees) one after the other, blind to each other, then padding. numpy fields [L].

        concat([tree(1, [1, 1]), causal(2)], 6), causal:

            1 0 0 0 0 0
            1 1 0 0 0 0
            1 0 1 0 0 0
            0 0 0 1 0 0
            0 0 0 1 1 0
            0 0 0 0 0 0

        Raises:
          ValueError: no parts, traced or batched parts, or more tokens than `total`.
        """
        if not parts:
            raise ValueError("parts is empty; wanted at least one Visibility")
        moved, tokens, walk = [], 0, 0
        for index, part in enumerate(parts):
            if not isinstance(part.order, np.ndarray) or part.order.ndim != 1:
                raise ValueError(f"parts[{index}] is no Visibility of numpy fields [L]")
            live = part.enter >= 0
            shift = np.where(live, walk, 0).astype(np.int32)
            moved.append(
                dataclasses.replace(
                    part,
                    order=part.order + np.int32(tokens),
                    enter=part.enter + shift,
                    leave=part.leave + shift,
                )
            )
            tokens += part.order.size
            walk += int(part.leave.max(initial=0, where=live))
        row = jax.tree.map(lambda *xs: np.concatenate(xs), *moved)
        return pad(row, _total(tokens, total) - tokens)

    def with_kinds(self, kind: Int[Array, "*B L"], hide: Int[Array, "*B L"]) -> Visibility:
        """The same tokens with kinds that keys carry and queries hide (task-decoupled attention masking).

        causal(5).with_kinds([OVERVIEW, CLIP, 0, 0, 0], [0, 0, CLIP, OVERVIEW, 0]), causal: token 2 decides a call from the
        overview alone, token 3 answers from the clip alone:

            1 0 0 0 0
            1 1 0 0 0
            1 0 1 0 0
            0 1 1 1 0
            1 1 1 1 1

        Raises:
          ValueError: a shape other than the fields', or bits outside 0..255.
        """
        fields = {}
        for name, value in (("kind", kind), ("hide", hide)):
            value = value if isinstance(value, jax.Array) else np.asarray(value)
            if value.shape != self.order.shape:
                raise ValueError(f"{name} has shape {value.shape}; wanted {self.order.shape}")
            if isinstance(value, np.ndarray) and ((value < 0) | (value >> KIND_BITS != 0)).any():
                raise ValueError(f"{name} has bits outside 0..{2**KIND_BITS - 1}")
            fields[name] = value.astype(np.int32)
        return dataclasses.replace(self, **fields)

    def on_branches(self, branch: Int[Array, "..."]) -> Visibility:
        """The same tokens, their intervals moved on by `branch` (broadcasts): tokens of other branches of a document are not seen.

        document([0, 1, 0, 1], all live).on_branches([0, 0, 1, 1]), causal:

            1 0 0 0
            1 1 0 0
            0 0 1 0
            0 0 1 1
        """
        xp = np if isinstance(self.enter, np.ndarray) and isinstance(branch, np.ndarray) else jnp
        move = lambda field: xp.where(self.enter >= 0, field + branch, field)
        return dataclasses.replace(self, enter=move(self.enter), leave=move(self.leave))

    def validate(self, name: str = "visibility") -> Visibility:
        """Self, when every field has one shape and int32, and, for numpy fields, every interval and bit set is sound.

        Raises:
          ValueError: names the field, the first bad token, and what was wanted.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value.shape != self.order.shape:
                raise ValueError(
                    f"{name}.{field.name} has shape {value.shape}; wanted {self.order.shape}, as {name}.order"
                )
            if value.dtype != np.int32:
                raise ValueError(f"{name}.{field.name} has dtype {value.dtype}; wanted int32")
        if isinstance(self.enter, np.ndarray) and isinstance(self.leave, np.ndarray):
            padding = (self.enter == -1) & (self.leave == -1)
            bad = ~padding & ((self.enter < 0) | (self.leave <= self.enter))
            if bad.any():
                at = tuple(int(x) for x in np.argwhere(bad)[0])
                raise ValueError(
                    f"{name} token {at} has enter {self.enter[at]}, leave {self.leave[at]}; wanted"
                    " 0 <= enter < leave, or -1 and -1 for padding"
                )
        for field in ("kind", "hide"):
            value = getattr(self, field)
            if isinstance(value, np.ndarray) and ((value < 0) | (value >> KIND_BITS != 0)).any():
                raise ValueError(f"{name}.{field} has bits outside 0..{2**KIND_BITS - 1}")
        return self

    def dense(self, *, causal: bool, kv: Visibility | None = None) -> Bool[Array, "*B L S"]:
        """The mask as a matrix, for tests and small pictures: O(L * S) memory."""
        kv = self if kv is None else kv
        query = jax.tree.map(lambda x: x[..., :, None], self)
        key = jax.tree.map(lambda x: x[..., None, :], kv)
        return visible(query, key, causal=causal)


def visible(q: Visibility, k: Visibility, *, causal: bool) -> Bool[Array, "..."]:
    """The predicate itself, on fields that broadcast against each other."""
    seen = (k.enter <= q.enter) & (q.enter < k.leave) & ((q.hide & k.kind) == 0)
    return seen & (k.order <= q.order) if causal else seen


def pad(vis: Visibility, extra: int) -> Visibility:
    """`extra` tokens of padding behind fields [..., L]: they see nothing and nothing sees them."""
    if not extra:
        return vis
    xp = np if isinstance(vis.order, np.ndarray) else jnp
    widths = ((0, 0),) * (vis.order.ndim - 1) + ((0, extra),)
    fill = lambda x, value: xp.pad(x, widths, constant_values=value)
    return Visibility(
        fill(vis.order, 0),
        fill(vis.enter, -1),
        fill(vis.leave, -1),
        fill(vis.kind, 0),
        fill(vis.hide, 0),
    )


def leaf_starts(prefix: int, leaves: Sequence[int], *, align: int = 1) -> Int[np.ndarray, " n"]:
    """Where `Visibility.tree` puts the first token of each leaf, int32 [len(leaves)]."""
    if prefix < 0 or any(length < 0 for length in leaves):
        raise ValueError(f"prefix {prefix} or leaves {list(leaves)} hold a negative length")
    if align < 1:
        raise ValueError(f"align is {align}; wanted at least 1")
    starts, end = [], prefix
    for length in leaves:
        starts.append(-(-end // align) * align)
        end = starts[-1] + length
    return np.asarray(starts, np.int32)


def _total(used: int, total: int | None) -> int:
    if total is not None and used > total:
        raise ValueError(f"{used} tokens are more than total={total}")
    return used if total is None else total


def _repeat(lengths: Sequence[int], total: int | None) -> Int[np.ndarray, " L"]:
    if any(length < 0 for length in lengths):
        raise ValueError(f"lengths {list(lengths)} hold a negative length")
    used = int(sum(lengths))
    ids = np.full(_total(used, total), -1, np.int32)
    ids[:used] = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return ids
