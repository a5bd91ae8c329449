"""Chunked attention under a Visibility in plain XLA: O(L) memory, for CPU and GPU.

The same online softmax as the TPU kernel, as loops over chunks: for every chunk of queries only the chunks of keys that
may hold a visible pair are read (`schedule.block_states`). K and V are never repeated for grouped heads. The backward
pass recomputes the probabilities from the saved log-sum-exp (FlashAttention-2, Dao 2023, algorithm 2).
Small problems are one dense chunk: loops cost more than they save there.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import schedule
from pallas_kernels.splash import reference
from pallas_kernels.visibility import Visibility, pad, visible

# Scores (B * N * L * S) up to which one dense chunk is used: 64 MB of float32.
DENSE_SCORES = 1 << 24
# Scores a chunk pair may hold when the caller names no block sizes: 4 MB of float32 stay near the cache.
CHUNK_SCORES = 1 << 20
NEG = -1e30


@dataclasses.dataclass(frozen=True)
class _Static:
    """What does not change under tracing."""

    causal: bool
    scale: float
    block_q: int
    block_kv: int


def attention(
    q: Float[Array, "B N L H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    q_vis: Visibility,
    kv_vis: Visibility,
    *,
    causal: bool,
    scale: float,
    block_q: int | None = None,
    block_kv: int | None = None,
) -> tuple[Float[Array, "B N L H"], Float[Array, "B N L"]]:
    """As `reference.attention`, without anything of size L x S beyond `DENSE_SCORES`; lse in float32."""
    rows, heads, length, dim = q.shape
    kv_heads, keys = k.shape[1:3]
    chunked = block_q is not None or block_kv is not None
    if not chunked and rows * heads * length * keys <= DENSE_SCORES:
        return _dense(q, k, v, q_vis, kv_vis, causal=causal, scale=scale)
    default = _chunk(rows * heads)
    static = _Static(
        causal, scale, min(block_q or default, length), min(block_kv or default, keys)
    )
    queries = q.reshape(rows, kv_heads, heads // kv_heads, length, dim)
    more_q, more_kv = -length % static.block_q, -keys % static.block_kv
    out, lse = _chunked(
        static,
        jnp.pad(queries, ((0, 0),) * 3 + ((0, more_q), (0, 0))),
        jnp.pad(k, ((0, 0),) * 2 + ((0, more_kv), (0, 0))),
        jnp.pad(v, ((0, 0),) * 2 + ((0, more_kv), (0, 0))),
        pad(q_vis, more_q),
        pad(kv_vis, more_kv),
    )
    return out[..., :length, :].reshape(q.shape), lse[..., :length].reshape(q.shape[:3])


def _chunk(rows_heads: int) -> int:
    """Largest power of two in [128, 1024] whose square holds no more than CHUNK_SCORES over rows and heads."""
    size = 1024
    while size > 128 and rows_heads * size * size > CHUNK_SCORES:
        size //= 2
    return size


def _dense(q, k, v, q_vis, kv_vis, *, causal, scale):
    rows, heads, length, dim = q.shape
    queries = q.reshape(rows, k.shape[1], heads // k.shape[1], length, dim)
    scores = (
        jnp.einsum("BKGLH,BKSH->BKGLS", queries, k, preferred_element_type=jnp.float32) * scale
    )
    mask = q_vis.dense(causal=causal, kv=kv_vis)[:, None, None]
    out, lse = reference.masked_softmax_matmul(scores, mask, v)
    return out.reshape(q.shape).astype(q.dtype), lse.reshape(q.shape[:3])


def _block(x, index, size, axis):
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _mask(static: _Static, q_vis: Visibility, kv_vis: Visibility, i, j):
    """The mask of one chunk pair, [b, 1, 1, block_q, block_kv]."""
    query = jax.tree.map(lambda x: _block(x, i, static.block_q, 1)[:, None, None, :, None], q_vis)
    key = jax.tree.map(lambda x: _block(x, j, static.block_kv, 1)[:, None, None, None, :], kv_vis)
    return visible(query, key, causal=static.causal)


def _active(static: _Static, q_vis: Visibility, kv_vis: Visibility):
    """Whether any row has something to see in a chunk pair, bool [queries, keys]."""
    states = schedule.block_states(
        q_vis, kv_vis, block_q=static.block_q, block_kv=static.block_kv, causal=static.causal
    )
    return (states != schedule.EMPTY).any(axis=0)


def _lists(active) -> tuple[Int[Array, "i j"], Int[Array, " i"]]:
    """Per first index: the second indices that are active, in order and in front, and their number."""
    order = jnp.argsort(~active, axis=1, stable=True).astype(jnp.int32)
    return order, active.sum(axis=1, dtype=jnp.int32)


def _scores(static: _Static, q, k):
    scores = jnp.einsum("BKGLH,BKSH->BKGLS", q, k, preferred_element_type=jnp.float32)
    return scores * static.scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(static, q, k, v, q_vis, kv_vis):
    return _forward(static, q, k, v, q_vis, kv_vis)[0]


def _forward(static: _Static, q, k, v, q_vis, kv_vis):
    rows, kv_heads, groups, length, dim = q.shape
    lists, counts = _lists(_active(static, q_vis, kv_vis))

    def one_chunk(_, args):
        i, keys, count = args
        queries = _block(q, i, static.block_q, 3)

        def step(n, carry):
            acc, top, total = carry
            j = keys[n]
            scores = _scores(static, queries, _block(k, j, static.block_kv, 2))
            mask = _mask(static, q_vis, kv_vis, i, j)
            scores = jnp.where(mask, scores, NEG)
            new_top = jnp.maximum(top, scores.max(axis=-1))
            shrink = jnp.exp(top - new_top)
            # A row that has seen nothing yet has new_top = NEG: exp(NEG - NEG) = 1 must not count.
            weights = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0)
            values = _block(v, j, static.block_kv, 2)
            acc = acc * shrink[..., None] + jnp.einsum(
                "BKGLS,BKSH->BKGLH",
                weights.astype(v.dtype),
                values,
                preferred_element_type=jnp.float32,
            )
            return acc, new_top, total * shrink + weights.sum(axis=-1)

        shape = (rows, kv_heads, groups, static.block_q)
        start = (
            jnp.zeros((*shape, dim), jnp.float32),
            jnp.full(shape, NEG, jnp.float32),
            jnp.zeros(shape, jnp.float32),
        )
        acc, top, total = jax.lax.fori_loop(0, count, step, start)
        safe = jnp.where(total > 0, total, 1)
        lse = jnp.where(total > 0, top + jnp.log(safe), -jnp.inf)
        return None, ((acc / safe[..., None]).astype(q.dtype), lse)

    index = jnp.arange(length // static.block_q, dtype=jnp.int32)
    _, (out, lse) = jax.lax.scan(one_chunk, None, (index, lists, counts))
    # [chunks, B, K, G, block, ...] -> [B, K, G, L, ...]
    out = jnp.moveaxis(out, 0, 3).reshape(q.shape)
    lse = jnp.moveaxis(lse, 0, 3).reshape(q.shape[:-1])
    return (out, lse), (q, k, v, q_vis, kv_vis, out, lse)


def _backward(static: _Static, saved, cotangents):
    q, k, v, q_vis, kv_vis, out, lse = saved
    d_out, d_lse = cotangents
    keys = k.shape[2]
    lists, counts = _lists(_active(static, q_vis, kv_vis).T)
    seen = jnp.isfinite(lse)
    safe_lse = jnp.where(seen, lse, 0)
    # d score = p * (d_out . v - sum(d_out * out) + d_lse); the last two are one number per row.
    delta = jnp.where(seen, d_lse, 0) - jnp.einsum(
        "BKGLH,BKGLH->BKGL", d_out, out, preferred_element_type=jnp.float32
    )

    def one_chunk(dq, args):
        j, queries, count = args
        k_j, v_j = _block(k, j, static.block_kv, 2), _block(v, j, static.block_kv, 2)

        def step(n, carry):
            dq, dk, dv = carry
            i = queries[n]
            q_i, do_i = _block(q, i, static.block_q, 3), _block(d_out, i, static.block_q, 3)
            scores = _scores(static, q_i, k_j) - _block(safe_lse, i, static.block_q, 3)[..., None]
            mask = _mask(static, q_vis, kv_vis, i, j)
            weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores, 0)), 0)
            dv = dv + jnp.einsum(
                "BKGLS,BKGLH->BKSH",
                weights.astype(d_out.dtype),
                do_i,
                preferred_element_type=jnp.float32,
            )
            dp = jnp.einsum("BKGLH,BKSH->BKGLS", do_i, v_j, preferred_element_type=jnp.float32)
            ds = weights * (dp + _block(delta, i, static.block_q, 3)[..., None]) * static.scale
            ds = ds.astype(q.dtype)
            dk = dk + jnp.einsum(
                "BKGLS,BKGLH->BKSH", ds, q_i, preferred_element_type=jnp.float32
            )
            dq_i = jnp.einsum("BKGLS,BKSH->BKGLH", ds, k_j, preferred_element_type=jnp.float32)
            dq_i = dq_i + _block(dq, i, static.block_q, 3)
            dq = jax.lax.dynamic_update_slice_in_dim(dq, dq_i, i * static.block_q, 3)
            return dq, dk, dv

        zero = jnp.zeros(k_j.shape, jnp.float32)
        dq, dk, dv = jax.lax.fori_loop(0, count, step, (dq, zero, zero))
        return dq, (dk.astype(k.dtype), dv.astype(v.dtype))

    index = jnp.arange(keys // static.block_kv, dtype=jnp.int32)
    dq, (dk, dv) = jax.lax.scan(
        one_chunk, jnp.zeros(q.shape, jnp.float32), (index, lists, counts)
    )
    dk, dv = (jnp.moveaxis(x, 0, 2).reshape(k.shape) for x in (dk, dv))
    return dq.astype(q.dtype), dk, dv, None, None


_chunked.defvjp(_forward, _backward)
