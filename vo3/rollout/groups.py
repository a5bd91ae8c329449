"""The engine for groups: n rollouts of every task, for RL and for evaluation over many tasks.

    task -> overview -> prefix, once a group -> n leaves decode in one batch -> a leaf calls -> its clip is read on a host thread while the
    others go on -> its new tokens are prefilled -> it goes on -> ... -> when all n have ended the next group takes the slot

The conversation is `Run`'s, as in the engine for one question; here many of them are under way. What is drawn depends on the seed, the
task's id and the number of the rollout, not on what else is in the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

from vo3.chat import PromptPack
from vo3.chat.tokens import Tokenizer
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.rollout.buckets import Buckets, GroupBuckets
from vo3.rollout.group import GroupRollout
from vo3.rollout.group_counts import GroupCounts
from vo3.rollout.group_programs import GroupPrograms
from vo3.rollout.host_calls import HostCalls
from vo3.rollout.job import Job
from vo3.rollout.opener import Opener
from vo3.rollout.policy import RolloutPolicy
from vo3.rollout.rolling import AHEAD, Rolling
from vo3.rollout.run import Video
from vo3.rollout.sampler import Knobs, Sampling, host_knobs
from vo3.rollout.setting import Setting, longest, own_dialect, own_pack, own_tokenizer
from vo3.trajectory import Task


class GroupEngine:
    """Runs n rollouts of each task.

    Attributes:
      model, tokenizer, pack, policy: as given.
      rollouts: n.
      counts: work done so far.
    """

    def __init__(
        self,
        model: Qwen2_5_VL,
        *,
        tokenizer: Tokenizer | None = None,
        pack: PromptPack | str | None = None,
        policy: RolloutPolicy | None = None,
        buckets: GroupBuckets | Buckets | None = None,
        slots: int = 2,
        rollouts: int = 8,
        lanes: int = 1,
        workers: int = 8,
        timeout_s: float = 120.0,
        agree_every: int = 8,
        programs: GroupPrograms | None = None,
    ):
        """Prepares the programs; nothing is compiled yet.

        Args:
          model: with its parameters where they shall stay.
          tokenizer: None: the model's own.
          pack: prompt pack or its name; None: the model's own, else "default".
          policy: limits; None: RL's.
          buckets: static shapes; capacities are cut at the longest context.
          slots: groups under way at a time.
          rollouts: n, rollouts of a group.
          lanes: batches that the slots are dealt out to and that take turns on the device.
          workers: videos read at a time.
          timeout_s: seconds that reading a clip may take; then its rollout is void.
          agree_every: tokens decoded between two agreements, where several processes share the model.
          programs: those of another engine of this model with as many groups and leaves, to share what it has compiled.
        """
        if slots < 1 or rollouts < 1 or lanes < 1 or slots % lanes:
            raise ValueError(
                f"slots {slots}, rollouts {rollouts} and lanes {lanes} must be at least 1, and slots a multiple of lanes"
            )
        self.model = model
        self.tokenizer = own_tokenizer(model, tokenizer)
        self.policy = policy or RolloutPolicy(mode="rl", dialect=own_dialect(model))
        self.pack = own_pack(model, pack, self.policy.dialect)
        self.rollouts = rollouts
        self.counts = GroupCounts()
        self._lanes, self._workers, self._timeout_s = lanes, workers, timeout_s
        self._buckets = GroupBuckets.of(buckets).limit(self.max_length)
        self._programs = programs or GroupPrograms(model, groups=slots // lanes, leaves=rollouts)
        if (self._programs.groups, self._programs.leaves) != (slots // lanes, rollouts):
            raise ValueError(
                f"the programs are for {self._programs.groups} groups of {self._programs.leaves} rollouts; make new ones"
            )
        self._steps = agree_every if self._programs.shared else 1
        self._running = False
        self._ahead: Opener | None = None

    @property
    def compilations(self) -> int:
        """Programs compiled so far; constant after `warm_up`."""
        return self._programs.compilations

    @property
    def programs(self) -> GroupPrograms:
        """The compiled part."""
        return self._programs

    @property
    def max_length(self) -> int:
        """Tokens of the longest context."""
        return longest(self.model, self.policy)

    def update(self, model: Qwen2_5_VL) -> None:
        """Goes on with the parameters of `model`, of the same architecture; nothing compiles or passes through the host.

        Raises:
          ValueError: the architecture is another one.
          RuntimeError: rollouts with the old parameters are under way.
        """
        if self._running:
            raise RuntimeError("rollouts are under way; exhaust or close `run` before `update`")
        self._programs.update(model)
        self.model = model

    def warm_up(self, sampling: Sampling | None = None, *, live: bool = False) -> int:
        """Compiles every program that rollouts can ask for, or (`live`) those of `serve`; returns how many there are."""
        sampling = sampling or Sampling(temperature=1.0)
        if live:
            rows = Knobs.rows([sampling] * (self._programs.groups * self._programs.leaves))
            for method in ("greedy", "mixed"):
                self._programs.warm_up(self._buckets, rows, method)
        else:
            self._programs.warm_up(self._buckets, host_knobs(sampling), sampling.method)
        return self.compilations

    def open_ahead(self, tasks: Iterable[Task], open_video: Callable[[Task], Video]) -> None:
        """Begins to open the videos of the tasks that the next `run` begins with, as many as it would open at once, and returns.

        What is opened does not depend on the parameters, so this goes on while they are updated. `run` takes over what is there for its tasks
        if it is given the same `open_video`.
        """
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = self._opener(open_video)
        for task in itertools.islice(tasks, self._lanes * self._programs.groups + AHEAD):
            self._ahead.ahead(task)

    def close(self) -> None:
        """Lets go of what `open_ahead` began: what has not begun is dropped. The engine may go on."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def run(
        self,
        tasks: Iterable[Task],
        open_video: Callable[[Task], Video],
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Iterator[GroupRollout]:
        """The groups of `tasks`, in their order.

        Where processes share the model, each has tasks of its own, as many or as few as it has; all of them go through their iterators to
        the end, as none can go on without the others.

        Args:
          tasks: read as slots become free, a few ahead of what is yielded.
          open_video: opens a task's video, on a host thread; what it raises is the group's error.
          sampling: how tokens are drawn; its seed is not read. None: temperature 1.
          seed: rollout i of a task is drawn with `vo3.rollout.rolling.rollout_seed(seed, task.id, i)`, whatever else is under way.

        Raises:
          RuntimeError: another run of this engine is under way.
        """
        sampling = sampling or Sampling(temperature=1.0)
        yield from self._roll(map(Job, tasks), open_video, sampling=sampling, seed=seed)

    def serve(
        self, jobs: Iterable[Job | None], open_video: Callable[[Task], Video]
    ) -> Iterator[GroupRollout]:
        """The groups of jobs that come one by one, each as soon as it is done; until `jobs` ends.

        Args:
          jobs: each with its sampling (None: greedy). None says that there is none at the moment, and is asked again soon; the iterator may
            wait where nothing is under way.
          open_video: see `run`.

        Raises:
          RuntimeError: another run of this engine is under way.
          NotImplementedError: several processes share the model.
        """
        if self._programs.shared:
            raise NotImplementedError(
                "jobs that come one by one are served in one process; processes that share a model would have to agree on each"
            )
        yield from self._roll(jobs, open_video, sampling=Sampling(), seed=0, live=True)

    def _roll(
        self, jobs: Iterable[Job | None], open_video: Callable[[Task], Video], **options
    ) -> Iterator[GroupRollout]:
        if self._running:
            raise RuntimeError("another run is under way; exhaust or close it first")
        self._running = True
        opener, self._ahead = self._ahead or self._opener(open_video), None
        if opener.open_video != open_video:
            opener.close()
            opener = self._opener(open_video)
        try:
            yield from Rolling(
                self._programs,
                self._buckets,
                Setting.of(self.model, self.tokenizer, self.pack, self.policy),
                self.counts,
                jobs=jobs,
                opener=opener,
                lanes=self._lanes,
                steps=self._steps,
                **options,
            ).groups()
        finally:
            opener.close()
            self._running = False

    def _opener(self, open_video: Callable[[Task], Video]) -> Opener:
        host = HostCalls(workers=self._workers, timeout_s=self._timeout_s)
        vision = self._programs.config.vision
        return Opener(open_video, host, vision=vision, table=self._buckets.patches)
