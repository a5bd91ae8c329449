"""Prompts of an RL run by number: rows of files, or ClueWorld tasks with real videos made on the fly.

Prompt i is a pure function of (configuration, i), so the place in the data is one integer.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import ml_collections
import numpy as np
from absl import logging
from etils import epath

from vo3.rollout.run import Video
from vo3.train import processes
from vo3.train.config import ConfigError
from vo3.trajectory import Task
from vo3.video import CropPolicy, VideoCrop

# Training worlds of RL, far from those that the embedded model was fine-tuned on.
FIRST_WORLD = 1 << 41


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A task to roll out.

    Attributes:
      number: in the order of the run.
      task: with an id that names the prompt's number too, so that it is unique in the run.
    """

    number: int
    task: Task


class Prompts(Protocol):
    """Prompts by number.

    Attributes:
      per_epoch: prompts of an epoch; None where they do not end.
      plan: a fingerprint of their order; "" where the config says it all.
    """

    per_epoch: int | None
    plan: str

    def __getitem__(self, number: int) -> Prompt:
        """The prompt."""

    def ready(self, numbers: Sequence[int]) -> None:
        """Makes sure that the videos of these prompts are there."""


def make_prompts(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> Prompts:
    """Those that `config.data` names."""
    if config.data.source == "clueworld":
        return ClueWorldPrompts(config, workdir)
    return RowPrompts(config, workdir)


class RowPrompts:
    """RL rows in an order drawn by the seed, epoch after epoch.

    With `rl.mix` every prompt's data_source is drawn by the shares, and each source is gone through in an order of its own; an epoch is then
    as many prompts as there are rows of the named sources.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: epath.PathLike):
        """Reads every row once.

        Raises:
          ConfigError: files that cannot be read as rows; more rows cannot be used than `data.reject_limit` allows; `rl.mix` names
            sources that no row has, or gives no share; processes see different rows.
        """
        from vo3.data.files import RowFiles
        from vo3.data.rejects import RejectLimitError, Rejects, RowError
        from vo3.data.seeker import rl_task
        from vo3.train.row_feed import same_everywhere

        data = config.data
        self._sources = dict(config.rl.reward.data_sources)
        files = [part for part in data.rows.split(",") if part]
        try:
            self._rows = RowFiles(files, format=data.format)
        except ValueError as error:
            raise ConfigError(f"data.rows={data.rows}: {error}") from error
        self.plan = self._rows.fingerprint
        # First of all: what one process refuses in its rows, the others would wait for.
        if not same_everywhere(self.plan):
            raise ConfigError(
                f"processes see different rows in data.rows={data.rows}; put them where every process reads the same files"
            )
        self._task: Callable[[int], Task] = lambda i: rl_task(
            self._rows[i],
            self._rows.describe(i),
            videos=data.videos or None,
            data_sources=self._sources,
        )
        rejects = Rejects(len(self._rows))
        by_source: dict[str, list[int]] = collections.defaultdict(list)
        for index in range(len(self._rows)):
            try:
                by_source[self._task(index).target.data_source].append(index)
            except RowError as error:
                rejects.add(index, error)
        file = epath.Path(workdir) / "rejects.jsonl"
        if processes.first():
            rejects.save(file)
        if len(rejects):
            logging.warning("%d of %d rows are left out: %s", len(rejects), len(self._rows), file)
        try:
            rejects.check(data.reject_limit, where=str(file))
        except RejectLimitError as error:
            raise ConfigError(str(error)) from error
        self._seed = config.seed
        self._early = self._single if config.rl.curriculum == "single_first" else None
        shares = dict(config.rl.mix)
        if missing := sorted(set(shares) - set(by_source)):
            raise ConfigError(
                f"rl.mix names {missing}, which no row has; the rows have {sorted(by_source)}"
            )
        if shares and not sum(shares.values()):
            raise ConfigError("rl.mix gives no source a share")
        self._by_source = {k: np.asarray(v) for k, v in sorted(by_source.items()) if v}
        if shares:
            self._by_source = {k: v for k, v in self._by_source.items() if shares.get(k)}
        self._shares = shares
        self.per_epoch = sum(len(v) for v in self._by_source.values())
        if not self.per_epoch:
            raise ConfigError(f"data.rows={data.rows} holds no usable row")
        logging.info(
            "%d prompts an epoch: %s",
            self.per_epoch,
            {k: len(v) for k, v in self._by_source.items()},
        )

    def __getitem__(self, number: int) -> Prompt:
        """The prompt."""
        row = self._mixed(number) if self._shares else self._plain(number)
        task = self._task(int(row))
        return Prompt(number, dataclasses.replace(task, id=f"{task.id}#{number}"))

    def ready(self, numbers: Sequence[int]) -> None:
        """Nothing to do: the videos lie where the rows say."""

    def _single(self, source: str) -> bool:
        # By the rule, as aliases do not say it: `gather` and `free` are the rules of several clues.
        return "multi" not in source and self._sources[source] not in ("gather", "free")

    def _plain(self, number: int) -> int:
        epoch, place = divmod(number, self.per_epoch)
        return self._order(epoch)[place]

    @functools.lru_cache(maxsize=2)  # noqa: B019  a run has one such object
    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, 1, epoch])
        rows = rng.permutation(np.concatenate(list(self._by_source.values())))
        if self._early is not None and epoch == 0:
            early = np.concatenate(
                [v for k, v in self._by_source.items() if self._early(k)] or [np.zeros(0, int)]
            )
            late = ~np.isin(rows, early)
            rows = np.concatenate([rows[~late], rows[late]])
        return rows

    def _mixed(self, number: int) -> int:
        names = list(self._by_source)
        which, nth = self._drawn(number)
        rows = self._by_source[names[which]]
        epoch, place = divmod(nth, len(rows))
        return int(self._source_order(which, epoch)[place])

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _source_order(self, which: int, epoch: int) -> np.ndarray:
        rows = list(self._by_source.values())[which]
        return np.random.default_rng([self._seed, 2, which, epoch]).permutation(rows)

    def _drawn(self, number: int) -> tuple[int, int]:
        """The source of a prompt, and how many prompts before it have the same."""
        block, place = divmod(number, _BLOCK)
        drawn, before = self._block(block)
        which = int(drawn[place])
        return which, int(before[which] + (drawn[:place] == which).sum())

    @functools.cache  # noqa: B019
    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The sources of a block of prompts, and how often each was drawn before the block."""
        shares = np.asarray([self._shares[k] for k in self._by_source], np.float64)
        rng = np.random.default_rng([self._seed, 3, block])
        drawn = rng.choice(len(shares), _BLOCK, p=shares / shares.sum()).astype(np.int8)
        if block == 0:
            return drawn, np.zeros(len(shares), np.int64)
        earlier, before = self._block(block - 1)
        return drawn, before + np.bincount(earlier, minlength=len(shares))


_BLOCK = 4096


class ClueWorldPrompts:
    """Questions on training worlds, whose videos are written when they are first asked about: to `data.videos`, else to WORKDIR/videos."""

    per_epoch = None
    plan = ""

    def __init__(self, config: ml_collections.ConfigDict, workdir: epath.PathLike):
        """Nothing is written yet."""
        from vo3.clueworld.scales import get_scale

        self._config, self._seed = config.rl.clueworld, config.seed
        self._world_config = get_scale(self._config.scale).world
        self._folder = epath.Path(config.data.videos or epath.Path(workdir) / "videos")
        if "://" in os.fspath(self._folder):
            raise ConfigError(
                f"data.source='clueworld' writes videos, which needs a local folder, not {self._folder}; set data.videos"
            )
        self._threads = max(1, config.data.workers)

    def __getitem__(self, number: int) -> Prompt:
        """The prompt."""
        from vo3.clueworld import tasks

        rng = np.random.default_rng([self._seed, 4, number])
        world = self._world(number)
        drawn, kinds = rng.random(), tasks.OVERVIEW_KINDS
        if drawn < self._config.tool_share:
            kinds = tasks.TOOL_KINDS
        elif drawn >= 1 - self._config.grounding_share:
            kinds = tuple(tasks.QUADRANTS[tasks.GROUNDING])
        kind = str(rng.choice(kinds))
        task = tasks.make_task(
            world,
            tasks.KINDS[kind](world, rng),
            video=os.fspath(self._path(world)),
            task_id=f"{world.seed}-{kind}#{number}",
            rng=rng,
            options=bool(rng.random() < self._config.options_share),
        )
        return Prompt(number, task)

    def ready(self, numbers: Sequence[int]) -> None:
        """Writes the videos that are missing."""
        from vo3.clueworld.film import write_video

        worlds = {w.seed: w for w in map(self._world, numbers)}
        missing = [w for w in worlds.values() if not self._path(w).exists()]
        if not missing:
            return
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(lambda w: write_video(w, self._path(w)), missing):
                pass

    def _world(self, number: int):
        from vo3.clueworld.world import make_world

        count = self._config.worlds
        epoch, place = divmod(number, count)
        index = int(np.random.default_rng([self._seed, 5, epoch]).permutation(count)[place])
        rng = np.random.default_rng([self._seed, 6, index])
        low, high = np.log(self._config.shortest), np.log(self._config.longest + 1)
        duration = int(np.exp(rng.uniform(low, high)))
        return make_world(
            FIRST_WORLD + self._seed * (1 << 20) + index,
            duration=min(max(duration, self._config.shortest), self._config.longest),
            config=self._world_config,
        )

    def _path(self, world) -> epath.Path:
        # All that decides what it shows: a folder may hold the videos of runs whose worlds differ in length or scale.
        name = f"{self._config.scale}-{world.seed}-{world.duration}s.mp4"
        return self._folder / name


def opener(policy: CropPolicy, time_limit: float) -> Callable[[Task], Video]:
    """Opens a task's video."""
    return lambda task: VideoCrop(
        task.video, policy, frame_fps=task.frame_fps, timeout_s=time_limit
    )
