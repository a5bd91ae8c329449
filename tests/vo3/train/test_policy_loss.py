"""The policy gradient's arithmetic against NumPy in float64."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import policy_oracle as oracle
import pytest

from vo3.train import policy_loss as p
from vo3.train.logprobs import token_scores


@hypothesis.given(st.lists(st.floats(0, 3), min_size=2, max_size=16))
def test_advantages_are_the_oracles(rewards):
    np.testing.assert_allclose(p.advantages(rewards), oracle.group_advantages(rewards), atol=1e-9)
    plain = p.advantages(rewards, scale=False)
    np.testing.assert_allclose(plain, oracle.group_advantages(rewards, scale=False), atol=1e-12)


def test_what_is_lost_is_in_no_statistics():
    got = p.advantages([1.0, 5.0, 2.0], [True, False, True])
    np.testing.assert_allclose(got[[0, 2]], p.advantages([1.0, 2.0]))
    assert got[1] == 0


def recorded(rng, sequences=4):
    """A row of scored tokens and the same as recorded rollouts; the first and last token of a leaf lie at odd places."""
    rollouts, at = [], []
    leaf, new, old, sampler = [], [], [], []
    for i in range(sequences):
        size = int(rng.integers(1, 6))
        values = [rng.uniform(-3, 0, size) for _ in range(3)]
        turn = oracle.SampledTurn(tuple(range(size)), "end", *values)
        rollouts.append(oracle.Recorded((turn,), "answered", float(rng.uniform(0, 3))))
        leaf += [i] * size
        for store, value in zip((new, old, sampler), values, strict=True):
            store += value.tolist()
        at.append(size)
    pad = 24 - len(leaf)
    fill = lambda x, v: np.asarray([[*x, *[v] * pad]], np.float32)
    advantage = np.repeat(p.advantages([r.reward for r in rollouts]), at)
    weight = np.repeat(p.token_weights(at, "seq-mean-token-mean"), at)
    scored = p.Scored(
        at=np.zeros((1, 24), np.int32),
        targets=np.zeros((1, 24), np.int32),
        leaf=fill(leaf, -1).astype(np.int32),
        weight=fill(weight, 0),
        advantage=fill(advantage, 0),
        sampler=fill(sampler, np.nan),
        total=np.asarray([sequences], np.float32),
        old=fill(old, np.nan),
    )
    return scored, fill(new, np.nan), [rollouts]


CASES = {
    "grpo": ({}, {}),
    "narrow": ({"clip_low": 0.05, "clip_high": 0.1}, {"clip": (0.05, 0.1)}),
    "gspo": ({"sequence_ratio": True}, {"gspo": True}),
    "tis": ({"correction": 1.5}, {"tis": 1.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_is_the_oracles(case):
    ours, theirs = CASES[case]
    for seed in range(3):
        scored, new, groups = recorded(np.random.default_rng(seed))
        sums = p.policy_sums(jnp.asarray(new), jnp.zeros_like(new), scored, p.PolicyLoss(**ours))
        want = oracle.loss(groups, **theirs)
        assert float(sums.loss / sums.total) == pytest.approx(want, abs=1e-6)


def test_padding_reaches_neither_sums_nor_gradients():
    scored, new, _ = recorded(np.random.default_rng(0))
    for policy in (p.PolicyLoss(), p.PolicyLoss(sequence_ratio=True), p.PolicyLoss(kl=0.1)):
        loss = lambda x, policy=policy: (
            p.policy_sums(
                x, jnp.zeros_like(x), scored, policy, reference=jnp.asarray(new) - 0.1
            ).loss
        )
        gradient = np.asarray(jax.grad(loss)(jnp.asarray(new)))
        assert np.isfinite(gradient).all()
        assert (gradient[np.asarray(scored.leaf) < 0] == 0).all()


def test_without_old_the_ratio_is_one_and_the_gradient_the_policys():
    scored, new, _ = recorded(np.random.default_rng(1))
    scored = dataclasses.replace(scored, old=None)
    loss = lambda x: p.policy_sums(x, jnp.zeros_like(x), scored, p.PolicyLoss()).loss
    sums = p.policy_sums(jnp.asarray(new), jnp.zeros_like(new), scored, p.PolicyLoss())
    assert float(sums.ratio) == float(sums.tokens) and float(sums.clipped_low) == 0
    gradient = np.asarray(jax.grad(loss)(jnp.asarray(new)))
    np.testing.assert_allclose(gradient, -scored.weight * scored.advantage, atol=1e-7)


def test_the_clip_takes_gradients_away_on_its_own_side_only():
    leaf = np.asarray([[0, 1, 2, 3]], np.int32)
    advantage = np.asarray([[1.0, 1.0, -1.0, -1.0]], np.float32)
    old = np.zeros((1, 4), np.float32)
    new = np.log(np.asarray([[1.5, 0.5, 1.5, 0.5]], np.float32))
    one = np.ones((1, 4), np.float32)
    scored = p.Scored(leaf, leaf, leaf, one, advantage, old, np.ones(1, np.float32), old)
    loss = lambda x: p.policy_sums(x, jnp.zeros_like(x), scored, p.PolicyLoss())
    gradient = np.asarray(jax.grad(lambda x: loss(x).loss)(jnp.asarray(new)))
    assert (gradient == 0).tolist() == [[True, False, False, True]]
    sums = loss(jnp.asarray(new))
    assert (float(sums.clipped_high), float(sums.clipped_low)) == (1, 1)
    assert float(sums.largest_ratio) == pytest.approx(1.5)


def test_k3_is_positive_and_zero_at_the_reference():
    scored, new, _ = recorded(np.random.default_rng(2))
    policy = p.PolicyLoss(kl=0.5)
    at = lambda x: p.policy_sums(
        jnp.asarray(new), jnp.zeros_like(new), scored, policy, reference=jnp.asarray(x)
    )
    assert float(at(new).kl) == 0
    live = np.asarray(scored.leaf) >= 0
    away = np.float64(new - 0.3) - np.float64(new)
    want = np.where(live, np.exp(away) - away - 1, 0).sum()
    assert float(at(new - 0.3).kl) == pytest.approx(want, rel=1e-5) and want > 0


def test_sums_add_and_maxima_stay_maxima():
    a = p.PolicySums(*[jnp.float32(i) for i in range(12)])
    b = p.PolicySums(*[jnp.float32(20 - i) for i in range(12)])
    both = a + b
    assert (
        float(both.loss) == 20 and float(both.largest_gap) == 10 and float(both.largest_ratio) == 11
    )


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="one of"):
        p.token_weights([1], "mean")
    assert p.denominator([2, 3], 4, "token-mean") == 5
    assert p.denominator([2, 3], 4, "seq-mean-token-mean") == 4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_scores_are_the_whole_softmax_in_chunks(temperature):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 11, 8)).astype(np.float32)
    matrix = rng.normal(size=(8, 30)).astype(np.float32)
    targets = rng.integers(0, 30, (2, 11)).astype(np.int32)
    unembed = lambda x: jnp.einsum("BLD,DV->BLV", x, matrix)
    got = token_scores(jnp.asarray(hidden), targets, unembed, chunk=4, temperature=temperature)
    logits = np.float64(hidden @ matrix) / temperature
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(got.logprob, np.take_along_axis(logp, targets[..., None], -1)[..., 0], atol=1e-4)  # fmt: skip
    np.testing.assert_allclose(got.entropy, -(np.exp(logp) * logp).sum(-1), atol=1e-4)
    gradient = jax.grad(lambda h: token_scores(h, targets, unembed, chunk=4).entropy.sum())
    assert (np.asarray(gradient(jnp.asarray(hidden))) == 0).all()
