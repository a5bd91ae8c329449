"""Groups as tree rows: the mask of the recipe, gradients of separate rows, cutting and packing, the recorded batch against the oracle."""

import dataclasses

import fake_groups
import jax
import jax.numpy as jnp
import numpy as np
import policy_oracle as oracle
import pytest
from tiny_rows import assert_close

from vo3.chat import encode
from vo3.train import policy_loss
from vo3.train.config import override
from vo3.train.group_rows import build_rows, choose, pack
from vo3.train.group_trees import Shape, apart, group_tree, split
from vo3.train.policy_step import PolicyPrograms
from vo3.train.rl_config import defaults
from vo3.train.sharding import make_mesh, place
from vo3.train.state import initial_params, trainable

SHAPE = Shape(1280, 128, 512)
ALIGN = 8


def tree(name="g", kinds=range(5), advantages=None, seed=0):
    rollouts = [fake_groups.rollout(name, k, seed) for k in kinds]
    rewards = np.linspace(0, 2, len(rollouts))
    gains = policy_loss.advantages(rewards) if advantages is None else advantages
    trained = [r.trajectory.outcome != "exceeded" for r in rollouts]
    return group_tree(rollouts, gains, trained, fake_groups.tokenizer(), fake_groups.architecture())


def built(rows, shape=SHAPE, aggregation="seq-mean-token-mean"):
    config = fake_groups.architecture()
    return build_rows(rows, shape, config, align=ALIGN, aggregation=aggregation)


@pytest.fixture(scope="module")
def machine():
    """(programs, state, frozen) of the random model."""
    config = override(
        defaults(),
        **{"model": "clueworld", "init_from": "random", "dtype": "float32", "remat": "none", "steps": 4,
           "data.source": "clueworld", "loss.chunk": 64, "optim.rate": 1e-3},
    )  # fmt: skip
    mesh = make_mesh(override(config, **{"mesh.fsdp": 1}), jax.devices()[:1])
    run = trainable(config, mesh, model=fake_groups.architecture())
    state, frozen = run.split(initial_params(run))
    return PolicyPrograms(run, policy_loss.PolicyLoss()), run.new_state(state), frozen


def gradients(machine, rows, shape=SHAPE, **scored):
    programs, state, frozen = machine
    batch = built(rows, shape)
    batch = dataclasses.replace(batch, scored=dataclasses.replace(batch.scored, **scored))
    batch = place(batch, programs.run.mesh)
    return programs.add(programs.zero(), state, frozen, batch, None)


def test_the_prompts_last_token_opens_every_leaf():
    one = tree()
    whole = encode(
        fake_groups.rollout("g", 1, 0).trajectory.turns, fake_groups.tokenizer(), loss="rl"
    )
    size = len(one.prefix)
    np.testing.assert_array_equal(one.prefix.ids, whole.ids[:size])
    for leaf in one.leaves:
        assert leaf.part.ids[0] == whole.ids[size]
        np.testing.assert_array_equal(leaf.part.positions[:, 0], whole.positions[:, size])
        assert not leaf.loss[0] and leaf.loss[-1]
    # The exceeded rollout has no leaf and counts all the same.
    assert [leaf.number for leaf in one.leaves] == [0, 1, 2, 4] and one.sequences == 5


def test_only_sampled_tokens_carry_loss_and_stand_as_sampled():
    rollouts = [fake_groups.rollout("g", k, 0) for k in range(5)]
    batch = built([[tree()]])
    scored = batch.scored
    for place_, leaf in enumerate(tree().leaves):
        turns = [t for t in rollouts[leaf.number].trajectory.turns if t.role == "assistant"]
        want = [i for t in turns if t.stop != "length" for i in t.ids]
        said = [x for t in turns if t.stop != "length" for x in t.logprobs]
        mine = scored.leaf[0] == place_
        assert scored.targets[0][mine].tolist() == want
        np.testing.assert_allclose(scored.sampler[0][mine], said, rtol=1e-6)
        np.testing.assert_array_equal(batch.rows.ids[0][scored.at[0][mine] + 1], want)
    assert batch.rows.weight.sum() == (scored.leaf >= 0).sum() == (scored.weight > 0).sum()
    assert scored.total.tolist() == [5.0]
    assert scored.weight[scored.leaf == 0].sum() == pytest.approx(1.0)


def test_the_row_is_the_tree_of_the_kernel():
    one = tree()
    seen = built([[one]]).rows.visibility.dense(causal=True)[0]
    starts = one.starts(ALIGN)
    assert (starts % ALIGN == 0).all()
    for i, leaf in enumerate(one.leaves):
        here = slice(starts[i], starts[i] + len(leaf.part))
        assert seen[here, : len(one.prefix)].all()
        np.testing.assert_array_equal(seen[here, here], np.tril(np.ones((len(leaf.part),) * 2)))
        others = np.ones(seen.shape[1], bool)
        others[: len(one.prefix)] = others[here] = False
        assert not seen[here][:, others].any()


def test_the_oracle_finds_the_same_loss_in_a_recorded_batch(machine):
    """Mask, advantage, aggregation and loss of two groups, from the trajectories alone."""
    programs, state, frozen = machine
    names, rewards = ("g", "h"), ([2.0, 0.5, 1.0, 0.0, 0.2], [1.0, 0.0, 2.5, 0.3, 1.1])
    rng = np.random.default_rng(5)
    groups = [[fake_groups.rollout(n, k, i) for k in range(5)] for i, n in enumerate(names)]
    trees = [
        tree(n, advantages=policy_loss.advantages(r), seed=i)
        for i, (n, r) in enumerate(zip(names, rewards, strict=True))
    ]
    batch = built([[t] for t in trees])
    logprob = np.asarray(programs.score(state.params, frozen, place(batch, programs.run.mesh)))
    old = logprob + rng.normal(0, 0.3, logprob.shape).astype(np.float32)
    recorded = []
    for b, (group, r) in enumerate(zip(groups, rewards, strict=True)):
        one = []
        for k, rollout in enumerate(group):
            leaf = next((i for i, x in enumerate(trees[b].leaves) if x.number == k), None)
            mine = np.flatnonzero(batch.scored.leaf[b] == leaf) if leaf is not None else []
            turns, used = [], 0
            for t in (t for t in rollout.trajectory.turns if t.role == "assistant"):
                size, keep = len(t.ids), leaf is not None and t.stop != "length"
                here = mine[used : used + size] if keep else []
                used += size * keep
                take = lambda x: x[b][here] if keep else np.zeros(size)  # noqa: B023
                turns.append(
                    oracle.SampledTurn(
                        t.ids, t.stop, take(logprob), take(old), np.asarray(t.logprobs)
                    )
                )
            one.append(oracle.Recorded(tuple(turns), rollout.trajectory.outcome, r[k]))
        recorded.append(one)
    for aggregation in policy_loss.AGGREGATIONS:
        scored = built([[t] for t in trees], aggregation=aggregation).scored
        scored = dataclasses.replace(scored, old=old)
        sums = policy_loss.policy_sums(
            jnp.asarray(logprob), jnp.zeros_like(logprob), scored, policy_loss.PolicyLoss()
        )
        want = oracle.loss(recorded, aggregation=aggregation)
        assert float(sums.loss / sums.total) == pytest.approx(want, abs=1e-6)


def test_a_tree_row_has_the_gradients_of_separate_rows(machine):
    one = tree()
    parts = apart(one)
    assert [part.sequences for part in parts] == [5, 0, 0, 0]
    together = gradients(machine, [[one], [], [], []])
    separate = gradients(machine, [[part] for part in parts])
    assert_close(together.gradient, separate.gradient)
    for name in ("loss", "total", "tokens", "entropy", "gap"):
        a, b = (float(getattr(x.sums, name)) for x in (together, separate))
        assert a == pytest.approx(b, rel=1e-5), name
    # The vision tower learns from the clips and from the overview.
    norm = lambda x: float(jnp.linalg.norm(x))
    assert norm(together.gradient["vision.patch_embed.kernel"]) > 0


def test_two_groups_in_a_row_are_as_in_two(machine):
    trees = [tree("g", kinds=(0, 1)), tree("h", kinds=(1, 2, 4), seed=3)]
    together = gradients(machine, [trees, [], [], []])
    separate = gradients(machine, [[trees[0]], [trees[1]], [], []])
    assert_close(together.gradient, separate.gradient)
    assert float(together.sums.total) == float(separate.sums.total) == 5


def test_a_leaf_seen_by_another_would_be_noticed(machine):
    """Negative case: with one leaf's interval opened to the next, the log-probabilities move."""
    programs, state, frozen = machine
    batch = built([[tree()], [], [], []])
    right = np.asarray(programs.score(state.params, frozen, place(batch, programs.run.mesh)))
    seen = batch.rows.visibility
    leave = np.where(seen.enter == 1, 3, seen.leave)
    rows = dataclasses.replace(batch.rows, visibility=dataclasses.replace(seen, leave=leave))
    batch = dataclasses.replace(batch, rows=rows)
    wrong = np.asarray(programs.score(state.params, frozen, place(batch, programs.run.mesh)))
    second = batch.scored.leaf == 1
    assert np.abs(wrong - right)[second].max() > 1e-3
    np.testing.assert_allclose(
        wrong[batch.scored.leaf == 0], right[batch.scored.leaf == 0], atol=1e-5
    )


def test_long_groups_are_cut_between_leaves():
    one = tree()
    need = [dataclasses.replace(one, leaves=(leaf,)).needs(ALIGN) for leaf in one.leaves]
    small = Shape(max(n.tokens for n in need), 128, 512)
    parts = split(one, small, align=ALIGN)
    assert len(parts) > 1 and [p.sequences for p in parts] == [5, *[0] * (len(parts) - 1)]
    assert [leaf.number for p in parts for leaf in p.leaves] == [0, 1, 2, 4]
    assert all(small.holds(p.needs(ALIGN)) for p in parts)
    batch = built([[p] for p in parts], small)
    assert (
        batch.scored.total.sum() == 5 and (batch.scored.leaf >= 0).sum() == one.needs(ALIGN).scored
    )
    with pytest.raises(
        ValueError, match=r"rollout 0 takes \d+ tokens.*raise the last of rl\.shapes"
    ):
        split(one, Shape(64, 128, 512), align=ALIGN)


def test_trees_share_rows_and_shapes_are_chosen_by_need():
    trees = [tree(n, kinds=(1, 4)) for n in "abc"]
    need = trees[0].needs(ALIGN)
    shapes = [Shape(8, 8, 8), Shape(need.tokens + 8, 128, 512), SHAPE]
    assert choose(trees, shapes, align=ALIGN) == 1
    assert [len(r) for r in pack(trees, shapes[1], align=ALIGN)] == [1, 1, 1]
    rows = pack(trees, SHAPE, align=ALIGN)
    assert sum(map(len, rows)) == 3 and len(rows) < 3
    batch = built(rows)
    assert sorted(set(batch.scored.leaf[0].tolist())) == list(range(-1, 2 * len(rows[0])))
    assert choose([tree()], shapes[:2], align=ALIGN) == 1  # must be cut


def test_rollouts_of_different_prompts_are_no_group():
    rollouts = [fake_groups.rollout("g", 1, 0), fake_groups.rollout("g", 4, 0)]
    other = dataclasses.replace(rollouts[1].trajectory.turns[0], text="other.")
    turns = (other, *rollouts[1].trajectory.turns[1:])
    changed = dataclasses.replace(rollouts[1].trajectory, turns=turns)
    rollouts[1] = dataclasses.replace(rollouts[1], trajectory=changed)
    with pytest.raises(ValueError, match="another prompt"):
        group_tree(
            rollouts, [1, -1], [True, True], fake_groups.tokenizer(), fake_groups.architecture()
        )


def test_log_probabilities_must_have_been_kept():
    one = fake_groups.rollout("g", 1, 0)
    last = dataclasses.replace(one.trajectory.turns[-1], logprobs=None)
    one = dataclasses.replace(
        one,
        trajectory=dataclasses.replace(one.trajectory, turns=(*one.trajectory.turns[:-1], last)),
    )
    with pytest.raises(ValueError, match="no log-probabilities"):
        group_tree([one], [1.0], [True], fake_groups.tokenizer(), fake_groups.architecture())
