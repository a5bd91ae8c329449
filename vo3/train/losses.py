"""Losses that never hold an [L, V] array."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def chunked_cross_entropy(
    hidden: Float[Array, "B L D"],
    targets: Int[Array, "B L"],
    weight: Float[Array, "B L"],
    unembed: Callable[[Float[Array, "B C D"]], Float[Array, "B C V"]],
    *,
    chunk: int = 512,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted mean of the cross-entropy, logits computed `chunk` tokens of each row at a time and again on the way back.

    Args:
      hidden: states that predict `targets` (already shifted).
      targets: token ids.
      weight: 0 where there is no loss.
      unembed: hidden states to f32 logits.
      chunk: tokens per chunk; rows are padded to a multiple of it.

    Returns:
      (loss, accuracy), both weighted means; 0 when no token has weight.
    """
    batch, length, _ = hidden.shape
    chunk = min(chunk, length)
    pad = -length % chunk
    count = (length + pad) // chunk

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def part(carry, rows):
        states, labels, w = rows
        logits = unembed(states).astype(jnp.float32)
        at = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")[..., 0]
        loss = jax.nn.logsumexp(logits, axis=-1) - at
        hit = (logits.argmax(-1) == labels).astype(jnp.float32)
        total, right = carry
        return (total + jnp.sum(loss * w), right + jnp.sum(hit * w)), None

    zero = jnp.zeros((), jnp.float32)
    sums, _ = jax.lax.scan(part, (zero, zero), (split(hidden), split(targets), split(weight)))
    norm = jnp.maximum(jnp.sum(weight), jnp.float32(1e-9))
    return sums[0] / norm, sums[1] / norm
