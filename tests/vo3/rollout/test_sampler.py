"""Drawing tokens: the filters against NumPy written from their definition, frequencies, seeds and rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vo3.rollout.sampler import Knobs, Sampling, _filter, draw

LOGITS = np.log(np.array([[0.5, 0.25, 0.15, 0.07, 0.03]], np.float32))


def kept_by_definition(logits: np.ndarray, top_k: int, top_p: float) -> set[int]:
    """The `top_k` likeliest; of those, renormalised, the fewest that reach `top_p` together."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    order = order[:top_k] if top_k else order
    weights = np.exp(np.float64([logits[i] for i in order]))
    weights /= weights.sum()
    kept, total = set(), 0.0
    for i, weight in zip(order, weights, strict=True):
        kept.add(i)
        total += weight
        if total >= top_p - 1e-6:
            break
    return kept


def sample(logits, count, **options):
    sampling = Sampling(**options)
    rows = np.broadcast_to(logits, (count, logits.shape[1]))
    return draw(
        jnp.asarray(rows),
        jnp.full(count, sampling.seed, jnp.uint32),
        jnp.arange(count, dtype=jnp.int32),
        Knobs.of(sampling),
        method=sampling.method,
    )


@given(
    st.lists(st.integers(-8, 8), min_size=1, max_size=12, unique=True),
    st.integers(0, 12),
    st.sampled_from([0.1, 0.35, 0.5, 0.77, 0.9, 0.999]),
)
def test_filter_keeps_what_the_definition_keeps(values, top_k, top_p):
    logits = np.array([values], np.float32) / 3
    got = np.asarray(_filter(jnp.asarray(logits), Knobs.of(Sampling(1.0, top_p, top_k))))[0]
    kept = kept_by_definition(logits[0], top_k, top_p)
    assert set(np.flatnonzero(np.isfinite(got)).tolist()) == kept
    np.testing.assert_array_equal(got[sorted(kept)], logits[0, sorted(kept)])


def test_greedy_takes_the_first_of_the_likeliest(strict_dtypes):
    token, logprob = sample(np.array([[1.0, 3.0, 3.0, 2.0]], np.float32), 2)
    assert token.tolist() == [1, 1]
    np.testing.assert_allclose(logprob, 3 - np.log(np.exp([1.0, 3, 3, 2]).sum()), atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"temperature": 1.0}, {"temperature": 0.5}, {"temperature": 2.0}]
)
def test_frequencies(options, strict_dtypes):
    tokens, logprobs = sample(LOGITS, 20_000, **options)
    wanted = np.exp(LOGITS[0] / options["temperature"])
    wanted /= wanted.sum()
    seen = np.bincount(np.asarray(tokens), minlength=5) / 20_000
    # Five standard deviations of a frequency over 20,000 draws.
    assert np.all(np.abs(seen - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / 20_000))
    np.testing.assert_allclose(np.exp(logprobs), wanted[np.asarray(tokens)], rtol=1e-5)


def test_filtered_draws_and_their_logprobs(strict_dtypes):
    tokens, logprobs = sample(LOGITS, 5000, temperature=1.0, top_k=4, top_p=0.8)
    assert set(tokens.tolist()) == {0, 1, 2}
    # The log-probability is the model's, before the filters: what an importance ratio needs.
    np.testing.assert_allclose(np.exp(logprobs), np.exp(LOGITS[0])[np.asarray(tokens)], rtol=1e-5)


def test_a_row_draws_the_same_in_any_batch():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 50)).astype(np.float32)
    seeds, counts = np.arange(6, dtype=np.uint32) + 9, np.arange(6, dtype=np.int32)
    knobs = Knobs.of(Sampling(1.0, 0.9, 20))
    whole = draw(jnp.asarray(logits), seeds, counts, knobs, method="filtered")[0]
    order = [3, 0, 5]
    part = draw(jnp.asarray(logits[order]), seeds[order], counts[order], knobs, method="filtered")[
        0
    ]
    np.testing.assert_array_equal(np.asarray(whole)[order], part)


def test_seeds_and_counts_make_other_draws():
    flat = np.zeros((1, 1000), np.float32)
    first = np.asarray(sample(flat, 50, temperature=1.0, seed=1)[0])
    again = np.asarray(sample(flat, 50, temperature=1.0, seed=1)[0])
    other = np.asarray(sample(flat, 50, temperature=1.0, seed=2)[0])
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9 and len(set(first.tolist())) > 40


def test_knobs_compile_nothing_new():
    traced = []

    @jax.jit
    def step(logits, seed, count, knobs):
        traced.append(1)
        return draw(logits, seed, count, knobs, method="filtered")

    one = np.ones(1, np.int32)
    for options in ((1.0, 0.9, 5), (0.3, 0.5, 0), (2.0, 1.0, 7)):
        step(LOGITS, one.astype(np.uint32), one, Knobs.of(Sampling(*options)))
    assert len(traced) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"seed": -1}],
)  # fmt: skip
def test_bad_sampling(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_methods():
    assert Sampling().method == "greedy" and Sampling(1.0).method == "plain"
    assert Sampling(1.0, top_p=0.9).method == Sampling(1.0, top_k=3).method == "filtered"
