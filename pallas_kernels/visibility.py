"""Visibility: who sees whom, in O(L) memory. The one place where masking semantics live."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visibility:
    """Per-token fields, int32 [L] or [B, L], that decide which key a query sees.

        visible(q, k) = (order[k] <= order[q], if causal) and (enter[k] <= enter[q] < leave[k])
                        and ((hide[q] & kind[k]) == 0)

    Attributes:
      order: position for causality, the global index in the packed row.
      enter, leave: an interval on a depth-first walk. Disjoint intervals (leave = enter + 1) are packed documents or windows; an enclosing interval
        is a prefix that its leaves see. enter = leave = -1 is padding: it sees nothing and nothing sees it.
      kind: bit set that a key carries.
      hide: bit set of kinds that a query does not see.
    """

    order: Int[Array, "*B L"]
    enter: Int[Array, "*B L"]
    leave: Int[Array, "*B L"]
    kind: Int[Array, "*B L"]
    hide: Int[Array, "*B L"]

    @classmethod
    def causal(cls, length: int, *, valid: int | None = None) -> Visibility:
        """One document of `valid` tokens (default: all) in a row of `length`, the rest padding. numpy fields [L]."""
        return cls.packed([length if valid is None else valid], length)

    @classmethod
    def packed(cls, lengths: list[int], total: int | None = None) -> Visibility:
        """Documents of the given lengths one after the other, then padding up to `total`. numpy fields [L]."""
        total = sum(lengths) if total is None else total
        if sum(lengths) > total:
            raise ValueError(f"lengths sum to {sum(lengths)}, more than total={total}")
        ids = np.full(total, -1, np.int32)
        ids[: sum(lengths)] = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        return cls.segments(ids)

    @classmethod
    def segments(cls, ids: Int[Array, "*B L"]) -> Visibility:
        """Tokens see their own segment only; a negative id is padding. numpy in, numpy out; traced in, traced out."""
        xp = np if isinstance(ids, np.ndarray) else jnp
        ids = ids.astype(np.int32)
        pad = ids < 0
        order = xp.broadcast_to(xp.arange(ids.shape[-1], dtype=np.int32), ids.shape)
        zero = xp.zeros_like(ids)
        minus = xp.full_like(ids, -1)
        return cls(order, xp.where(pad, minus, ids), xp.where(pad, minus, ids + np.int32(1)), zero, zero)

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
    fill = lambda x, value: xp.pad(x, widths, constant_values=value)  # noqa: E731
    return Visibility(
        fill(vis.order, 0), fill(vis.enter, -1), fill(vis.leave, -1), fill(vis.kind, 0), fill(vis.hide, 0)
    )
