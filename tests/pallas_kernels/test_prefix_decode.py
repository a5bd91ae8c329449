"""Shared-prefix decoding equals attention over prefix and suffix repeated per rollout, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import prefix_decode
from pallas_kernels.prefix_decode.merge import merge

GROUP, ROLLOUTS, HEADS, KV_HEADS, PREFIX, SUFFIX, DIM = 2, 3, 4, 2, 150, 20, 64
PREFIX_LENGTH = np.array([150, 37], np.int32)
SUFFIX_LENGTH = np.array([[1, 20, 7], [0, 3, 19]], np.int32)


def caches(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return (
        make(GROUP, ROLLOUTS, HEADS, DIM),
        make(GROUP, KV_HEADS, PREFIX, DIM),
        make(GROUP, KV_HEADS, PREFIX, DIM),
        make(GROUP, ROLLOUTS, KV_HEADS, SUFFIX, DIM),
        make(GROUP, ROLLOUTS, KV_HEADS, SUFFIX, DIM),
    )


def oracle(q, prefix_k, prefix_v, suffix_k, suffix_v, prefix_length, suffix_length):
    """One rollout and head at a time, float64."""
    q, *caches = (np.asarray(x, np.float64) for x in (q, prefix_k, prefix_v, suffix_k, suffix_v))
    out, lse = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    for g, n, h in np.ndindex(*q.shape[:3]):
        kv = h // (HEADS // KV_HEADS)
        m, r = prefix_length[g], suffix_length[g, n]
        k = np.concatenate([caches[0][g, kv, :m], caches[2][g, n, kv, :r]])
        v = np.concatenate([caches[1][g, kv, :m], caches[3][g, n, kv, :r]])
        if len(k):
            scores = k @ q[g, n, h] / np.sqrt(DIM)
            weights = np.exp(scores - scores.max())
            out[g, n, h] = weights @ v / weights.sum()
            lse[g, n, h] = scores.max() + np.log(weights.sum())
    return out, lse


@functools.partial(jax.jit, static_argnames="implementation")
def run(*args, implementation):
    return prefix_decode(
        *args[:5],
        prefix_length=args[5],
        suffix_length=args[6],
        return_lse=True,
        implementation=implementation,
    )


@pytest.mark.parametrize("implementation", ["reference", "xla", "splash"])
@pytest.mark.parametrize("empty", ["nothing", "prefix", "everything"])
def test_equals_float64(implementation, empty):
    prefix_length, suffix_length = PREFIX_LENGTH.copy(), SUFFIX_LENGTH.copy()
    if empty != "nothing":
        prefix_length[1] = 0
    if empty == "everything":
        suffix_length[1] = 0
    args = (*caches(), jnp.asarray(prefix_length), jnp.asarray(suffix_length))
    with pallas_kernels.target("interpret"):
        out, lse = run(*args, implementation=implementation)
    want_out, want_lse = oracle(*args)
    np.testing.assert_allclose(out, want_out, atol=2e-5)
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(want_lse))
    finite = np.isfinite(want_lse)
    np.testing.assert_allclose(lse[finite], want_lse[finite], atol=2e-5)
    assert finite.all() == (empty == "nothing")


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_one_slot_more_is_noticed(implementation):
    args = (*caches(), jnp.asarray(PREFIX_LENGTH), jnp.asarray(SUFFIX_LENGTH))
    with pallas_kernels.target("interpret"):
        out, _ = run(*args, implementation=implementation)
    longer = SUFFIX_LENGTH.copy()
    longer[1, 1] += 1
    wrong, _ = oracle(*args[:6], longer)
    assert np.abs(out - wrong).max() > 1e-3


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_unwritten_slots_may_hold_nan_behind_whole_blocks(implementation):
    """Slots behind the lengths hold what they held: zeros, old tokens; the kernel stands NaN as well."""
    q, *kv = caches()
    filler = np.nan if implementation == "splash" else 1e4
    masked = []
    for cache, length in zip(kv, (PREFIX_LENGTH,) * 2 + (SUFFIX_LENGTH,) * 2, strict=True):
        slot = np.arange(cache.shape[-2])
        dead = slot >= length[..., None]
        dead = dead[:, None, :, None] if cache.ndim == 4 else dead[:, :, None, :, None]
        masked.append(jnp.where(dead, filler, cache))
    lengths = jnp.asarray(PREFIX_LENGTH), jnp.asarray(SUFFIX_LENGTH)
    with pallas_kernels.target("interpret"):
        out, _ = run(q, *masked, *lengths, implementation=implementation)
    want, _ = oracle(q, *kv, PREFIX_LENGTH, SUFFIX_LENGTH)
    np.testing.assert_allclose(out, want, atol=2e-5)


def test_bfloat16():
    args = (*caches(jnp.bfloat16), jnp.asarray(PREFIX_LENGTH), jnp.asarray(SUFFIX_LENGTH))
    want, _ = oracle(*args)
    for implementation in ("xla", "splash"):
        with pallas_kernels.target("interpret"):
            out, _ = run(*args, implementation=implementation)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(out, np.float64), want, atol=0.02)


def test_merge_has_no_nan_in_value_or_gradient():
    none = jnp.full(2, -jnp.inf)
    lse = jnp.array([0.5, -jnp.inf])
    out_a, out_b = jnp.ones((2, 3)), jnp.zeros((2, 3))

    def total(out_a, lse_a, out_b, lse_b):
        out, lse = merge(out_a, lse_a, out_b, lse_b)
        return out.sum() + jnp.where(jnp.isfinite(lse), lse, 0).sum()

    for a, b in ((lse, none), (none, lse), (none, none), (lse, lse)):
        grads = jax.grad(total, argnums=(0, 1, 2, 3))(out_a, a, out_b, b)
        assert all(np.isfinite(g).all() for g in grads)
    out, merged = merge(out_a, lse, out_b, none)
    np.testing.assert_array_equal(out, [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(merged, lse)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("index", "value", "words"),
    [
        (0, jnp.ones((GROUP, HEADS, DIM)), "q, prefix_k, suffix_k have shapes"),
        (0, jnp.ones((GROUP, ROLLOUTS, 3, DIM)), "q has 3 heads, prefix_k has 2"),
        (2, jnp.ones((GROUP, KV_HEADS, PREFIX + 1, DIM)), r"prefix_v has shape .*151.* wanted"),
        (3, jnp.ones((GROUP, 2, KV_HEADS, SUFFIX, DIM)), "suffix_k has shape"),
        (4, jnp.ones((GROUP, ROLLOUTS, KV_HEADS, SUFFIX, DIM), jnp.bfloat16), "suffix_v has dtype"),
        (5, jnp.ones(3, jnp.int32), r"prefix_length has shape \(3,\); wanted \(2,\)"),
        (6, jnp.ones((GROUP, ROLLOUTS)), "suffix_length has dtype float32; wanted int32"),
    ],
)
def test_bad_arguments_are_named(index, value, words):
    args = [*caches(), jnp.asarray(PREFIX_LENGTH), jnp.asarray(SUFFIX_LENGTH)]
    args[index] = value
    with pytest.raises(ValueError, match=words):
        prefix_decode(*args[:5], prefix_length=args[5], suffix_length=args[6])


def test_the_kernel_says_why_it_cannot():
    args = (*caches(), jnp.asarray(PREFIX_LENGTH), jnp.asarray(SUFFIX_LENGTH))
    with pytest.raises(NotImplementedError, match="runs on TPU and this is cpu"):
        prefix_decode(
            *args[:5], prefix_length=args[5], suffix_length=args[6], implementation="splash"
        )
