"""Dense attention under a Visibility, the meaning of `splash_attention` in a few lines: O(L * S) memory, for tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.visibility import Visibility


def attention(
    q: Float[Array, "B N L H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    q_vis: Visibility,
    kv_vis: Visibility,
    *,
    causal: bool,
    scale: float,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[Float[Array, "B N L H"], Float[Array, "B N L"]]:
    """softmax(scale * q k^T) v over the visible keys.

    Args:
      q, k, v: query head n reads kv head n // (N / K).
      q_vis, kv_vis: fields [b, L] and [b, S] with b in {1, B}.
      causal: whether `order` counts.
      scale: factor on the scores.
      dtype: of the whole computation (float64 for the tests' oracle).

    Returns:
      out in q's dtype, and the log-sum-exp of the scores in `dtype`; a row that sees nothing has out 0, lse -inf.
    """
    rows, heads, length, dim = q.shape
    groups = heads // k.shape[1]
    queries = q.astype(dtype).reshape(rows, k.shape[1], groups, length, dim)
    scores = jnp.einsum("BKGLH,BKSH->BKGLS", queries, k.astype(dtype)) * scale
    mask = jnp.asarray(q_vis.dense(causal=causal, kv=kv_vis))[:, None, None]
    masked = jnp.where(mask, scores, jnp.finfo(dtype).min)
    top = jax.lax.stop_gradient(masked.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(masked - top), 0)
    total = weights.sum(axis=-1)
    seen = ~(total == 0)
    # `where` inside and outside: the unused branch must be finite, or its gradient is 0 * inf = NaN.
    safe = jnp.where(seen, total, 1)
    out = jnp.einsum("BKGLS,BKSH->BKGLH", weights, v.astype(dtype)) / safe[..., None]
    lse = jnp.where(seen, top[..., 0] + jnp.log(safe), -jnp.inf)
    return out.reshape(q.shape).astype(q.dtype), lse.reshape(q.shape[:3])
