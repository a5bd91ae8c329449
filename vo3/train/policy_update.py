"""The second half of an RL step: groups to tree rows, old log-probabilities where they are needed, the optimiser steps."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vo3.train import group_rows, group_trees, processes, rl_config, sharding
from vo3.train.collect import gathered
from vo3.train.config import ConfigError
from vo3.train.group_rows import PolicyBatch
from vo3.train.policy_step import PolicyMetrics, PolicyPrograms
from vo3.train.scoring import ScoredGroup
from vo3.train.state import Params, Trainable, TrainState, initial_params


def check_processes(mesh: Mesh) -> None:
    """Every process must feed rows of its own: each rolls out other prompts, so what two of them feed as the same rows would differ.

    Raises:
      ConfigError: processes share rows.
    """
    _, groups = sharding.row_groups(mesh)
    if groups < jax.process_count():
        raise ConfigError(
            f"mesh.tensor={mesh.shape['tensor']} and mesh.context={mesh.shape['context']} span hosts: {jax.process_count()} processes "
            f"would share {groups} sets of rows, and in RL each has rollouts of its own. Let mesh.tensor times mesh.context "
            "divide the devices of a host, and raise mesh.fsdp instead"
        )


@dataclasses.dataclass(frozen=True)
class Update:
    """What the second half of a step did.

    Attributes:
      metrics: of each optimiser step, on the host; of those alone that had tokens with loss.
      rows, tokens, slots: of this process: tree rows, tokens without padding, places for tokens.
      names: of the tasks.
      seconds: for rows and for the update.
      sample: the rows of the first micro-batch, numpy.
    """

    metrics: tuple[PolicyMetrics, ...]
    rows: int
    tokens: int
    slots: int
    names: tuple[str, ...]
    seconds: dict[str, float]
    sample: Any


class Updater:
    """Updates the policy on a step's groups."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        run: Trainable,
        programs: PolicyPrograms,
        frozen: Params,
        tokenizer: Any,
    ):
        self._config, self._run, self._programs = config, run, programs
        self._frozen, self._tokenizer = frozen, tokenizer
        _, groups = sharding.row_groups(run.mesh)
        self._place = functools.partial(sharding.place, mesh=run.mesh, groups=groups)
        ways = sharding.row_ways(run.mesh) // groups
        self._rows = config.data.rows_per_device * ways
        self._shapes = rl_config.shapes(config)
        self._reference: Params | None = None
        if config.rl.kl:
            starting, _ = run.split(initial_params(run))
            dtype = jnp.dtype(config.dtype)
            self._reference = {n: x.astype(dtype) for n, x in starting.items()}

    def update(self, state: TrainState, groups: list[ScoredGroup]) -> tuple[TrainState, Update]:
        """One or more optimiser steps on these groups; the state is given for good.

        Groups are dealt out to mini-batches by their place among those of all processes, in order of their prompts: which process has
        which changes nothing.

        Raises:
          ConfigError: a rollout that the largest of `rl.shapes` does not hold.
        """
        rl, begin = self._config.rl, time.monotonic()
        trees = [self.tree(group) for group in groups]
        places = _places([group.number for group in groups])
        dealt = [
            [
                tree
                for tree, place in zip(trees, places, strict=True)
                if place % rl.mini_batches == i
            ]
            for i in range(rl.mini_batches)
        ]
        # Without a token that carries loss in any process an optimiser step would only decay and drift.
        parts = [self.micro_batches(share) for share in dealt if _loss_anywhere(share)]
        rowed = time.monotonic()
        old: list[list[Any]] = [[None] * len(part) for part in parts]
        if rl_config.updates(self._config) > 1:
            score = lambda b: self._programs.score(state.params, self._frozen, self._place(b))
            old = [[score(batch) for batch in part] for part in parts]
        metrics = []
        for _ in range(rl.epochs):
            for part, known in zip(parts, old, strict=True):
                partial = self._programs.zero()
                for batch, logprob in zip(part, known, strict=True):
                    placed = self._place(batch)
                    scored = dataclasses.replace(placed.scored, old=logprob)
                    placed = dataclasses.replace(placed, scored=scored)
                    partial = self._programs.add(
                        partial, state, self._frozen, placed, self._reference
                    )
                state, one = self._programs.finish(state, partial)
                metrics.append(jax.device_get(one))
        batches = [batch for part in parts for batch in part]
        seen = [np.asarray(batch.rows.visibility.enter) for batch in batches]
        return state, Update(
            metrics=tuple(metrics),
            rows=sum(len(x) for x in seen),
            tokens=sum(int((x >= 0).sum()) for x in seen),
            slots=sum(x.size for x in seen),
            names=tuple(group.name for group in groups),
            seconds={"rows": rowed - begin, "update": time.monotonic() - rowed},
            sample=batches[0].rows if batches else None,
        )

    def tree(self, group: ScoredGroup) -> group_trees.Tree:
        """The group as a tree."""
        return group_trees.group_tree(
            [r.rollout for r in group.rollouts],
            [r.advantage for r in group.rollouts],
            [r.trained for r in group.rollouts],
            self._tokenizer,
            self._run.model,
            sequences=sum(r.lost is None for r in group.rollouts),
        )

    def micro_batches(self, trees: list[group_trees.Tree]) -> list[PolicyBatch]:
        """The trees in rows of one shape, as many micro-batches in every process.

        Raises:
          ConfigError: a rollout, of any process, that the largest of `rl.shapes` does not hold.
        """
        rl = self._config.rl
        if not rl.tree:
            trees = [part for tree in trees for part in group_trees.apart(tree)]
        number = max(gathered(group_rows.choose(trees, self._shapes, align=rl.align)))
        shape = self._shapes[number]
        rows, fault = [], "a rollout of another process does not fit rl.shapes; its log says more"
        try:
            rows = group_rows.pack(trees, shape, align=rl.align)
            fits = True
        except (
            ValueError
        ) as error:  # raised below, in every process: none may wait for one that is gone
            fits, fault = False, str(error)
        if not processes.agree(fits):
            raise ConfigError(fault)
        most = max(max(gathered(len(rows))), 1)
        rows += [[] for _ in range(math.ceil(most / self._rows) * self._rows - len(rows))]
        return [
            group_rows.build_rows(
                rows[i : i + self._rows],
                shape,
                self._run.model,
                align=rl.align,
                aggregation=rl.aggregation,
            )
            for i in range(0, len(rows), self._rows)
        ]


def _places(numbers: list[int]) -> list[int]:
    """The place of each prompt number among those of all processes."""
    if jax.process_count() == 1:
        everyone = numbers
    else:
        # Every process gathers an array of the same length; -1 is no prompt.
        mine = np.full(max(gathered(len(numbers))), -1, np.int32)
        mine[: len(numbers)] = numbers
        everyone = [int(n) for n in np.ravel(multihost_utils.process_allgather(mine)) if n >= 0]
    order = {number: place for place, number in enumerate(sorted(everyone))}
    return [order[number] for number in numbers]


def _loss_anywhere(trees: list[group_trees.Tree]) -> bool:
    """Whether a tree of any process has a token that carries loss."""
    return sum(gathered(sum(leaf.trained for tree in trees for leaf in tree.leaves))) > 0
