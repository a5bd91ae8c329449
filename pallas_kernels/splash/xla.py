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
from pallas_kernels.visibility import Visibility, pad, visible

# Scores (B * N * L * S) up to which one dense chunk is used, and that a chunk pair may hold when the caller names no block
# sizes: 4 MB of float32 stay near the cache. Chunked is 2x faster than dense on two cores at B 16, N 4, L 300 already.
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
    """As `reference.attention`, without anything of size L x S beyond `CHUNK_SCORES` scores; lse in float32."""
    rows, heads, length, dim = q.shape
    kv_heads, keys = k.shape[1:3]
    chunked = block_q is not None or block_kv is not None
    if not chunked and rows * heads * length * keys <= CHUNK_SCORES:
        return _dense(q, k, v, q_vis, kv_vis, causal=causal, scale=scale)
    default = _chunk(rows * heads)
    static = _Static(
        causal, scale, _even(length, block_q or default), _even(keys, block_kv or default)
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
    """64 on CPU; elsewhere the largest power of two in [128, 1024] whose square holds no more than CHUNK_SCORES over rows and heads.

    On CPU 64 was the fastest of 32 to 256, forward and backward: by 25 % over 128 at B 8, N 4, L 380 and B 2, N 4, L 1024.
    """
    if jax.default_backend() == "cpu":
        return 64
    size = 1024
    while size > 128 and rows_heads * size * size > CHUNK_SCORES:
        size //= 2
    return size


def _even(length: int, block: int) -> int:
    """The block size, a multiple of 8 where possible, that cuts `length` into as many blocks with the least padding."""
    blocks = -(-length // block)
    return min(length, -(-length // (8 * blocks)) * 8)


def _dense(q, k, v, q_vis, kv_vis, *, causal, scale):
    rows, heads, length, dim = q.shape
    kv_heads, keys = k.shape[1:3]
    flat = (rows * kv_heads, heads // kv_heads * length, dim)
    k, v = k.reshape(-1, keys, dim), v.reshape(-1, keys, dim)
    scores = _bsd(q.reshape(flat) * jnp.asarray(scale, q.dtype), k)
    bias = _bias(visible(_expand(q_vis, -1), _expand(kv_vis, -2), causal=causal))
    scores = scores.reshape(rows, heads, length, keys) + bias[:, None]
    top = jax.lax.stop_gradient(scores.max(axis=-1))
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(axis=-1)
    # A row that sees nothing has equal scores of about NEG: finite garbage, dropped with its gradient. A NaN goes on;
    # CPU's `max` passes over it.
    seen = (top > NEG / 2) | jnp.isnan(total)
    out = _bds(weights.astype(v.dtype).reshape(flat[0], flat[1], keys), v).reshape(q.shape)
    out = jnp.where(seen[..., None], out / total[..., None], 0)
    return out.astype(q.dtype), jnp.where(seen, top + jnp.log(total), -jnp.inf)


def _dot(x, y, x_axis, y_axis):
    """Batched product of [Z, ., .] and [Z, ., .] over the named axes, summed in float32."""
    return jax.lax.dot_general(
        x, y, (((x_axis,), (y_axis,)), ((0,), (0,))), preferred_element_type=jnp.float32
    )


def _bsd(x, y):
    """[Z, X, H], [Z, Y, H] -> [Z, X, Y]."""
    return _dot(x, y, 2, 2)


def _bds(x, y):
    """[Z, X, Y], [Z, Y, H] -> [Z, X, H]."""
    return _dot(x, y, 2, 1)


def _tds(x, y):
    """[Z, X, Y], [Z, X, H] -> [Z, Y, H]."""
    return _dot(x, y, 1, 1)


def _bias(mask):
    """0 where visible, NEG where not: one addition per head instead of a compare and a select."""
    return jnp.where(mask, jnp.float32(0), jnp.float32(NEG))


def _expand(vis: Visibility, axis: int) -> Visibility:
    return jax.tree.map(lambda x: jnp.expand_dims(x, axis), vis)


def _block(x, index, size, axis):
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(static, q, k, v, q_vis, kv_vis):
    return _forward(static, q, k, v, q_vis, kv_vis)[0]


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Reads chunks of [B, K, G, L, ...] and [B, K, S, H] arrays as [B * K, G * block, ...] and [B * K, block, H]."""

    static: _Static
    shape: tuple[int, int, int]

    def q(self, x, i):
        x = _block(x, i, self.static.block_q, 3)
        return x.reshape(self.shape[0] * self.shape[1], -1, *x.shape[4:])

    def kv(self, x, j):
        x = _block(x, j, self.static.block_kv, 2)
        return x.reshape(-1, *x.shape[2:])

    def scores(self, queries, keys, q_vis, kv_vis, i, j):
        """Masked scores [B * K, G * block_q, block_kv] of a chunk pair; scale is in the queries."""
        q_vis = jax.tree.map(lambda x: _block(x, i, self.static.block_q, 1), q_vis)
        kv_vis = jax.tree.map(lambda x: _block(x, j, self.static.block_kv, 1), kv_vis)
        mask = visible(_expand(q_vis, -1), _expand(kv_vis, -2), causal=self.static.causal)
        scores = _bsd(queries, keys)
        split = scores.reshape(*self.shape, self.static.block_q, self.static.block_kv)
        return (split + _bias(mask)[:, None, None]).reshape(scores.shape)


def _forward(static: _Static, q, k, v, q_vis, kv_vis):
    dim = q.shape[-1]
    lists, counts = _lists(_active(static, q_vis, kv_vis))
    chunks = _Chunks(static, q.shape[:3])

    def one_chunk(_, args):
        i, keys, count = args
        queries = chunks.q(q, i) * jnp.asarray(static.scale, q.dtype)

        def step(n, carry):
            acc, top, total = carry
            j = keys[n]
            scores = chunks.scores(queries, chunks.kv(k, j), q_vis, kv_vis, i, j)
            new_top = jnp.maximum(top, scores.max(axis=-1))
            shrink = jnp.exp(top - new_top)
            # A row that has seen nothing yet gathers exp(0) = 1s, which shrink = 0 wipes at its first key.
            weights = jnp.exp(scores - new_top[..., None])
            acc = acc * shrink[..., None] + _bds(weights.astype(v.dtype), chunks.kv(v, j))
            return acc, new_top, total * shrink + weights.sum(axis=-1)

        start = (
            jnp.zeros((*queries.shape[:2], dim), jnp.float32),
            jnp.full(queries.shape[:2], 2 * NEG, jnp.float32),
            jnp.zeros(queries.shape[:2], jnp.float32),
        )
        acc, top, total = jax.lax.fori_loop(0, count, step, start)
        seen = (top > NEG / 2) | jnp.isnan(total)
        safe = jnp.where(seen, total, 1)
        lse = jnp.where(seen, top + jnp.log(safe), -jnp.inf)
        out = jnp.where(seen[..., None], acc / safe[..., None], 0).astype(q.dtype)
        shape = (*q.shape[:3], static.block_q)
        return None, (out.reshape(*shape, dim), lse.reshape(shape))

    index = jnp.arange(q.shape[3] // static.block_q, dtype=jnp.int32)
    _, (out, lse) = jax.lax.scan(one_chunk, None, (index, lists, counts))
    # [chunks, B, K, G, block, ...] -> [B, K, G, L, ...]
    out = jnp.moveaxis(out, 0, 3).reshape(q.shape)
    lse = jnp.moveaxis(lse, 0, 3).reshape(q.shape[:-1])
    return (out, lse), (q, k, v, q_vis, kv_vis, out, lse)


def _backward(static: _Static, saved, cotangents):
    q, k, v, q_vis, kv_vis, out, lse = saved
    d_out, d_lse = cotangents
    lists, counts = _lists(_active(static, q_vis, kv_vis).T)
    chunks = _Chunks(static, q.shape[:3])
    seen = ~jnp.isneginf(lse)
    # Rows that see nothing: exp(score - huge) = 0.
    shift = jnp.where(seen, lse, -NEG)
    # d score = p * (d_out . v - sum(d_out * out) + d_lse); the last two are one number per row.
    extra = jnp.where(seen, d_lse, 0) - jnp.einsum(
        "BKGLH,BKGLH->BKGL", d_out, out, preferred_element_type=jnp.float32
    )
    scale = jnp.asarray(static.scale, q.dtype)

    def one_chunk(dq, args):
        j, queries, count = args
        k_j, v_j = chunks.kv(k, j), chunks.kv(v, j)

        def step(n, carry):
            dq, dk, dv = carry
            i = queries[n]
            q_i, do_i = chunks.q(q, i) * scale, chunks.q(d_out, i)
            scores = chunks.scores(q_i, k_j, q_vis, kv_vis, i, j)
            weights = jnp.exp(scores - chunks.q(shift, i)[..., None])
            dv = dv + _tds(weights.astype(d_out.dtype), do_i)
            ds = weights * (_bsd(do_i, v_j) + chunks.q(extra, i)[..., None])
            ds = ds.astype(q.dtype)
            dk = dk + _tds(ds, q_i)
            start = (0, 0, 0, i * static.block_q, 0)
            old = jax.lax.dynamic_slice(dq, start, (*dq.shape[:3], static.block_q, dq.shape[4]))
            new = old + _bds(ds, k_j).reshape(old.shape)
            return jax.lax.dynamic_update_slice(dq, new, start), dk, dv

        zero = jnp.zeros(k_j.shape, jnp.float32)
        dq, dk, dv = jax.lax.fori_loop(0, count, step, (dq, zero, zero))
        shape = (*k.shape[:2], *k_j.shape[1:])
        return dq, (dk.astype(k.dtype).reshape(shape), dv.astype(v.dtype).reshape(shape))

    index = jnp.arange(k.shape[2] // static.block_kv, dtype=jnp.int32)
    dq, (dk, dv) = jax.lax.scan(one_chunk, jnp.zeros(q.shape, jnp.float32), (index, lists, counts))
    dk, dv = (jnp.moveaxis(x, 0, 2).reshape(k.shape) for x in (dk, dv))
    return (dq * static.scale).astype(q.dtype), dk, dv, None, None


_chunked.defvjp(_forward, _backward)
