"""`splash_attention`: checks its arguments and chooses the implementation."""

from __future__ import annotations

import dataclasses
import logging
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import schedule, tuning
from pallas_kernels.schedule import Plan
from pallas_kernels.splash import reference, tpu, xla
from pallas_kernels.visibility import Visibility

Implementation = Literal["auto", "splash", "xla", "reference"]
IMPLEMENTATIONS = ("auto", "splash", "xla", "reference")

_log = logging.getLogger(__name__)
_logged: set[str] = set()


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Tokens per block of queries and of keys."""

    q: int
    kv: int


def splash_attention(
    q: Float[Array, "B N L H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    q_vis: Visibility,
    kv_vis: Visibility,
    *,
    causal: bool,
    scale: float | None = None,
    return_lse: bool = False,
    block_sizes: BlockSizes | None = None,
    implementation: Implementation | None = None,
    plan: Plan | None = None,
) -> Float[Array, "B N L H"] | tuple[Float[Array, "B N L H"], Float[Array, "B N L"]]:
    """Attention in O(L) memory where every query sees the keys that `visible(q, k)` names.

    Args:
      q: queries; N is a multiple of K, and query head n reads kv head n // (N / K).
      k, v: keys and values, of q's dtype. Any L and S.
      q_vis, kv_vis: int32 fields [L] or [B, L], and [S] or [B, S].
      causal: whether `order` counts.
      scale: factor on the scores, default 1 / sqrt(H).
      return_lse: also return the log-sum-exp of the scores.
      block_sizes: tokens per block; None takes the tuned ones.
      implementation: "splash" (Pallas TPU), "xla" (chunked, any device), "reference" (dense float32); None or "auto" picks by
        platform and logs the choice once.
      plan: the block schedule of (q_vis, kv_vis, causal) from `attention_plan`, when many calls (layers) share it; its block
        sizes hold. None builds it here.

    Returns:
      out in q's dtype [, lse in float32]. A row that sees nothing has out 0, lse -inf and zero gradients.

    Raises:
      ValueError: an argument of the wrong shape, dtype or range, named with what was got and wanted.
      NotImplementedError: the named implementation cannot do this, with the reason.
    """
    _check(q, k, v, q_vis, kv_vis, block_sizes)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    q_vis, kv_vis = (jax.tree.map(lambda x: _rows(x), vis) for vis in (q_vis, kv_vis))
    chosen = choose(implementation, tpu.unsupported(q.dtype, q.shape[-1]))
    if chosen == "reference":
        out, lse = reference.attention(q, k, v, q_vis, kv_vis, causal=causal, scale=scale)
    elif chosen == "xla":
        out, lse = xla.attention(
            q,
            k,
            v,
            q_vis,
            kv_vis,
            causal=causal,
            scale=scale,
            block_q=block_sizes and block_sizes.q,
            block_kv=block_sizes and block_sizes.kv,
        )
    else:
        out, lse = tpu.attention(
            q,
            k,
            v,
            q_vis,
            kv_vis,
            causal=causal,
            scale=scale,
            plan=plan,
            blocks=block_sizes and (block_sizes.q, block_sizes.kv),
        )
    return (out, lse) if return_lse else out


def attention_plan(
    q_vis: Visibility,
    kv_vis: Visibility,
    *,
    causal: bool,
    q_heads: int,
    kv_heads: int,
    dtype: jnp.dtype = jnp.bfloat16,
    block_sizes: BlockSizes | None = None,
    reach: int | None = None,
    implementation: Implementation | None = None,
) -> Plan | None:
    """The schedule that `splash_attention` calls on these fields share; None where the implementation takes none.

    Build it once per mask and step, outside the scan over layers.

    Args:
      q_vis, kv_vis, causal: as the calls have them.
      q_heads, kv_heads, dtype: of the calls; they decide which blocks fit.
      block_sizes: tokens per block; None takes the tuned ones.
      reach: a promise: whatever a query sees stands less than this many places from it (windows: the longest one). Short
        reach takes smaller blocks, and a schedule that grows with the length, not with its square.
      implementation: as the calls have it.

    Raises:
      ValueError: bad fields or block sizes, or numpy fields that break the promise of `reach`.
      NotImplementedError: more blocks than the schedule holds.
    """
    q_vis.validate("q_vis")
    kv_vis.validate("kv_vis")
    if choose(implementation) != "splash":
        return None
    length, keys = q_vis.order.shape[-1], kv_vis.order.shape[-1]
    if block_sizes is None:
        itemsize = jnp.dtype(dtype).itemsize
        block_sizes = BlockSizes(*tpu.block_sizes(q_heads, kv_heads, length, keys, itemsize, reach))
    if reach is not None and reach < 1:
        raise ValueError(f"reach is {reach}; wanted at least 1, or None")
    return schedule.make_plan(
        q_vis,
        kv_vis,
        block_q=block_sizes.q,
        block_kv=block_sizes.kv,
        causal=causal,
        reach=reach,
    )


def _rows(field) -> Array:
    """[L] -> [1, L]; numpy becomes a jax array, so that no mask is computed at trace time."""
    field = jnp.asarray(field)
    return field[None] if field.ndim == 1 else field


def choose(implementation: Implementation | None, unsupported: str | None = None) -> str:
    """The implementation to run: the named one, else by platform, logged once per choice.

    Args:
      implementation: as the caller gave it.
      unsupported: why the TPU kernel cannot do this call, if it cannot; a choice left open then falls on "xla".

    Raises:
      ValueError: an unknown name.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {implementation!r}; wanted one of {IMPLEMENTATIONS}")
    if implementation not in (None, "auto"):
        return implementation
    try:
        device = tuning.current_device()
    except NotImplementedError as error:  # a TPU of a kind not known here
        device, unsupported = "tpu", str(error)
    chosen = "xla" if device is None or unsupported else "splash"
    message = f"attention: implementation {chosen!r} on {device or jax.default_backend()!r}"
    if device is not None and unsupported:
        message += f", as {unsupported}"
    if message not in _logged:
        _logged.add(message)
        _log.info(message)
    return chosen


def _check(q, k, v, q_vis, kv_vis, block_sizes) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {x.shape}; wanted [rows, heads, length, head dim]")
        if x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
            raise ValueError(f"{name} has dtype {x.dtype}; wanted float32, bfloat16 or float16")
        if x.dtype != q.dtype:
            raise ValueError(f"{name} has dtype {x.dtype}, q has {q.dtype}; wanted the same")
    if k.shape != v.shape:
        raise ValueError(f"v has shape {v.shape}, k has {k.shape}; wanted the same")
    rows, heads, length, dim = q.shape
    if k.shape[0] != rows or k.shape[3] != dim:
        raise ValueError(
            f"k has shape {k.shape}, q has {q.shape}; wanted the same rows ({rows}) and head dim ({dim})"
        )
    if not k.shape[1] or heads % k.shape[1]:
        raise ValueError(f"q has {heads} heads, k has {k.shape[1]}; wanted a multiple")
    if not (length and k.shape[2]):
        raise ValueError(f"q has length {length}, k has {k.shape[2]}; wanted at least 1")
    for name, vis, size in (("q_vis", q_vis, length), ("kv_vis", kv_vis, k.shape[2])):
        vis.validate(name)
        if vis.order.shape not in ((size,), (1, size), (rows, size)):
            raise ValueError(
                f"{name} has fields {vis.order.shape}; wanted ({size},) or ({rows}, {size})"
            )
    if block_sizes is not None and min(block_sizes.q, block_sizes.kv) < 1:
        raise ValueError(f"block_sizes is {block_sizes}; wanted at least 1")
