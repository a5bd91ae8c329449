"""One-token attention in plain XLA: the rollouts of a group share one product with the prefix, which is read once."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.prefix_decode.merge import merge

NEG = -1e30


def attention(
    q: Float[Array, "G n N H"],
    prefix_k: Float[Array, "G K M H"],
    prefix_v: Float[Array, "G K M H"],
    suffix_k: Float[Array, "G n K R H"],
    suffix_v: Float[Array, "G n K R H"],
    prefix_length: Int[Array, " G"],
    suffix_length: Int[Array, "G n"],
    *,
    scale: float,
) -> tuple[Float[Array, "G n N H"], Float[Array, "G n N"]]:
    """As `reference.attention`, without repeating the prefix."""
    return shared(
        q, prefix_k, prefix_v, suffix_k, suffix_v, prefix_length, suffix_length, scale, _attend
    )


def shared(
    q, prefix_k, prefix_v, suffix_k, suffix_v, prefix_length, suffix_length, scale, attend
) -> tuple[Float[Array, "G n N H"], Float[Array, "G n N"]]:
    """Prefix and suffix by `attend(q [Z, K, X, H], k, v [Z, K, S, H], length [Z], scale)`, merged by log-sum-exp."""
    group, rollouts, heads, dim = q.shape
    kv_heads = prefix_k.shape[1]
    queries = q.reshape(group, rollouts, kv_heads, heads // kv_heads, dim)
    # All rollouts' queries of a kv head stand together: [G, K, n * g, H].
    together = queries.swapaxes(1, 2).reshape(group, kv_heads, -1, dim)
    out_a, lse_a = attend(together, prefix_k, prefix_v, prefix_length, scale)
    apart = (group, kv_heads, rollouts, heads // kv_heads)
    out_a = out_a.reshape(*apart, dim).swapaxes(1, 2)
    lse_a = lse_a.reshape(apart).swapaxes(1, 2)
    flat = lambda x: x.reshape(group * rollouts, *x.shape[2:])
    out_b, lse_b = attend(
        flat(queries), flat(suffix_k), flat(suffix_v), suffix_length.reshape(-1), scale
    )
    out, lse = merge(out_a, lse_a, out_b.reshape(out_a.shape), lse_b.reshape(lse_a.shape))
    return out.reshape(q.shape).astype(q.dtype), lse.reshape(q.shape[:3])


def _attend(q, k, v, length, scale):
    """(out, lse) in float32 of queries [Z, K, X, H] over the first `length` keys of [Z, K, S, H]."""
    size, lanes = k.shape[2], math.gcd(k.shape[2], 128)
    product = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    bias = jnp.where(jnp.arange(size)[None] < length[:, None], jnp.float32(0), jnp.float32(NEG))
    scores = product(q * jnp.asarray(scale, q.dtype), k, (((3,), (3,)), ((0, 1), (0, 1))))
    scores = scores + bias[:, None, None]
    # Reduced across rows of `lanes` keys first: XLA on CPU adds those up in vectors, which it does not along the last axis. 1.2x faster in all.
    rows = scores.reshape(*scores.shape[:3], size // lanes, lanes)
    top = jax.lax.stop_gradient(rows.max(axis=3).max(axis=3))
    weights = jnp.exp(rows - top[..., None, None])
    total = weights.sum(axis=3).sum(axis=3)
    seen = (top > NEG / 2) | jnp.isnan(total)
    weights = weights.reshape(scores.shape).astype(v.dtype)
    out = product(weights, v, (((3,), (2,)), ((0, 1), (0, 1)))) / total[..., None]
    lse = jnp.where(seen, top + jnp.log(total), -jnp.inf)
    return jnp.where(seen[..., None], out, 0), lse
