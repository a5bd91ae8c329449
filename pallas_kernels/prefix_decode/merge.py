"""Joining two attentions of the same queries over disjoint keys by their log-sum-exps."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def merge(
    out_a: Float[Array, "*Q H"],
    lse_a: Float[Array, "*Q"],
    out_b: Float[Array, "*Q H"],
    lse_b: Float[Array, "*Q"],
) -> tuple[Float[Array, "*Q H"], Float[Array, "*Q"]]:
    """(out, lse) over both key sets, float32; lse -inf on a side means it saw nothing. Adds no NaN in value or gradient."""
    a, b = ~jnp.isneginf(lse_a), ~jnp.isneginf(lse_b)
    # -inf minus -inf is NaN, and so would be the gradient of a branch that `where` throws away: make it finite first.
    top = jnp.maximum(jnp.where(a, lse_a, lse_b), jnp.where(b, lse_b, lse_a))
    top = jnp.where(a | b, top, 0)
    weight_a = jnp.where(a, jnp.exp(jnp.where(a, lse_a, 0) - top), 0)
    weight_b = jnp.where(b, jnp.exp(jnp.where(b, lse_b, 0) - top), 0)
    total = jnp.where(a | b, weight_a + weight_b, 1)
    out = out_a * (weight_a / total)[..., None] + out_b * (weight_b / total)[..., None]
    return out, jnp.where(a | b, top + jnp.log(total), -jnp.inf)
