"""Log-probabilities of given tokens without an [L, V] array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vo3.models.qwen2_5_vl import Qwen2_5_VL
from vo3.train.sharded_loss import by_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenScores:
    """Of tokens under the model, f32.

    Attributes:
      logprob: of the token itself.
      entropy: of the distribution it was drawn from, nats; no gradient flows through it.
    """

    logprob: Float[Array, "B M"]
    entropy: Float[Array, "B M"]


def token_scores(
    hidden: Float[Array, "B M D"],
    targets: Int[Array, "B M"],
    unembed: Callable[[Float[Array, "B C D"]], Float[Array, "B C V"]],
    *,
    chunk: int = 512,
    temperature: float = 1.0,
) -> TokenScores:
    """Scores of `targets`, logits computed `chunk` tokens of each row at a time and again on the way back.

    Args:
      hidden: the states that predict the targets.
      targets: token ids.
      unembed: hidden states to f32 logits.
      chunk: tokens per chunk; rows are padded to a multiple of it.
      temperature: of sampling; logits are divided by it.
    """
    batch, length, _ = hidden.shape
    chunk = min(chunk, length)
    pad = -length % chunk
    count = (length + pad) // chunk

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def part(_: None, rows: tuple[Array, Array]) -> tuple[None, TokenScores]:
        states, labels = rows
        logits = unembed(states).astype(jnp.float32) / jnp.float32(temperature)
        # The largest logit comes off first, as in the sampler: small differences of large numbers would lose the last digits of a likely token.
        logits -= jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
        at = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")[..., 0]
        norm = jnp.log(jnp.exp(logits).sum(axis=-1))
        fixed, fixed_norm = jax.lax.stop_gradient((logits, norm))
        share = jnp.exp(fixed - fixed_norm[..., None])
        return None, TokenScores(at - norm, fixed_norm - jnp.sum(share * fixed, axis=-1))

    _, scores = jax.lax.scan(part, None, (split(hidden), split(targets)))
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, count * chunk)[:, :length]
    return jax.tree.map(join, scores)


def sharded_token_scores(
    hidden: Float[Array, "B M D"],
    targets: Int[Array, "B M"],
    model: Qwen2_5_VL,
    *,
    mesh: Mesh | None,
    axes: Sequence[str],
    chunk: int = 512,
    temperature: float = 1.0,
) -> TokenScores:
    """`token_scores` with the model's output matrix, rows split over `axes` of the mesh; see `vo3.train.sharded_loss`."""
    return by_rows(
        lambda unembed, hidden, targets: token_scores(
            hidden, targets, unembed, chunk=chunk, temperature=temperature
        ),
        (hidden, targets),
        model,
        mesh=mesh,
        axes=axes,
    )
