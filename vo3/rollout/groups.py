"""The engine for groups: n rollouts of every task, for RL and for evaluation over many tasks.

    task -> overview -> prefix, once a group -> n leaves decode in one batch -> a leaf calls -> its clip is read on a host thread while the
    others go on -> its new tokens are prefilled -> it goes on -> ... -> when all n have ended the next group takes the slot

The conversation is `Run`'s, as in the engine for one question; here many of them are under way. What is drawn depends on the seed, the
task's id and the number of the rollout, not on what else is in the batch.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator

from absl import logging

from vo3.chat import PromptPack
from vo3.chat.tokens import Tokenizer
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.rollout.buckets import Buckets, GroupBuckets
from vo3.rollout.group import Group, GroupRollout
from vo3.rollout.group_counts import GroupCounts
from vo3.rollout.group_programs import GroupPrograms
from vo3.rollout.host_calls import HostCalls
from vo3.rollout.lane import Lane
from vo3.rollout.policy import RolloutPolicy
from vo3.rollout.run import Video
from vo3.rollout.sampler import Knobs, Sampling
from vo3.rollout.setting import Setting, longest, own_pack, own_tokenizer
from vo3.trajectory import Task

# Groups whose video is opened before a slot is free for them.
_AHEAD = 1
# Finished groups kept for one that goes before them, as a multiple of the slots.
_BEHIND = 4
# Seconds to wait for a host thread at a time, when there is nothing else to do.
_WAIT_S = 0.05


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
        """
        if slots < 1 or rollouts < 1 or lanes < 1 or slots % lanes:
            raise ValueError(
                f"slots {slots}, rollouts {rollouts} and lanes {lanes} must be at least 1, and slots a multiple of lanes"
            )
        self.model = model
        self.tokenizer = own_tokenizer(model, tokenizer)
        self.pack = own_pack(model, pack)
        self.policy = policy or RolloutPolicy(mode="rl")
        self.rollouts = rollouts
        self.counts = GroupCounts()
        self._lanes, self._workers, self._timeout_s = lanes, workers, timeout_s
        self._buckets = GroupBuckets.of(buckets).limit(longest(model, self.policy))
        self._programs = GroupPrograms(model, groups=slots // lanes, leaves=rollouts)
        self._running = False

    @property
    def compilations(self) -> int:
        """Programs compiled so far; constant after `warm_up`."""
        return self._programs.compilations

    @property
    def programs(self) -> GroupPrograms:
        """The compiled part."""
        return self._programs

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

    def warm_up(self, sampling: Sampling | None = None) -> int:
        """Compiles every program that rollouts can ask for; returns how many there are."""
        sampling = sampling or Sampling(temperature=1.0)
        self._programs.warm_up(self._buckets, Knobs.of(sampling), sampling.method)
        return self.compilations

    def run(
        self,
        tasks: Iterable[Task],
        open_video: Callable[[Task], Video],
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Iterator[GroupRollout]:
        """The groups of `tasks`, in their order.

        Where processes share the model, each has tasks of its own, and all of them exhaust their iterators.

        Args:
          tasks: read as slots become free, a few ahead of what is yielded.
          open_video: opens a task's video, on a host thread; what it raises is the group's error.
          sampling: how tokens are drawn; its seed is not read. None: temperature 1.
          seed: rollout i of a task is drawn with `rollout_seed(seed, task.id, i)`, whatever else is under way.

        Raises:
          RuntimeError: another run of this engine is under way.
        """
        if self._running:
            raise RuntimeError("another run is under way; exhaust or close it first")
        self._running = True
        host = HostCalls(workers=self._workers, timeout_s=self._timeout_s)
        try:
            rolling = _Rolling(self, tasks, open_video, sampling or Sampling(temperature=1.0), seed)
            yield from rolling.groups(host)
        finally:
            host.close()
            self._running = False


class _Rolling:
    """One run: tasks in, groups out."""

    def __init__(self, engine: GroupEngine, tasks, open_video, sampling: Sampling, seed: int):
        self.engine, self.tasks, self.open_video = engine, iter(tasks), open_video
        self.sampling, self.seed = sampling, seed
        self.setting = Setting.of(engine.model, engine.tokenizer, engine.pack, engine.policy)
        self.opening: collections.deque[Group] = collections.deque()
        self.finished: dict[int, GroupRollout] = {}
        self.pulled = self.given = 0
        self.exhausted = False
        self.lanes = [
            Lane(
                engine._programs,
                engine._buckets,
                knobs=Knobs.of(sampling),
                method=sampling.method,
                counts=engine.counts,
                agree=lambda need: need,
            )
            for _ in range(engine._lanes)
        ]

    def groups(self, host: HostCalls) -> Iterator[GroupRollout]:
        """Runs to the end."""
        while True:
            idle, busy = True, False
            for lane in self.lanes:
                self._pull(host)
                self._place(lane)
                for _, _, leaf in list(lane.leaves("clip")):
                    if leaf.ticket.done:
                        leaf.looked()
                need = lane.step(busy=not self.exhausted or bool(self.opening))
                idle, busy = idle and need.idle, busy or bool(need.busy)
                self._clear(lane)
            while self.given in self.finished:
                yield self.finished.pop(self.given)
                self.given += 1
            if not busy:
                return
            if idle:
                self._wait(host)

    def _pull(self, host: HostCalls) -> None:
        """Has the videos of the next tasks opened."""
        engine = self.engine
        slots = sum(len(lane.slots) for lane in self.lanes)
        free = sum(group is None for lane in self.lanes for group in lane.slots)
        while (
            not self.exhausted
            and len(self.opening) < free + _AHEAD
            and self.pulled < self.given + _BEHIND * slots
        ):
            task = next(self.tasks, None)
            if task is None:
                self.exhausted = True
                return
            self.opening.append(
                Group(
                    task,
                    self.pulled,
                    open_video=self.open_video,
                    host=host,
                    vision=engine.model.config.vision,
                    table=engine._buckets.patches,
                )
            )
            self.pulled += 1

    def _place(self, lane: Lane) -> None:
        """Gives free slots to the groups whose video is open."""
        for slot, standing in enumerate(lane.slots):
            while standing is None:
                group = next((group for group in self.opening if group.ticket.done), None)
                if group is None:
                    return
                self.opening.remove(group)
                seeds = [
                    rollout_seed(self.seed, group.task.id, number)
                    for number in range(self.engine.rollouts)
                ]
                samplings = [dataclasses.replace(self.sampling, seed=seed) for seed in seeds]
                group.start(self.setting, samplings, longest=self.engine._buckets.prefix[-1])
                if group.error is not None:
                    self._finish(group)
                    continue
                self.engine.counts.overviews += 1
                lane.put(slot, group)
                standing = group

    def _clear(self, lane: Lane) -> None:
        """Frees the slots of groups that have ended."""
        for slot, group in enumerate(lane.slots):
            if group is not None and group.done:
                lane.put(slot, None)
                self._finish(group)

    def _finish(self, group: Group) -> None:
        counts, result = self.engine.counts, group.result()
        counts.groups += 1
        if result.error is not None:
            counts.errors += 1
            logging.warning("task %s has no rollouts: %s", group.task.id, result.error)
        for number, rollout in enumerate(result.rollouts):
            trajectory = rollout.trajectory
            counts.rollouts[trajectory.outcome] += 1
            lost = trajectory.meta.get("video_error")
            if lost is not None:
                counts.lost += 1
                logging.warning(
                    "rollout %d of task %s is void: %s", number, group.task.id, lost["message"]
                )
        self.finished[group.number] = result

    def _wait(self, host: HostCalls) -> None:
        """Nothing is left for the device: waits for a host thread."""
        tickets = [group.ticket for group in self.opening if not group.ticket.done]
        for lane in self.lanes:
            tickets += [leaf.ticket for _, _, leaf in lane.leaves("clip") if not leaf.ticket.done]
        began = time.perf_counter()
        if tickets:
            host.wait(tickets, _WAIT_S)
        self.engine.counts.waited_s += time.perf_counter() - began


def rollout_seed(seed: int, task: str, number: int) -> int:
    """The seed of rollout `number` of a task, 32 bits."""
    digest = hashlib.blake2b(f"{seed}/{number}/{task}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
