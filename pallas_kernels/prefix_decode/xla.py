"""One-token attention in plain XLA: the rollouts of a group share one product with the prefix, which is read once."""

from __future__ import annotations

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
    dot = lambda a, b, axis: jax.lax.dot_general(
        a, b, (((axis,), (axis,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
    )
    index = jnp.arange(k.shape[2], dtype=jnp.int32)[None]
    bias = jnp.where(index < length[:, None], jnp.float32(0), jnp.float32(NEG))
    # Keys by queries: the long operand is read as it lies and reductions run across vector lanes, 2x faster on CPU.
    scores = dot(k, q * jnp.asarray(scale, q.dtype), 3) + bias[:, None, :, None]
    top = jax.lax.stop_gradient(scores.max(axis=2))
    weights = jnp.exp(scores - top[:, :, None])
    total = weights.sum(axis=2)
    seen = (top > NEG / 2) | jnp.isnan(total)
    out = dot(weights.astype(v.dtype), v, 2) / total[..., None]
    lse = jnp.where(seen, top + jnp.log(total), -jnp.inf)
    return jnp.where(seen[..., None], out, 0), lse
