"""Rewards: pure functions from a trajectory and its target to a breakdown."""

from vo3.rewards.trajectory_guided import (
    DATA_SOURCES,
    RewardBreakdown,
    RewardPolicy,
    score,
    score_row,
    target_from_row,
)
from vo3.trajectory import Clue, Target

__all__ = [
    "DATA_SOURCES",
    "Clue",
    "RewardBreakdown",
    "RewardPolicy",
    "Target",
    "score",
    "score_row",
    "target_from_row",
]
