"""The policy gradient's arithmetic: advantages of a group, and the loss of scored tokens.

    A_i = (r_i - mean r) / (std r + 1e-6)                              std with n - 1
    L_t = -min(rho_t A_i, clip(rho_t, 1 - low, 1 + high) A_i)           rho_t = exp(logprob_t - old_t)

Nothing here knows of rows, models or devices; `tests/vo3/train/policy_oracle.py` says the same in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

EPS = 1e-6  # beside the standard deviation
Aggregation = Literal["seq-mean-token-mean", "token-mean"]
AGGREGATIONS: tuple[Aggregation, ...] = ("seq-mean-token-mean", "token-mean")


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """Every choice of the loss; static.

    Attributes:
      clip_low, clip_high: the ratio counts from 1 - clip_low to 1 + clip_high.
      sequence_ratio: GSPO (arXiv 2507.18071): one ratio a sequence, the geometric mean of its tokens'.
      correction: truncated importance sampling between sampler and trainer: the loss of a token is weighted by
        min(exp(old - sampler), correction); 0: not.
      kl: factor on the k3 estimate of the divergence from the reference model; 0: none is needed.
    """

    clip_low: float = 0.2
    clip_high: float = 0.3
    sequence_ratio: bool = False
    correction: float = 0.0
    kl: float = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scored:
    """The tokens of a row that carry loss, gathered; M of them, padding at the end. L is the length of the row.

    Attributes:
      at: place in the row of the state that predicts the token.
      targets: the token.
      leaf: number of its leaf in the row, -1 in the padding.
      weight: of its loss in the sum; 0 in the padding.
      advantage: of its leaf.
      sampler: its log-probability as it was sampled.
      total: what the row adds to the denominator.
      old: its log-probability under the policy that the ratio is taken against; None: under the present one, so the ratio is 1.
    """

    at: Int[Array, "B M"]
    targets: Int[Array, "B M"]
    leaf: Int[Array, "B M"]
    weight: Float[Array, "B M"]
    advantage: Float[Array, "B M"]
    sampler: Float[Array, "B M"]
    total: Float[Array, " B"]
    old: Float[Array, "B M"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicySums:
    """What adds up over rows, micro-batches and devices, f32 scalars; `largest_*` are maxima.

    Attributes:
      loss: weighted sum of what is minimised.
      total: the denominator: sequences, or tokens.
      tokens: that carry loss.
      entropy: of their distributions.
      ratio: sum of the ratios.
      clipped_low, clipped_high: tokens whose gradient the clip took away, on either side.
      gap: sum of |trainer - sampler| over log-probabilities, before any update of the batch.
      drift: sum of sampler - trainer: an estimate of the divergence of the two.
      kl: sum of the k3 estimates.
      largest_gap, largest_ratio: maxima.
    """

    loss: Float[Array, ""]
    total: Float[Array, ""]
    tokens: Float[Array, ""]
    entropy: Float[Array, ""]
    ratio: Float[Array, ""]
    clipped_low: Float[Array, ""]
    clipped_high: Float[Array, ""]
    gap: Float[Array, ""]
    drift: Float[Array, ""]
    kl: Float[Array, ""]
    largest_gap: Float[Array, ""]
    largest_ratio: Float[Array, ""]

    @classmethod
    def zero(cls) -> PolicySums:
        """Of no tokens."""
        return cls(*[jnp.zeros((), jnp.float32)] * len(dataclasses.fields(cls)))

    def __add__(self, other: PolicySums) -> PolicySums:
        join = lambda name: jnp.maximum if name.startswith("largest") else jnp.add
        names = [f.name for f in dataclasses.fields(self)]
        return PolicySums(*[join(n)(getattr(self, n), getattr(other, n)) for n in names])


def advantages(
    rewards: Sequence[float], counted: Sequence[bool] | None = None, *, scale: bool = True
) -> Float[np.ndarray, " n"]:
    """Group advantages, float64; 0 for rollouts that do not count.

    Args:
      rewards: of the rollouts of a group.
      counted: those whose reward says something of the policy; None: all.
      scale: divide by the standard deviation (`no_std` of Dr. GRPO, arXiv 2503.20783, does not).
    """
    rewards = np.asarray(rewards, np.float64)
    counted = np.ones(rewards.size, bool) if counted is None else np.asarray(counted, bool)
    result = np.zeros(rewards.size)
    if counted.any():
        centred = rewards[counted] - rewards[counted].mean()
        result[counted] = centred / (spread(rewards[counted]) + EPS) if scale else centred
    return result


def spread(rewards: Sequence[float]) -> float:
    """Standard deviation with n - 1; 0 for fewer than two."""
    rewards = np.asarray(rewards, np.float64)
    return float(rewards.std(ddof=1)) if rewards.size > 1 else 0.0


def token_weights(lengths: Sequence[int], aggregation: Aggregation) -> Float[np.ndarray, " n"]:
    """Weight of every token of sequences with so many tokens; the denominator is `denominator`.

    Raises:
      ValueError: an unknown aggregation.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"unknown aggregation {aggregation!r}; one of {AGGREGATIONS}")
    lengths = np.asarray(lengths, np.float64)
    if aggregation == "token-mean":
        return np.ones(lengths.size)
    return 1.0 / np.maximum(lengths, 1)


def denominator(lengths: Sequence[int], sequences: int, aggregation: Aggregation) -> float:
    """What the sum is divided by: `sequences`, those without loss too, or the number of tokens."""
    return float(sequences if aggregation == "seq-mean-token-mean" else sum(lengths))


def policy_sums(
    logprob: Float[Array, "B M"],
    entropy: Float[Array, "B M"],
    scored: Scored,
    policy: PolicyLoss,
    *,
    reference: Float[Array, "B M"] | None = None,
) -> PolicySums:
    """Loss and figures of scored tokens; gradients flow through `logprob` alone.

    Args:
      logprob, entropy: of `scored.targets` under the present policy.
      scored: the tokens.
      policy: the choices.
      reference: log-probabilities under the reference model, where `policy.kl` asks for them.
    """
    live = scored.leaf >= 0
    # What stands in the padding must not reach the sums, nor as NaN the gradients.
    logprob = jnp.where(live, logprob, 0.0)
    fixed = jax.lax.stop_gradient(logprob)
    old = fixed if scored.old is None else jnp.where(live, scored.old, 0.0)
    log_ratio = logprob - old
    if policy.sequence_ratio:
        log_ratio = _leaf_means(log_ratio, scored.leaf)
    ratio = jnp.exp(log_ratio)
    low, high = jnp.float32(1 - policy.clip_low), jnp.float32(1 + policy.clip_high)
    advantage = scored.advantage
    free = ratio * advantage
    held = jnp.clip(ratio, low, high) * advantage
    loss = -jnp.minimum(free, held)
    if policy.correction:
        factor = jnp.exp(old - jnp.where(live, scored.sampler, 0.0))
        loss = loss * jax.lax.stop_gradient(jnp.minimum(factor, jnp.float32(policy.correction)))
    kl = jnp.zeros_like(loss)
    if policy.kl:
        away = jnp.where(live, reference, 0.0) - logprob
        kl = jnp.exp(away) - away - 1
        loss = loss + policy.kl * kl
    count = live.astype(jnp.float32)
    of = lambda x: jnp.sum(jnp.where(live, jax.lax.stop_gradient(x), 0.0).astype(jnp.float32))
    gap = jnp.where(live, old - scored.sampler, 0.0)
    return PolicySums(
        loss=jnp.sum(jnp.where(live, loss, 0.0) * scored.weight),
        total=jnp.sum(scored.total),
        tokens=jnp.sum(count),
        entropy=of(entropy),
        ratio=of(ratio),
        clipped_low=of((ratio < low) & (advantage < 0)),
        clipped_high=of((ratio > high) & (advantage > 0)),
        gap=of(jnp.abs(gap)),
        drift=of(-gap),
        kl=of(kl),
        largest_gap=jnp.max(jnp.abs(jax.lax.stop_gradient(gap)), initial=0.0),
        largest_ratio=jnp.max(jnp.where(live, jax.lax.stop_gradient(ratio), 0.0), initial=0.0),
    )


def _leaf_means(x: Float[Array, "B M"], leaf: Int[Array, "B M"]) -> Float[Array, "B M"]:
    """Each token's mean of `x` over its own leaf."""
    slots = x.shape[1] + 1  # the last one takes the padding
    place = jnp.where(leaf >= 0, leaf, slots - 1)

    def row(x: Array, place: Array) -> Array:
        sums = jax.ops.segment_sum(x, place, num_segments=slots)
        counts = jax.ops.segment_sum(jnp.ones_like(x), place, num_segments=slots)
        means = sums / jnp.maximum(counts, 1.0)
        return means.at[place].get(mode="promise_in_bounds")

    return jax.vmap(row)(x, place)
