"""From rollouts to what is trained on: rewards, which rollouts count, which carry loss, advantages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import ml_collections
from absl import logging

from vo3.rewards import RewardBreakdown, RewardPolicy, score
from vo3.rollout import GroupRollout, Rollout
from vo3.train import rl_config
from vo3.train.policy_loss import advantages, spread
from vo3.trajectory import Trajectory

_NONE = RewardBreakdown(0.0, 0.0, 0.0, 0.0, 0.0)
# What the engine notes of a rollout that ended for reasons that are not the policy's.
_LOST = ("video_error", "error")


@dataclasses.dataclass(frozen=True)
class ScoredRollout:
    """A rollout and what came of it.

    Attributes:
      rollout: as rolled out.
      reward: its parts; zeros when it is lost.
      total: what the advantage is made of: the reward's total, less the penalty for length.
      lost: why its reward says nothing of the policy (its video vanished, the reward raised), or None. A lost rollout is in neither
        the statistics nor the loss.
      trained: whether it carries loss: not when it exceeded a limit, nor when lost.
      advantage: in its group.
    """

    rollout: Rollout
    reward: RewardBreakdown
    total: float
    lost: str | None
    trained: bool
    advantage: float

    @property
    def trajectory(self) -> Trajectory:
        """The conversation."""
        return self.rollout.trajectory

    @property
    def sampled(self) -> int:
        """Tokens that were sampled."""
        return sum(len(turn.ids or ()) for turn in self.trajectory.turns)


@dataclasses.dataclass(frozen=True)
class ScoredGroup:
    """The rollouts of a prompt.

    Attributes:
      number: of the prompt.
      name: of the task.
      rollouts: scored, in order; none when the group could not begin.
      spread: standard deviation of the totals.
      dropped: why nothing is trained on it, or None.
    """

    number: int
    name: str
    rollouts: tuple[ScoredRollout, ...]
    spread: float
    dropped: str | None


class Scorer:
    """Scores groups as the configuration says."""

    def __init__(self, config: ml_collections.ConfigDict):
        rl = config.rl
        self._policy: RewardPolicy = rl_config.reward_policy(config)
        self._scale = "no_std" not in rl.options
        self._overlong = "overlong" in rl.options
        self._limit, self._buffer = rl.overlong_limit, rl.overlong_buffer
        self._min_std = rl.min_std

    def group(self, number: int, group: GroupRollout) -> ScoredGroup:
        """Rewards and advantages of a group."""
        name = group.task.id
        if group.error is not None:
            logging.warning("prompt %d (%s) is left out: %s", number, name, group.error)
            return ScoredGroup(number, name, (), 0.0, "unreadable")
        scored = [self._rollout(i, r) for i, r in enumerate(group.rollouts)]
        counted = [s.lost is None for s in scored]
        totals = [s.total for s in scored]
        known = [t for t, c in zip(totals, counted, strict=True) if c]
        deviation = spread(known)
        gains = advantages(totals, counted, scale=self._scale)
        scored = [
            dataclasses.replace(s, advantage=float(a)) for s, a in zip(scored, gains, strict=True)
        ]
        dropped = None
        if len(known) < 2:
            dropped = "lost"
        elif deviation < self._min_std:
            dropped = "equal"
        elif not any(s.trained for s in scored):
            dropped = "untrained"
        return ScoredGroup(number, name, tuple(scored), deviation, dropped)

    def _rollout(self, index: int, rollout: Rollout) -> ScoredRollout:
        trajectory = rollout.trajectory
        lost = next((f"{k}: {trajectory.meta[k]}" for k in _LOST if trajectory.meta.get(k)), None)
        reward = _NONE
        if lost is None:
            try:
                reward = score(trajectory, trajectory.task.target, self._policy)
            except Exception as error:  # one rollout never ends the run; it is counted and named
                lost = f"reward: {type(error).__name__}: {error}"
        if lost is not None:
            logging.warning("rollout %d of %s is lost: %s", index, trajectory.task.id, lost)
        total = reward.total
        if self._overlong:
            sampled = sum(len(turn.ids or ()) for turn in trajectory.turns)
            total -= overlong_penalty(sampled, self._limit, self._buffer)
        trained = lost is None and trajectory.outcome != "exceeded"
        return ScoredRollout(rollout, reward, total, lost, trained, 0.0)


def overlong_penalty(sampled: int, limit: int, buffer: int) -> float:
    """0 up to `limit - buffer` sampled tokens, then growing to 1 at `limit` (DAPO, arXiv 2503.14476, equation 13)."""
    return min(max((sampled - (limit - buffer)) / buffer, 0.0), 1.0)


def with_reward(rollout: ScoredRollout, *, step: int, number: int, index: int) -> Trajectory:
    """The trajectory with what the trainer knows of it, for files that people read."""
    notes = {
        "step": step,
        "prompt": number,
        "rollout": index,
        "reward": dataclasses.asdict(rollout.reward),
        "advantage": rollout.advantage,
        "trained": rollout.trained,
    }
    if rollout.lost:
        notes["lost"] = rollout.lost
    return dataclasses.replace(rollout.trajectory, meta={**rollout.trajectory.meta, "rl": notes})


def kept(groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """Those that are trained on."""
    return [group for group in groups if group.dropped is None]
