"""Attention of the models: one call, sharded over a mesh when one is given."""

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
) -> Float[Array, "B N L H"]:
    """Attention under Visibility; rows that see nothing are zero."""
    batch, heads, length, dim = q.shape
    groups = heads // k.shape[1]
    q5 = q.reshape(batch, k.shape[1], groups, length, dim)
    scores = jnp.einsum("BKGLH,BKSH->BKGLS", q5, k, preferred_element_type=jnp.float32) * scale
    mask = q_vis.dense(causal=causal, kv=kv_vis)[:, None, None]
    scores = jnp.where(mask, scores, jnp.float32(-1e30))
    weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), jnp.float32(0)).astype(v.dtype)
    return jnp.einsum("BKGLS,BKSH->BKGLH", weights, v).reshape(q.shape)
