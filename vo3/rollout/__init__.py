"""The rollout engine: the one loop that the agent, evaluation, RL and the server run on."""

from vo3.rollout.buckets import Buckets, GroupBuckets
from vo3.rollout.engine import Engine
from vo3.rollout.errors import BucketError, ContextError, OptionError, RolloutError
from vo3.rollout.group import GroupRollout
from vo3.rollout.groups import GroupEngine
from vo3.rollout.job import Job
from vo3.rollout.policy import RolloutPolicy
from vo3.rollout.run import Rollout
from vo3.rollout.sampler import Sampling

__all__ = [
    "BucketError",
    "Buckets",
    "ContextError",
    "Engine",
    "GroupBuckets",
    "GroupEngine",
    "GroupRollout",
    "Job",
    "OptionError",
    "Rollout",
    "RolloutError",
    "RolloutPolicy",
    "Sampling",
]
