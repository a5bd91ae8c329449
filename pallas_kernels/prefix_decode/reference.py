"""One-token attention over prefix and suffix, dense float32 with the prefix repeated per rollout: the meaning, for tests."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
    """softmax over the first `prefix_length` prefix keys and the first `suffix_length` suffix keys together.

    Returns:
      out in q's dtype and the log-sum-exp in float32; a rollout without keys has out 0, lse -inf.
    """
    group, rollouts, heads, dim = q.shape
    kv_heads, prefix = prefix_k.shape[1:3]
    spread = lambda x: jnp.broadcast_to(x[:, None], (group, rollouts, *x.shape[1:]))
    k = jnp.concatenate([spread(prefix_k), suffix_k], axis=3).astype(jnp.float32)
    v = jnp.concatenate([spread(prefix_v), suffix_v], axis=3).astype(jnp.float32)
    queries = q.astype(jnp.float32).reshape(group, rollouts, kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum("GnKgH,GnKSH->GnKgS", queries, k) * scale
    index = jnp.arange(k.shape[3], dtype=jnp.int32)[None, None]
    in_prefix = index < prefix_length[:, None, None]
    mask = jnp.where(index < prefix, in_prefix, index - prefix < suffix_length[:, :, None])
    mask = mask[:, :, None, None]
    top = jnp.where(mask, scores, jnp.finfo(jnp.float32).min).max(axis=-1, keepdims=True)
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores, 0) - top), 0)
    total = weights.sum(axis=-1)
    seen = ~(total == 0)
    safe = jnp.where(seen, total, 1)
    out = jnp.einsum("GnKgS,GnKSH->GnKgH", weights, v) / safe[..., None]
    lse = jnp.where(seen, top[..., 0] + jnp.log(safe), -jnp.inf)
    return out.reshape(q.shape).astype(q.dtype), lse.reshape(q.shape[:3])
