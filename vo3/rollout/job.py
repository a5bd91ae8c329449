"""A task with what is its own: where many people ask one engine, each has limits, temperature and patience of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from vo3.rollout.policy import RolloutPolicy
from vo3.rollout.run import OnEvent
from vo3.rollout.sampler import Sampling
from vo3.trajectory import Task


def _never() -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done for one task.

    Attributes:
      task: the question.
      policy: its limits; None: the engine's. The length of the context is the engine's in any case.
      sampling: how its tokens are drawn, its seed as it stands; None: as the run says, with a seed made from the task's id.
      on_event: called with every event as it happens, on the thread that runs the engine. It must not raise.
      gone: whether nobody wants the result any more; asked often. The job then ends without a rollout, and its slot is free.
    """

    task: Task
    policy: RolloutPolicy | None = None
    sampling: Sampling | None = None
    on_event: OnEvent | None = None
    gone: Callable[[], bool] = _never
