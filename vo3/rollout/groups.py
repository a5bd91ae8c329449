"""Groups of rollouts: n rollouts of every task, for RL and for evaluation over many tasks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator

from vo3.chat import PromptPack
from vo3.chat.tokens import Tokenizer
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.rollout.buckets import Buckets
from vo3.rollout.engine import Engine
from vo3.rollout.errors import ContextError
from vo3.rollout.policy import RolloutPolicy
from vo3.rollout.run import Rollout, Video
from vo3.rollout.sampler import Sampling
from vo3.trajectory import Task
from vo3.video import VideoError


@dataclasses.dataclass(frozen=True)
class GroupRollout:
    """The rollouts of one task.

    Attributes:
      task: the task.
      rollouts: all n of them, in order; none when the group could not begin.
      error: why it could not begin: the overview cannot be read, or the question is longer than the context.
    """

    task: Task
    rollouts: tuple[Rollout, ...]
    error: str | None = None


class GroupEngine:
    """Runs n rollouts of each task.

    Attributes:
      model, policy: as given.
      rollouts: n.
    """

    def __init__(
        self,
        model: Qwen2_5_VL,
        *,
        tokenizer: Tokenizer | None = None,
        pack: PromptPack | str | None = None,
        policy: RolloutPolicy | None = None,
        buckets: Buckets | None = None,
        slots: int = 2,
        rollouts: int = 8,
    ):
        """Prepares the programs; nothing is compiled yet.

        Args:
          model, tokenizer, pack, buckets: as for `Engine`.
          policy: limits; None: RL's.
          slots: groups under way at a time.
          rollouts: n, rollouts of a group.
        """
        if slots < 1 or rollouts < 1:
            raise ValueError(f"slots {slots} and rollouts {rollouts} must be at least 1")
        self.policy = policy or RolloutPolicy(mode="rl")
        self.rollouts = rollouts
        self._engine = Engine(
            model, tokenizer=tokenizer, pack=pack, policy=self.policy, buckets=buckets
        )

    @property
    def model(self) -> Qwen2_5_VL:
        """Whose parameters are in use."""
        return self._engine.model

    @property
    def compilations(self) -> int:
        """Programs compiled so far; constant after `warm_up`."""
        return self._engine.compilations

    def update(self, model: Qwen2_5_VL) -> None:
        """Goes on with the parameters of `model`, of the same architecture; nothing compiles."""
        self._engine.update(model)

    def warm_up(self, sampling: Sampling | None = None) -> int:
        """Compiles every program that rollouts can ask for; returns how many there are."""
        return self._engine.warm_up(sampling=sampling)

    def run(
        self,
        tasks: Iterable[Task],
        open_video: Callable[[Task], Video],
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Iterator[GroupRollout]:
        """The groups of `tasks`, in order.

        Args:
          tasks: read as slots become free.
          open_video: opens a task's video; what it raises is the group's error.
          sampling: how tokens are drawn; its seed is not read. None: temperature 1.
          seed: rollout i of a task is drawn with `rollout_seed(seed, task.id, i)`, whatever else is under way.
        """
        sampling = sampling or Sampling(temperature=1.0)
        for task in tasks:
            try:
                video = open_video(task)
                done = []
                for number in range(self.rollouts):
                    own = dataclasses.replace(sampling, seed=rollout_seed(seed, task.id, number))
                    done.append(self._engine.rollout(task, video, sampling=own))
                yield GroupRollout(task, tuple(done))
            except (VideoError, ContextError) as error:
                yield GroupRollout(task, (), f"{type(error).__name__}: {error}")


def rollout_seed(seed: int, task: str, number: int) -> int:
    """The seed of rollout `number` of a task, 32 bits."""
    digest = hashlib.blake2b(f"{seed}/{number}/{task}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
