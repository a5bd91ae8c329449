"""GRPO as Video-o3's settings amount to it, in NumPy float64, from trajectories alone. Written from the recipe, not from the trainer.

A recorded batch is a list of groups of rollouts; a rollout gives its sampled turns, how it ended, its reward, and the log-probabilities of
its sampled tokens under the policy (`new`), the old policy (`old`), the sampler and, where the loss has a divergence, the reference policy.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class SampledTurn:
    ids: tuple[int, ...]
    stop: str
    new: np.ndarray
    old: np.ndarray
    sampler: np.ndarray
    reference: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Recorded:
    turns: tuple[SampledTurn, ...]
    outcome: str
    reward: float


def mask(rollout: Recorded) -> list[np.ndarray]:
    """Per sampled turn, which of its ids carry loss."""
    exceeded = rollout.outcome == "exceeded"
    return [
        np.full(len(turn.ids), not exceeded and turn.stop != "length") for turn in rollout.turns
    ]


def trained(rollout: Recorded, name: str) -> np.ndarray:
    parts = [
        np.asarray(getattr(turn, name))[m]
        for turn, m in zip(rollout.turns, mask(rollout), strict=True)
    ]
    return np.concatenate([np.zeros(0), *parts])


def group_advantages(rewards, *, scale: bool = True) -> np.ndarray:
    r = np.asarray(rewards, np.float64)
    n = len(r)
    mean = sum(r) / n
    deviation = np.sqrt(sum((x - mean) ** 2 for x in r) / (n - 1))
    return np.asarray([(x - mean) / (deviation + 1e-6) if scale else x - mean for x in r])


def overlong(rollout: Recorded, limit: int, buffer: int) -> float:
    """The reward less DAPO's soft penalty for length."""
    sampled = sum(len(turn.ids) for turn in rollout.turns)
    if sampled <= limit - buffer:
        return rollout.reward
    return rollout.reward - min((sampled - (limit - buffer)) / buffer, 1.0)


def loss(
    groups: list[list[Recorded]],
    *,
    aggregation: str = "seq-mean-token-mean",
    clip: tuple[float, float] = (0.2, 0.3),
    gspo: bool = False,
    scale: bool = True,
    tis: float = 0.0,
    kl: float = 0.0,
    min_std: float = 1e-4,
) -> float:
    """The loss of a batch."""
    per_sequence, tokens = [], []
    for group in groups:
        rewards = [r.reward for r in group]
        if np.std(rewards, ddof=1) < min_std:
            continue
        for rollout, a in zip(group, group_advantages(rewards, scale=scale), strict=True):
            new = trained(rollout, "new").astype(np.float64)
            old = trained(rollout, "old").astype(np.float64)
            sampler = trained(rollout, "sampler").astype(np.float64)
            if not new.size:
                per_sequence.append(0.0)
                continue
            ratio = np.exp(new - old)
            if gspo:
                ratio = np.full(new.size, np.exp(np.mean(new - old)))
            away = trained(rollout, "reference") - new if kl else np.zeros(new.size)
            each = []
            for t in range(new.size):
                surrogate = min(ratio[t] * a, min(max(ratio[t], 1 - clip[0]), 1 + clip[1]) * a)
                factor = min(np.exp(old[t] - sampler[t]), tis) if tis else 1.0
                each.append(-surrogate * factor + kl * (np.exp(away[t]) - away[t] - 1))
            tokens += each
            per_sequence.append(sum(each) / len(each))
    if aggregation == "token-mean":
        return sum(tokens) / len(tokens)
    return sum(per_sequence) / len(per_sequence)
