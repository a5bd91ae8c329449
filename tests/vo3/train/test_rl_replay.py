"""One recorded batch, replayed: the trainer's second half (scorer, rows, old log-probabilities, two updates) against the oracle, which reads the trajectories' JSON alone.

The oracle is given the log-probabilities before and after the first update; rewards, mask, advantages, aggregation and loss are its own.
"""

import dataclasses
import json

import fake_groups
import jax
import numpy as np
import policy_oracle as oracle
import pytest
from rl_runs import config

from tests.vo3.rewards.rewards_reference import total
from vo3.train import group_rows, rl_config
from vo3.train.policy_step import PolicyPrograms
from vo3.train.policy_update import Updater
from vo3.train.scoring import Scorer, kept, with_reward
from vo3.train.sharding import make_mesh
from vo3.train.state import initial_params, trainable
from vo3.trajectory import Trajectory

# Two groups to learn from, one of equal rewards; calls, errors of form, a turn cut by length, exceeded rollouts.
RECORDED = [fake_groups.group("g", range(5), 0), fake_groups.group("h", (2, 1, 0, 3), 3)]
RECORDED += [fake_groups.group("i", (1, 1), 5)]
LIMIT, BUFFER = 150, 100  # of the penalty for length, sampled tokens
CASES = {
    "the recipe": ({}, {}),
    "token-mean, no_std, overlong": (
        {"rl.aggregation": "token-mean", "rl.options": ("no_std", "overlong"), "rl.overlong_limit": LIMIT,
         "rl.overlong_buffer": BUFFER},
        {"aggregation": "token-mean", "scale": False},
    ),
    "without the tree": ({"rl.tree": False}, {}),
    "gspo": ({"rl.options": ("gspo",)}, {"gspo": True}),
    "tis": ({"rl.options": ("tis",)}, {"tis": 2.0}),
    "kl": ({"rl.kl": 0.1}, {"kl": 0.1}),
}  # fmt: skip


class Machine:
    """The update of one configuration, from the same random parameters each time."""

    def __init__(self, **changes):
        base = {"rl.epochs": 2, "optim.rate": 2e-3, "mesh.fsdp": 1, "rl.group": 5}
        self.config = config(**base, **changes)
        mesh = make_mesh(self.config, jax.devices()[:1])
        self.run = trainable(self.config, mesh, model=fake_groups.architecture())
        self.programs = PolicyPrograms(self.run, rl_config.policy_loss(self.config))

    def updater(self, epochs):
        one = self.config.copy_and_resolve_references()
        with one.unlocked():
            one.rl.epochs = epochs
        return Updater(one, self.run, self.programs, {}, fake_groups.tokenizer())

    def state(self):
        return self.run.new_state(initial_params(self.run))


def scores(machine, updater, params, groups):
    """Log-probabilities of the trained tokens, by (task, rollout)."""
    found = {}
    trees = [updater.tree(group) for group in groups]
    shape = rl_config.shapes(machine.config)[0]
    rows = group_rows.pack(trees, shape, align=machine.config.rl.align)
    batch = group_rows.build_rows(
        rows, shape, machine.run.model, align=machine.config.rl.align, aggregation="token-mean"
    )
    logprob = np.asarray(machine.programs.score(params, {}, batch))
    for b, row in enumerate(rows):
        leaves = [(tree.name, leaf.number) for tree in row for leaf in tree.leaves]
        for number, name in enumerate(leaves):
            found[name] = logprob[b][batch.scored.leaf[b] == number]
    return found


def replayed(lines, new, old, reference):
    """The batch as the oracle reads it."""
    groups = {}
    for trajectory in map(Trajectory.loads, lines):
        said = [turn for turn in trajectory.turns if turn.role == "assistant"]
        key = (trajectory.task.id, json.loads(trajectory.dumps())["meta"]["rl"]["rollout"])
        turns, used = [], 0
        for turn in said:
            size = len(turn.ids)
            keep = key in new and turn.stop != "length"
            take = lambda x: x[key][used : used + size] if keep else np.zeros(size)  # noqa: B023
            parts = [take(x) for x in (new, old)]
            turns.append(
                oracle.SampledTurn(turn.ids, turn.stop, *parts, np.asarray(turn.logprobs), take(reference))
            )  # fmt: skip
            used += size * keep
        target = trajectory.task.target
        clues = [(clue.start, clue.end) for clue in target.clues]
        reward = total([t.text for t in said], target.answer, clues, target.data_source, "qwen2_5_vl")  # fmt: skip
        one = oracle.Recorded(tuple(turns), trajectory.outcome, reward)
        groups.setdefault(trajectory.task.id, []).append(one)
    return list(groups.values())


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.soak if c != "the recipe" else ()) for c in CASES]
)  # fmt: skip
def test_the_oracle_replays_the_trainers_update(case):
    changes, theirs = CASES[case]
    machine = Machine(**changes)
    scorer = Scorer(machine.config)
    groups = [scorer.group(i, group) for i, group in enumerate(RECORDED)]
    lines = [
        with_reward(rollout, step=1, number=g.number, index=i).dumps()
        for g in groups
        for i, rollout in enumerate(g.rollouts)
    ]
    groups = kept(groups)
    assert len(groups) == 2
    once, twice = machine.updater(1), machine.updater(2)
    start = machine.state()
    old = scores(machine, once, start.params, groups)
    after, _ = once.update(machine.state(), groups)
    new = scores(machine, once, after.params, groups)
    _, update = twice.update(start, groups)
    for metrics, now in zip(update.metrics, (old, new), strict=True):
        batch = replayed(lines, now, old, old)
        if "overlong" in machine.config.rl.options:
            batch = [
                [dataclasses.replace(r, reward=oracle.overlong(r, LIMIT, BUFFER)) for r in group]
                for group in batch
            ]
        want = oracle.loss(batch, **theirs)
        assert float(metrics.sums.loss / metrics.sums.total) == pytest.approx(want, abs=1e-6)
    # The second update's ratios are no longer 1, so clip and ratio were at work.
    assert float(update.metrics[1].sums.largest_ratio) > 1.05
