"""Drawing a token from logits, traced; every row has its own seed and count, so the batch it stands in changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

# mixed: every row has knobs of its own, among them temperature 0
Method = Literal["greedy", "plain", "filtered", "mixed"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      temperature: 0 takes the likeliest token.
      top_p: keeps the likeliest tokens that together reach this probability; 1 keeps all.
      top_k: keeps this many; 0 keeps all. Applied before top_p.
      seed: of the rollout; token i is drawn with the key (seed, i).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2^32), got {self.seed}")

    @property
    def method(self) -> Method:
        """Which program it needs: the filters sort the vocabulary, so they are left out where nothing is filtered."""
        if self.temperature == 0:
            return "greedy"
        return "plain" if self.top_p == 1 and self.top_k == 0 else "filtered"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Knobs:
    """The numbers of `Sampling` as traced values: changing them compiles nothing. One for all rows, or one for each."""

    temperature: Float[Array, "*B"]
    top_p: Float[Array, "*B"]
    top_k: Int[Array, "*B"]

    @classmethod
    def rows(cls, samplings: Sequence[Sampling]) -> Knobs:
        """On the host, one for each row."""
        return cls(
            np.array([s.temperature for s in samplings], np.float32),
            np.array([s.top_p for s in samplings], np.float32),
            np.array([s.top_k for s in samplings], np.int32),
        )

    @classmethod
    def of(cls, sampling: Sampling) -> Knobs:
        """On the default device."""
        return cls(
            jnp.float32(sampling.temperature),
            jnp.float32(sampling.top_p),
            jnp.int32(sampling.top_k),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """The tokens drawn last, one a row.

    Attributes:
      token: the token; it is not in the cache yet.
      logprob: its log-probability at the temperature, before top_k and top_p (at temperature 1 for greedy).
      position: its M-RoPE position, the same on the three axes.
      count: how many the row had drawn before it.
      seed: of the row.
      active: rows that go on; the others draw nothing and leave the cache as it is.
    """

    token: Int[Array, " B"]
    logprob: Float[Array, " B"]
    position: Int[Array, " B"]
    count: Int[Array, " B"]
    seed: UInt32[Array, " B"]
    active: Bool[Array, " B"]


def draw(
    logits: Float[Array, "B V"],
    seed: UInt32[Array, " B"],
    count: Int[Array, " B"],
    knobs: Knobs,
    *,
    method: Method,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """A token and its log-probability per row.

    Args:
      logits: f32.
      seed, count: the key of the draw.
      knobs: temperature and filters; unused by `greedy`.
      method: see `Sampling.method`.
    """
    likeliest = lambda: jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if method == "greedy":
        token = likeliest()
        return token, _at(jax.nn.log_softmax(logits, axis=-1), token)
    temperature = _column(knobs.temperature)
    if method == "mixed":
        temperature = jnp.where(temperature == 0, 1, temperature)
    scaled = logits / temperature
    keys = jax.vmap(lambda s, i: jax.random.fold_in(jax.random.key(s), i))(seed, count)
    kept = scaled if method == "plain" else _filter(scaled, knobs)
    token = jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
    if method == "mixed":
        token = jnp.where(knobs.temperature == 0, likeliest(), token)
    return token, _at(jax.nn.log_softmax(scaled, axis=-1), token)


def _filter(logits: Float[Array, "B V"], knobs: Knobs) -> Float[Array, "B V"]:
    """Logits with -inf where top_k or top_p drop a token; at least the likeliest stays."""
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None]
    top_k = _column(knobs.top_k)
    keep = (rank < top_k) | (top_k == 0)
    ranked = jnp.where(keep, ranked, -jnp.inf)
    probability = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    ranked = jnp.where((before < _column(knobs.top_p)) | (rank == 0), ranked, -jnp.inf)
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    return jnp.full_like(logits, -jnp.inf).at[rows, order].set(ranked, unique_indices=True)


def host_knobs(sampling: Sampling) -> Knobs:
    """One for all rows, on the host: every process hands in the same numbers."""
    return jax.tree.map(np.asarray, Knobs.of(sampling))


def _column(x: Array) -> Array:
    """Against [B, V]: one number for all rows as [1, 1], one for each as [B, 1]."""
    return x.reshape(-1, 1)


def _at(scores: Float[Array, "B V"], token: Int[Array, " B"]) -> Float[Array, " B"]:
    return jnp.take_along_axis(scores, token[:, None], axis=-1)[:, 0]
