"""Which groups an optimiser step learns from, over processes that have any share of them."""

from __future__ import annotations

import dataclasses

import fake_groups
import jax
import numpy as np
import pytest
from rl_runs import config

from vo3.train import policy_update, rl_config
from vo3.train.config import ConfigError
from vo3.train.policy_step import PolicyPrograms
from vo3.train.policy_update import Updater
from vo3.train.rl_metrics import update_figures
from vo3.train.scoring import Scorer
from vo3.train.sharding import make_mesh
from vo3.train.state import initial_params, trainable


def updater(**changes):
    one = config(**{"mesh.fsdp": 1, "rl.prompts_per_step": 4, **changes})
    run = trainable(one, make_mesh(one, jax.devices()[:1]), model=fake_groups.architecture())
    programs = PolicyPrograms(run, rl_config.policy_loss(one))
    return Updater(one, run, programs, {}, fake_groups.tokenizer())


def groups(*numbers):
    scorer = Scorer(config())
    return [scorer.group(n, fake_groups.group(f"g{n}", (0, 1), n)) for n in numbers]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_processes_deal_the_groups_as_one_would(monkeypatch, count):
    """Prompts are dealt to processes by number, and some groups are dropped: whoever has which, a mini-batch is the same groups."""
    kept = [3, 4, 6, 9, 10, 11, 15]
    shares = [[n for n in kept if n % count == i] for i in range(count)]
    width = max(map(len, shares))
    padded = np.asarray([s + [-1] * (width - len(s)) for s in shares], np.int32)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(policy_update, "gathered", lambda _: [len(s) for s in shares])
    monkeypatch.setattr(policy_update.multihost_utils, "process_allgather", lambda mine: padded)
    found = {}
    for share in shares:
        found |= zip(share, policy_update._places(share), strict=True)
    assert found == {number: place for place, number in enumerate(kept)}


def test_a_mini_batch_without_a_group_is_no_optimiser_step():
    """One group in two mini-batches: one step, and the parameters are those of one mini-batch."""
    states = []
    for mini_batches in (1, 2):
        one = updater(**{"rl.mini_batches": mini_batches})
        start = one._run.new_state(initial_params(one._run))
        state, update = one.update(start, groups(3))
        assert len(update.metrics) == 1 and int(state.step) == 1
        states.append(state)
    for name in states[0].params:
        np.testing.assert_allclose(
            states[0].params[name], states[1].params[name], atol=1e-6, err_msg=name
        )
    # No token carries loss: nothing is done, and there is nothing to say of it.
    [group] = groups(3)
    quiet = tuple(dataclasses.replace(r, trained=False) for r in group.rollouts)
    state, update = one.update(states[1], [dataclasses.replace(group, rollouts=quiet)])
    assert update.metrics == () and int(state.step) == 1 and update_figures(()) == {}


def test_a_rollout_that_no_row_holds_names_the_key(monkeypatch):
    one = updater(**{"rl.shapes": ((1280, 4, 512),)})
    with pytest.raises(
        ConfigError, match=r"largest row \(1280, 4, 512\); raise the last of rl\.shapes"
    ):
        one.micro_batches([one.tree(group) for group in groups(3)])
    # And every other process ends with it.
    monkeypatch.setattr(policy_update.processes, "agree", lambda flag: False)
    with pytest.raises(ConfigError, match=r"another process does not fit rl\.shapes"):
        updater().micro_batches([])


def test_processes_that_would_share_rows_are_refused(monkeypatch):
    mesh = make_mesh(config(**{"mesh.fsdp": 2, "mesh.tensor": 4}), jax.devices())
    policy_update.check_processes(mesh)
    monkeypatch.setattr(policy_update.sharding, "row_groups", lambda mesh: (0, 2))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    policy_update.check_processes(mesh)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ConfigError, match=r"mesh\.tensor=4 .* 4 processes would share 2 sets"):
        policy_update.check_processes(mesh)
