"""One run over tasks: videos are opened ahead, groups take slots and leave them, results come out in the order of the tasks.

Or, live: tasks come when they come, and each result goes out when it is there.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import time
from collections.abc import Iterable, Iterator

from absl import logging

from vo3.rollout.buckets import GroupBuckets
from vo3.rollout.group import Group, GroupRollout
from vo3.rollout.group_counts import GroupCounts
from vo3.rollout.group_programs import GroupPrograms
from vo3.rollout.job import Job
from vo3.rollout.lane import Lane
from vo3.rollout.lockstep import agree
from vo3.rollout.opener import Opener
from vo3.rollout.sampler import Sampling
from vo3.rollout.setting import Setting

# Groups whose video is opened before a slot is free for them.
AHEAD = 1
# Finished groups kept for one that goes before them, as a multiple of the slots.
_BEHIND = 4
# Seconds to wait for a host thread at a time, when there is nothing else to do.
_WAIT_S = 0.05


class Rolling:
    """One run: jobs in, groups out."""

    def __init__(
        self,
        programs: GroupPrograms,
        buckets: GroupBuckets,
        setting: Setting,
        counts: GroupCounts,
        *,
        jobs: Iterable[Job | None],
        opener: Opener,
        sampling: Sampling,
        seed: int,
        lanes: int,
        steps: int,
        live: bool = False,
    ):
        """Prepares a run; `groups` does it.

        Args:
          programs, buckets, setting, counts: of the engine.
          jobs: None among them says that there is no next one yet.
          opener: opens videos, on host threads.
          sampling, seed: see `GroupEngine.run`.
          lanes: batches of groups.
          steps: tokens decoded between two agreements.
          live: whether every job's sampling is its own, and results come as they are done.
        """
        self.programs, self.buckets = programs, buckets
        self.setting, self.counts = setting, counts
        self.jobs, self.opener = iter(jobs), opener
        self.live = live
        self.sampling, self.seed = sampling, seed
        self.opening: collections.deque[Group] = collections.deque()
        self.finished: dict[int, GroupRollout] = {}
        self.pulled = self.given = 0
        self.exhausted = False
        self.lanes = [
            Lane(
                programs,
                buckets,
                sampling=None if live else sampling,
                counts=counts,
                agree=agree if programs.shared else lambda need: need,
                steps=steps,
            )
            for _ in range(lanes)
        ]

    def groups(self) -> Iterator[GroupRollout]:
        """Runs to the end."""
        while True:
            idle, busy = True, False
            for lane in self.lanes:
                self._pull()
                self._drop_left(lane)
                self._place(lane)
                for _, _, leaf in list(lane.leaves("clip")):
                    if leaf.ticket.done:
                        leaf.looked()
                need = lane.step(busy=not self.exhausted or bool(self.opening))
                idle, busy = idle and need.idle, busy or bool(need.busy)
                self._clear(lane)
            while (number := self._next_out()) in self.finished:
                self.given += 1
                yield self.finished.pop(number)
            if not busy:
                return
            if idle:
                self._wait()

    def _next_out(self) -> int | None:
        """The group that is to come out next."""
        return next(iter(self.finished), None) if self.live else self.given

    def _pull(self) -> None:
        """Has the videos of the next tasks opened."""
        slots = sum(len(lane.slots) for lane in self.lanes)
        free = sum(group is None for lane in self.lanes for group in lane.slots)
        while (
            not self.exhausted
            and len(self.opening) < free + AHEAD
            and self.pulled < self.given + _BEHIND * slots
        ):
            try:
                job = next(self.jobs)
            except StopIteration:
                self.exhausted = True
                return
            if job is None:
                return
            self.opening.append(Group(job, self.pulled, self.opener))
            self.pulled += 1

    def _place(self, lane: Lane) -> None:
        """Gives free slots to the groups whose video is open."""
        for slot, standing in enumerate(lane.slots):
            while standing is None:
                group = next((group for group in self.opening if group.ticket.done), None)
                if group is None:
                    return
                self.opening.remove(group)
                group.start(self.setting, self._samplings(group), longest=self.buckets.prefix[-1])
                if group.error is not None:
                    self._finish(group)
                    continue
                self.counts.overviews += 1
                lane.put(slot, group)
                standing = group

    def _samplings(self, group: Group) -> list[Sampling]:
        if group.job.sampling is not None:
            return [group.job.sampling] * self.programs.leaves
        seeds = [
            rollout_seed(self.seed, group.task.id, number) for number in range(self.programs.leaves)
        ]
        return [dataclasses.replace(self.sampling, seed=seed) for seed in seeds]

    def _drop_left(self, lane: Lane) -> None:
        """Ends the groups that nobody waits for any more."""
        for slot, group in enumerate(lane.slots):
            if group is not None and group.job.gone():
                group.leave()
                lane.put(slot, None)
                self._finish(group)
        for group in [group for group in self.opening if group.job.gone()]:
            group.leave()
            self.opening.remove(group)
            self._finish(group)

    def _clear(self, lane: Lane) -> None:
        """Frees the slots of groups that have ended."""
        for slot, group in enumerate(lane.slots):
            if group is not None and group.done:
                lane.put(slot, None)
                self._finish(group)

    def _finish(self, group: Group) -> None:
        counts, result = self.counts, group.result()
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

    def _wait(self) -> None:
        """Nothing is left for the device: waits for a host thread."""
        clips = [leaf.ticket for lane in self.lanes for _, _, leaf in lane.leaves("clip")]
        free = any(group is None for lane in self.lanes for group in lane.slots)
        tickets = clips + ([group.ticket for group in self.opening] if free else [])
        began = time.perf_counter()
        if tickets:  # one that is done by now ends the wait at once
            self.opener.host.wait(tickets, _WAIT_S)
        self.counts.waited_s += time.perf_counter() - began


def rollout_seed(seed: int, task: str, number: int) -> int:
    """The seed of rollout `number` of a task, 32 bits."""
    digest = hashlib.blake2b(f"{seed}/{number}/{task}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
