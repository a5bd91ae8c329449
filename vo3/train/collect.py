"""The first half of an RL step: prompts, rollouts, rewards, until there are enough groups to learn from.

Which prompts a step takes depends on their rewards alone, never on time: the groups whose rewards are equal are replaced by the prompts that come
next, and the place in the data is one integer. Every process rolls out its share of each wave; how many groups were kept is agreed on.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.rollout import GroupRollout, Sampling
from vo3.rollout.host_calls import HostCalls
from vo3.train.pending import reopened
from vo3.train.prompts import Prompts
from vo3.train.scoring import ScoredGroup, Scorer, kept
from vo3.trajectory import Task, Trajectory


class CollectError(RuntimeError):
    """A step found too little to learn from."""


class Roller(Protocol):
    """Makes n rollouts of each task; `GroupRoller` does it with the engine."""

    def update(self, model: Qwen2_5_VL) -> None:
        """Goes on with these weights."""

    def ahead(self, tasks: Sequence[Task]) -> None:
        """Begins to read the videos of the tasks that `roll` is asked for next; called on another thread, never while `roll` runs."""

    def close(self) -> None:
        """Lets go of what `ahead` began."""

    def roll(self, tasks: Sequence[Task], *, seed: int) -> list[GroupRollout]:
        """The groups of the tasks, in order. Rollout i of a task depends on (weights, task, seed, i) alone."""


@dataclasses.dataclass(frozen=True)
class Collected:
    """The rollouts of a step.

    Attributes:
      groups: of this process, in order of their prompts; dropped ones too.
      cursor: number of the next prompt.
      complete: groups to learn from, over all processes.
      ended: the data ended before the step was full.
      seconds: spent on rollouts, on videos, on rewards.
    """

    groups: tuple[ScoredGroup, ...]
    cursor: int
    complete: int
    ended: bool
    seconds: dict[str, float]


class Collector:
    """Collects the groups of a step."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        prompts: Prompts,
        roller: Roller,
        *,
        last: int | None = None,
    ):
        """`last`: the prompt that the run ends before; None: it does not."""
        self._config, self._prompts, self._roller, self._last = config, prompts, roller, last
        self._scorer = Scorer(config)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="vo3-ahead")
        self._begun: concurrent.futures.Future[None] | None = None
        self._closed = False

    def close(self) -> None:
        """Ends what `ahead` began: a video that is being written is finished, none is opened. Nothing can be collected any more."""
        self._closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._roller.close()
        begun, self._begun = self._begun, None
        if begun is not None and not begun.cancelled() and begun.exception() is not None:
            # No step is left that could tell it.
            logging.warning("the videos of the next step: %s", begun.exception())

    def ahead(self, cursor: int) -> None:
        """Begins to write and read the videos of the step that takes the prompts from `cursor` on, while the update runs."""

        def work() -> None:
            self._prompts.ready(numbers)
            if not self._closed:
                self._roller.ahead([self._prompts[number].task for number in numbers])

        if numbers := self._mine(cursor, self._wave(cursor, self._config.rl.prompts_per_step)):
            self._begun = self._thread.submit(work)

    def step(self, step: int, cursor: int) -> Collected:
        """The groups of a step, from prompt `cursor` on.

        Raises:
          CollectError: fewer groups than wanted after `rl.draw_limit`, and the config says to stop; or none at all.
        """
        rl = self._config.rl
        wanted, most = rl.prompts_per_step, int(rl.draw_limit * rl.prompts_per_step)
        begin, complete, groups = cursor, 0, []
        seconds = {"rollout": 0.0, "videos": 0.0, "reward": 0.0}
        seed = step_seed(self._config.seed, step)
        ended = False
        if self._begun is not None:
            with _Clock(seconds, "videos"):
                begun, self._begun = self._begun, None
                begun.result()
        while complete < wanted and cursor - begin < most:
            count = self._wave(cursor, min(wanted - complete, most - (cursor - begin)))
            if count <= 0:
                ended = True
                break
            mine = self._mine(cursor, count)
            with _Clock(seconds, "videos"):
                self._prompts.ready(mine)
                chosen = [self._prompts[number] for number in mine]
            with _Clock(seconds, "rollout"):
                rolled = self._roller.roll([p.task for p in chosen], seed=seed)
            with _Clock(seconds, "reward"):
                new = [
                    self._scorer.group(p.number, group)
                    for p, group in zip(chosen, rolled, strict=True)
                ]
            groups += new
            complete += sum_over_processes(len(kept(new)))
            cursor += count
        drawn = cursor - begin
        if complete < wanted and not ended:
            self._short(step, complete, wanted, drawn, groups)
        return Collected(tuple(groups), cursor, complete, ended, seconds)

    def restore(
        self, trajectories: Sequence[Trajectory], open_video: Callable
    ) -> list[ScoredGroup]:
        """The groups of trajectories that were written with `with_reward`, their clips read again.

        A rollout whose clips cannot be read any more is lost, as one whose video vanishes while it is rolled out.
        """
        by_prompt: dict[int, list[Trajectory]] = {}
        for trajectory in trajectories:
            by_prompt.setdefault(trajectory.meta["rl"]["prompt"], []).append(trajectory)
        # On another machine, or after the folder was emptied, those that are made on the fly are not there yet.
        self._prompts.ready(sorted(by_prompt))
        host = HostCalls(
            workers=self._config.rl.rollout.workers, timeout_s=self._config.data.time_limit
        )
        try:
            return [
                self._scorer.group(
                    number, GroupRollout(some[0].task, reopened(some, open_video, host))
                )
                for number, some in sorted(by_prompt.items())
            ]
        finally:
            host.close()

    def _wave(self, cursor: int, count: int) -> int:
        """Prompts from `cursor` on, `count` of them or as many as are left."""
        return count if self._last is None else min(count, self._last - cursor)

    def _mine(self, cursor: int, count: int) -> list[int]:
        """Those that are this process's."""
        return list(range(cursor, cursor + count))[jax.process_index() :: jax.process_count()]

    def _short(
        self, step: int, complete: int, wanted: int, drawn: int, groups: list[ScoredGroup]
    ) -> None:
        why: dict[str, int] = {}
        for group in groups:
            why[group.dropped or "kept"] = why.get(group.dropped or "kept", 0) + 1
        message = (
            f"step {step + 1}: {complete} of {wanted} groups after {drawn} prompts (rl.draw_limit={self._config.rl.draw_limit:g} times "
            f"rl.prompts_per_step); this process: {why}. 'equal' groups have the same reward in every rollout: the questions are too easy "
            "or too hard for the policy, or the temperature is too low"
        )
        if self._config.rl.when_short == "stop" or not complete:
            train = " or with --config.rl.when_short=train" if complete else ""
            raise CollectError(
                f"{message}. Go on from here with a higher --config.rl.draw_limit{train}; other data, another rl.mix or a larger "
                "rl.group make another run, in another workdir"
            )
        # Where nothing may be drawn again, every step is short; the log's `groups` says how short.
        level = logging.WARNING if self._config.rl.draw_limit > 1 else logging.DEBUG
        logging.log(level, "%s; the step goes on with them", message)


class GroupRoller:
    """The group engine as a `Roller`.

    Attributes:
      engine: a `vo3.rollout.GroupEngine`, made with the first weights.
    """

    def __init__(
        self,
        make: Callable[[Qwen2_5_VL], object],
        open_video: Callable,
        sampling: Sampling,
        *,
        warm_up: bool = False,
    ):
        """`warm_up`: compiles all that rollouts can ask for as soon as there are weights."""
        self.engine = None
        self._make, self._open, self._sampling, self._warm = make, open_video, sampling, warm_up

    def update(self, model: Qwen2_5_VL) -> None:
        """Goes on with these weights."""
        if self.engine is None:
            self.engine = self._make(model)
            if self._warm:
                logging.info("%d rollout programs compiled", self.engine.warm_up(self._sampling))
        else:
            self.engine.update(model)

    def ahead(self, tasks: Sequence[Task]) -> None:
        """Begins to read their videos; without an engine, as after rollouts that were kept, `roll` will."""
        if self.engine is not None:
            self.engine.open_ahead(tasks, self._open)

    def close(self) -> None:
        """Lets go of the videos that were begun."""
        if self.engine is not None:
            self.engine.close()

    def roll(self, tasks: Sequence[Task], *, seed: int) -> list[GroupRollout]:
        """The groups of the tasks, in order."""
        done = self.engine.run(tasks, self._open, sampling=self._sampling, seed=seed)
        found = {group.task.id: group for group in done}
        return [found[task.id] for task in tasks]


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's rollouts, 31 bits."""
    digest = hashlib.blake2b(f"rollouts/{seed}/{step}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def sum_over_processes(count: int) -> int:
    """The sum of an integer that each process has."""
    return sum(gathered(count))


def gathered(count: int) -> list[int]:
    """An integer of every process."""
    if jax.process_count() == 1:
        return [count]
    return [int(x) for x in np.ravel(multihost_utils.process_allgather(np.asarray(count)))]


class _Clock:
    """Adds the seconds of a block to `seconds[name]`."""

    def __init__(self, seconds: dict[str, float], name: str):
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] += time.monotonic() - self._begin
