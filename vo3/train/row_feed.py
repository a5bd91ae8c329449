"""Training batches from rows with videos: source, lengths, plan and loader of `vo3.data`, put together by the configuration.

What is written on the way: `lengths-*.npz` beside the rows (in the workdir where that cannot be written), `rejects.jsonl` and
`failures/` in the workdir.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vo3.data.buckets import choose_buckets
from vo3.data.clip_cache import ClipCache
from vo3.data.items import Encoding
from vo3.data.lengths import Lengths, stored_lengths
from vo3.data.loader import Loader, make_loader
from vo3.data.loader import MicroBatch as Loaded
from vo3.data.plan import Plan, StepPlan
from vo3.data.source import open_source
from vo3.models import loading
from vo3.train import processes, sharding
from vo3.train.batch import RowBatch
from vo3.train.config import ConfigError
from vo3.train.features import FrozenTower
from vo3.train.feed import MicroBatch
from vo3.train.shared_rows import lost_by_group
from vo3.train.state import Params, Trainable, architecture
from vo3.train.work import Work
from vo3.video import CropPolicy


class RowFeed:
    """Rows of `config.data.rows` by a plan that every process computes alike; a `vo3.train.feed.Feed`.

    Attributes:
      data: the `vo3.data.plan.Plan`.
      rejected: share of the rows that are left out for good.
    """

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh, workdir: epath.PathLike):
        """Opens the source, measures its lengths if nobody has, and plans.

        Raises:
          RejectLimitError: more rows cannot be used than `data.reject_limit` allows.
          ConfigError: processes that see different data.
        """
        data, self._config = config.data, config
        self._workdir = epath.Path(workdir)
        self._model = architecture(config)
        self.tokenizer, self._policy = tokenizer_of(config), crop_policy_of(config)
        kind = "tfds" if data.source == "tfds" else "rows"
        self._source = open_source(
            data.rows, format=kind, videos=data.videos or None, files=data.format
        )
        lengths = self._lengths()
        if not len(lengths):
            raise ConfigError(f"data.rows={data.rows} holds no row")
        rejects = lengths.rejected(max_length=data.tokens_per_row)
        # Videos may have come since lengths were measured. All processes or none measure again: they wait for each other in it.
        if not processes.agree(rejects.share <= data.reject_limit):
            lengths = self._lengths(again=True)
            rejects = lengths.rejected(max_length=data.tokens_per_row)
        if processes.first():
            self._workdir.mkdir(parents=True, exist_ok=True)
            rejects.save(self._workdir / "rejects.jsonl")
        if len(rejects):
            logging.warning(
                "%d of %d rows are left out (%s); reasons: %s",
                len(rejects), len(lengths), rejects.by_rule(), self._workdir / "rejects.jsonl",
            )  # fmt: skip
        self.rejected = len(rejects) / len(lengths)
        rejects.check(data.reject_limit, where=str(self._workdir / "rejects.jsonl"))
        self._rows = data.rows_per_device * sharding.row_ways(mesh)
        self._group, self._groups = sharding.row_groups(mesh)
        self._processes = sharding.process_groups(mesh)
        self._shared = sharding.rows_shared(mesh)
        buckets = choose_buckets(
            lengths,
            programs=data.programs,
            max_length=data.tokens_per_row,
            multiple=data.length_multiple,
        )
        self.data = Plan(
            lengths,
            seed=config.seed,
            trajectories_per_step=data.trajectories_per_step,
            max_length=data.tokens_per_row,
            buckets=buckets,
            rows_multiple=self._rows,
        )
        self._measured = lengths
        # Lengths alone would be the same with other answers.
        self.plan = hashlib.blake2b(
            f"{self.data.fingerprint} {self._source.contents}".encode(), digest_size=16
        ).hexdigest()
        if not same_everywhere(self.plan):
            raise ConfigError(
                "processes plan different steps: they see different rows or lengths. Put data.rows, or the lengths beside "
                "it, where every process reads the same files"
            )
        self.steps_per_epoch = self.data.steps_per_epoch
        self._tower: FrozenTower | None = None
        self.single = self._rows >= data.trajectories_per_step
        logging.info(
            "%d trajectories, %d steps an epoch, shapes (tokens, patches) %s",
            self.data.trajectories.size, self.steps_per_epoch, self.data.shapes,
        )  # fmt: skip

    def prepare(self, run: Trainable, frozen: Params) -> None:
        """Brings the frozen tower up where features are kept; call it before `micro_batches`."""
        data = self._config.data
        if data.feature_cache:
            limit = _limit(data.feature_cache, data.clip_cache_bytes)
            self._tower = FrozenTower(run, frozen, data.feature_cache, limit_bytes=limit)

    def _lengths(self, *, again: bool = False) -> Lengths:
        folder = self._folder()
        measure = lambda again: stored_lengths(
            self._source,
            self.tokenizer,
            policy=self._policy,
            folder=folder,
            workers=self._config.data.workers,
            progress=logging.info,
            again=again,
        )
        # One process measures; the others then read what it found.
        first = measure(again) if processes.first() else None
        processes.barrier("lengths")
        return measure(False) if first is None else first

    def _folder(self) -> epath.Path:
        """Beside the rows, where that can be written."""
        rows = epath.Path(self._config.data.rows)
        beside = rows if rows.is_dir() else rows.parent
        if "://" in os.fspath(beside) or os.access(os.fspath(beside), os.W_OK):
            return beside
        return self._workdir

    def micro_batches(self, start: int, stop: int) -> Iterator[MicroBatch]:
        """This process's rows of the steps [start, stop), decoded ahead of time."""
        data = self._config.data
        limit = _limit(data.clip_cache, data.clip_cache_bytes)
        cache = ClipCache(data.clip_cache, limit_bytes=limit) if data.clip_cache else None
        loader = make_loader(
            self.data,
            self._source,
            self.tokenizer,
            crop_policy=self._policy,
            vision=self._model.vision,
            rows_per_batch=self._rows,
            encoding=Encoding(data.mrope_time, self._config.tdam.policy),
            start_step=start,
            stop_step=stop,
            process_index=self._group,
            process_count=self._groups,
            workers=data.workers,
            clip_cache=cache,
            feature_cache=self._tower.cache if self._tower else None,
            time_limit=data.time_limit,
            failure_limit=data.reject_limit,
            failures=self._workdir / "failures",
            failures_of=jax.process_index(),
        )
        with loader:
            for plan, batches in loader:
                count = len(batches)
                for i, one in enumerate(batches):
                    settle = None
                    if self._shared:
                        settle = functools.partial(self._settled, loader, plan, i, count, one)
                    yield dataclasses.replace(self._micro(plan, i, count, one), settle=settle)

    def _micro(self, plan: StepPlan, number: int, count: int, made: Loaded) -> MicroBatch:
        last = number == count - 1
        work = self._work(plan) if last else Work()
        work += Work(failed=len(made.failures))
        names = tuple(f"trajectory {n}" for row in made.rows.numbers for n in row)
        rows = self._tower.fill(made.rows) if self._tower else made.rows
        return MicroBatch(plan.index, last, RowBatch.of(rows), work, names)

    def _settled(
        self, loader: Loader, plan: StepPlan, number: int, count: int, made: Loaded
    ) -> MicroBatch | None:
        """See `MicroBatch.settle`."""
        first = made
        while True:
            own = {failure.number for failure in made.failures}
            lost, same = lost_by_group(own, self._processes)
            if same:
                return None if made is first else self._micro(plan, number, count, made)
            if lost != own:  # reading the others again may lose more, hence in turns
                made = loader.again(plan, number, made, lost)

    def _work(self, plan: StepPlan) -> Work:
        """Of the whole step, over all processes, as it was planned."""
        numbers = np.asarray(plan.trajectories, np.int64)
        tokens = self._measured.tokens[numbers].astype(np.int64)
        return Work(
            tokens=int(tokens.sum()),
            slots=plan.length * len(plan.rows),
            patches=int(self._measured.patches[numbers].sum(dtype=np.int64)),
            pairs=int((tokens * (tokens + 1) // 2).sum()),
            trajectories=numbers.size,
        )


def tokenizer_of(config: ml_collections.ConfigDict) -> Any:
    """The tokenizer of `config.model`."""
    if config.model == "clueworld":
        from vo3.clueworld.tokenizer import build_tokenizer

        return build_tokenizer()
    return loading.load_tokenizer(epath.Path(config.model))


def crop_policy_of(config: ml_collections.ConfigDict) -> CropPolicy:
    """How clips are sampled and resized: as `data.crop_policy` says; the embedded model has its own.

    Raises:
      ConfigError: it plans tokens of another size than those of `config.model`.
    """
    if config.model == "clueworld":
        from vo3.clueworld.views import crop_policy

        return crop_policy()
    policy = CropPolicy(recipe=config.data.crop_policy)
    try:
        return policy.fitting(architecture(config).vision.token_size)
    except ValueError as error:
        raise ConfigError(f"data.crop_policy: {error}") from error


def same_everywhere(text: str) -> bool:
    """Whether every process has the same hexadecimal text."""
    number = np.frombuffer(bytes.fromhex(text), np.int32)
    everyone = np.asarray(multihost_utils.process_allgather(number)).reshape(-1, number.size)
    return bool((everyone == number[None]).all())


def _limit(root: str, limit: int) -> int | None:
    """Object stores take no limit."""
    return None if "://" in root else limit
