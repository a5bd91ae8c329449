"""A task and its n rollouts on their way through a batch of groups."""

from __future__ import annotations

import dataclasses
import functools

from vo3.rollout.context import Context, Counts
from vo3.rollout.errors import RolloutError
from vo3.rollout.host_calls import Ticket
from vo3.rollout.job import Job
from vo3.rollout.leaf import Leaf
from vo3.rollout.opener import Opened, Opener
from vo3.rollout.run import Rollout
from vo3.rollout.sampler import Sampling
from vo3.rollout.setting import Opening, Setting
from vo3.rollout.stream import Stream
from vo3.trajectory import Task
from vo3.video import VideoError


@dataclasses.dataclass(frozen=True)
class GroupRollout:
    """The rollouts of one task.

    Attributes:
      task: the task.
      rollouts: all n of them, in order; none when the group could not begin.
      error: why it could not begin: the overview cannot be read, or the question is longer than the context.
      cause: that error itself.
    """

    task: Task
    rollouts: tuple[Rollout, ...]
    error: str | None = None
    cause: VideoError | RolloutError | None = None


class Group:
    """A task: first its video is opened on a host thread, then it stands in a slot.

    Attributes:
      job: the task with what is its own.
      number: of the group in its run.
      prompt: the opening's tokens, on their way into the prefix.
      leaves: its rollouts; empty until `start`.
      error: why it could not begin; cause: that error itself.
    """

    def __init__(self, job: Job, number: int, opener: Opener):
        """Has the video opened and the overview read by `opener`."""
        self.job, self.task, self.number = job, job.task, number
        self.prompt: Stream | None = None
        self.leaves: tuple[Leaf, ...] = ()
        self.error: str | None = None
        self.cause: VideoError | RolloutError | None = None
        self._opener = opener
        self.ticket: Ticket[Opened] = opener.open(job.task)

    def start(self, setting: Setting, samplings: list[Sampling], *, longest: int) -> None:
        """Encodes the question and begins the rollouts; sets `error` where that cannot be.

        Args:
          setting: of the engine; a policy of the job's own comes before its policy.
          samplings: one per rollout, with its seed.
          longest: tokens that a prefix may have.
        """
        if self.job.policy is not None:
            setting = dataclasses.replace(setting, policy=self.job.policy)
        try:
            opened = self.ticket.result()
            opening = Opening.of(self.task, opened.overview, setting, seconds=opened.seconds)
            length = len(opening.encoded) + len(setting.header)
            if length > longest:
                raise RolloutError(
                    f"the question takes {length} tokens with its overview, and the largest prefix bucket holds {longest}; add "
                    "a bucket that holds it, or lower CropPolicy.overview_quota"
                )
        except (VideoError, RolloutError) as error:
            self.error, self.cause = f"{type(error).__name__}: {error}", error
            return
        context = Context()
        context.append(opening.encoded)
        context.append_ids(setting.header)
        self.prompt = Stream(context, Counts())
        self.prompt.show(opened.patches, 0)
        self.leaves = tuple(
            Leaf(
                setting,
                opening,
                opened.video,
                sampling,
                functools.partial(self._opener.clip, self.task, opened.video),
                self.job.on_event,
            )
            for sampling in samplings
        )

    def leave(self) -> None:
        """Ends it without rollouts: nobody wants them any more."""
        self.error = "nobody waits for it any more"

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.error is not None or all(leaf.stage == "done" for leaf in self.leaves)

    def result(self) -> GroupRollout:
        """The finished group."""
        rollouts = () if self.error else tuple(leaf.rollout for leaf in self.leaves)
        return GroupRollout(self.task, rollouts, self.error, self.cause)
