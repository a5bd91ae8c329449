"""Losses that never hold an [L, V] array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """What adds up over chunks, micro-batches and devices, f32 scalars.

    Attributes:
      loss: weighted sum of what is minimised.
      entropy: weighted sum of the plain cross-entropy.
      hits: weight of the tokens predicted right.
      weight: sum of the weights.
    """

    loss: Float[Array, ""]
    entropy: Float[Array, ""]
    hits: Float[Array, ""]
    weight: Float[Array, ""]

    @classmethod
    def zero(cls) -> Sums:
        """Of no tokens."""
        return cls(*[jnp.zeros((), jnp.float32)] * 4)


def summed_cross_entropy(
    hidden: Float[Array, "B L D"],
    targets: Int[Array, "B L"],
    weight: Float[Array, "B L"],
    unembed: Callable[[Float[Array, "B C D"]], Float[Array, "B C V"]],
    *,
    chunk: int = 512,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Sums:
    """Weighted sum of the cross-entropy, logits computed `chunk` tokens of each row at a time and again on the way back.

    Args:
      hidden: states that predict `targets` (already shifted).
      targets: token ids.
      weight: 0 where there is no loss.
      unembed: hidden states to f32 logits.
      chunk: tokens per chunk; rows are padded to a multiple of it.
      z_loss: factor on logsumexp(logits)^2, which keeps the normaliser near 1 (PaLM, section 5).
      label_smoothing: share of the target that is spread evenly over the vocabulary.
    """
    batch, length, _ = hidden.shape
    chunk = min(chunk, length)
    pad = -length % chunk
    count = (length + pad) // chunk

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def part(carry: Sums, rows):
        states, labels, w = rows
        logits = unembed(states).astype(jnp.float32)
        at = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")[..., 0]
        norm = jax.nn.logsumexp(logits, axis=-1)
        entropy = norm - at
        loss = entropy
        if label_smoothing:
            even = norm - jnp.mean(logits, axis=-1)
            loss = (1 - label_smoothing) * loss + label_smoothing * even
        if z_loss:
            loss = loss + z_loss * norm**2
        hit = (logits.argmax(-1) == labels).astype(jnp.float32)
        return Sums(
            carry.loss + jnp.sum(loss * w),
            carry.entropy + jnp.sum(entropy * w),
            carry.hits + jnp.sum(hit * w),
            carry.weight + jnp.sum(w),
        ), None

    rows = split(hidden), split(targets), split(weight)
    return jax.lax.scan(part, Sums.zero(), rows)[0]


def chunked_cross_entropy(
    hidden: Float[Array, "B L D"],
    targets: Int[Array, "B L"],
    weight: Float[Array, "B L"],
    unembed: Callable[[Float[Array, "B C D"]], Float[Array, "B C V"]],
    *,
    chunk: int = 512,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(loss, accuracy) of `summed_cross_entropy`, both weighted means; 0 when no token has weight."""
    sums = summed_cross_entropy(hidden, targets, weight, unembed, chunk=chunk)
    norm = jnp.maximum(sums.weight, jnp.float32(1e-9))
    return sums.loss / norm, sums.hits / norm
