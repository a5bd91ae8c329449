"""The key-value cache: chunks of any size, padded or not, give what one pass over everything gives."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import Visibility
from vo3.models.qwen2_5_vl import KVCache, Qwen2_5_VL, Qwen2_5_VLConfig, vision_inputs

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CONFIG = Qwen2_5_VLConfig.tiny(text={"initializer_range": 0.1}, vision={"initializer_range": 0.1})
LENGTH, ROWS = 40, 2


@functools.cache
def model() -> Qwen2_5_VL:
    return Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0))


@functools.cache
def conversation():
    """ids, positions, feature index, features and the logits of one pass over all of them."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 250, (ROWS, LENGTH)).astype(np.int32)
    positions = np.sort(rng.integers(0, 60, (3, ROWS, LENGTH)), axis=-1).astype(np.int32)
    index = np.full((ROWS, LENGTH), -1, np.int32)
    index[0, 3:9], index[1, 20:26] = np.arange(6), np.arange(6)[::-1]
    pixels = rng.normal(size=(24, CONFIG.vision.patch_dim)).astype(np.float32)
    features = model().encode_vision(pixels, vision_inputs([(1, 4, 6)], CONFIG.vision))
    out = model()(ids, positions, causal(0, LENGTH), features=features, feature_index=index)
    return ids, positions, index, features, np.asarray(out.logits)


def causal(start: int, stop: int, *, padded: int = 0) -> Visibility:
    """Tokens start .. stop of one document a row, then padding."""
    ids = np.concatenate([np.zeros(stop - start), -np.ones(padded)]).astype(np.int32)
    visibility = Visibility.segments(ids)
    order = np.arange(start, stop + padded, dtype=np.int32)
    fields = Visibility(
        order, *(getattr(visibility, n) for n in ("enter", "leave", "kind", "hide"))
    )
    return jax.tree.map(lambda f: np.tile(f, (ROWS, 1)), fields)


@functools.partial(jax.jit, static_argnames=("logits",), donate_argnames=("cache",))
def append(params, cache, ids, positions, visibility, features, index, logits="all"):
    built = nnx.merge(nnx.graphdef(model()), params)
    return built(
        ids,
        positions,
        visibility,
        features=features,
        feature_index=index,
        cache=cache,
        logits=logits,
    )


def feed(cache: KVCache, start: int, stop: int, *, padded: int = 0, logits: str = "all"):
    ids, positions, index, features, _ = conversation()
    # The padding holds other tokens, features and positions: none may matter.
    take = lambda x, value: np.concatenate(
        [x[..., start:stop], np.full((*x.shape[:-1], padded), value, np.int32)], axis=-1
    )
    return append(
        nnx.state(model()),
        cache,
        take(ids, 9),
        take(positions, 77),
        causal(start, stop, padded=padded),
        features,
        take(index, 2),
        logits=logits,
    )


def empty(capacity: int) -> KVCache:
    return KVCache.empty(CONFIG.text, ROWS, capacity)


def close(a, b) -> bool:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max()) <= 2e-5


@pytest.mark.parametrize("cuts", [[], [1], [13, 20], [39], [8, 16, 24, 32]])
def test_chunks_are_one_pass(cuts):
    wanted = conversation()[-1]
    cache, done = empty(48), 0
    for stop in [*cuts, LENGTH]:
        out = feed(cache, done, stop)
        assert close(out.logits, wanted[:, done:stop])
        cache, done = out.cache, stop
    assert cache.length.tolist() == [LENGTH] * ROWS


def test_decoding_token_by_token_is_one_pass():
    wanted = conversation()[-1]
    out = feed(empty(LENGTH), 0, 10, logits="last")
    assert out.logits.shape == (ROWS, CONFIG.text.vocab_size)
    assert close(out.logits, wanted[:, 9])
    for i in range(10, LENGTH):
        out = feed(out.cache, i, i + 1, logits="last")
        assert close(out.logits, wanted[:, i])


def test_padding_at_the_end_of_a_chunk_is_overwritten():
    wanted = conversation()[-1]
    out = feed(empty(48), 0, 13, padded=7)
    assert out.cache.length.tolist() == [13, 13]
    assert close(out.logits[:, :13], wanted[:, :13])
    out = feed(out.cache, 13, 14, padded=19, logits="last")
    assert close(out.logits, wanted[:, 13])
    out = feed(out.cache, 14, LENGTH)
    assert close(out.logits, wanted[:, 14:])


def test_padding_inside_a_chunk_keeps_its_slot():
    """Leaves that start on block borders have padding before them."""
    ids, positions, index, features, _ = conversation()
    keep = np.r_[0:10, 16:40]
    hole = Visibility.segments(np.where(np.isin(np.arange(40), keep), 0, -1).astype(np.int32))
    visibility = jax.tree.map(lambda f: np.tile(f, (ROWS, 1)), hole)
    out = append(
        nnx.state(model()), empty(48), ids, positions, visibility, features, index, logits="last"
    )
    assert out.cache.length.tolist() == [40, 40]
    alone = model()(
        ids[:, keep],
        positions[:, :, keep],
        causal(0, len(keep)),
        features=features,
        feature_index=index[:, keep],
        logits="last",
    )
    assert close(out.logits, alone.logits)


def test_rows_may_have_different_lengths():
    ids, positions, index, features, wanted = conversation()
    lengths = np.array([10, 25])
    step = np.arange(25)
    fields = Visibility.segments(np.where(step < lengths[:, None], 0, -1).astype(np.int32))
    out = append(
        nnx.state(model()),
        empty(48),
        ids[:, :25],
        positions[:, :, :25],
        fields,
        features,
        index[:, :25],
        logits="last",
    )
    assert out.cache.length.tolist() == lengths.tolist()
    assert close(out.logits, np.stack([wanted[0, 9], wanted[1, 24]]))
    # One more token a row, each at its own place.
    pick = lambda x: np.stack([x[..., b, n : n + 1] for b, n in enumerate(lengths)], axis=-2)
    one = Visibility.segments(np.zeros((2, 1), np.int32))
    one = Visibility(lengths[:, None].astype(np.int32), one.enter, one.leave, one.kind, one.hide)
    out = append(
        nnx.state(model()),
        out.cache,
        pick(ids),
        pick(positions),
        one,
        features,
        pick(index),
        "last",
    )
    assert close(out.logits, np.stack([wanted[0, 10], wanted[1, 25]]))


def test_rewinding_takes_back_a_clip():
    wanted = conversation()[-1]
    cache = feed(empty(48), 0, 12).cache
    ids, positions, index, features, _ = conversation()
    other = append(
        nnx.state(model()),
        cache,
        (ids[:, :9] + 1) % 250,
        positions[:, :, :9],
        causal(12, 21),
        features,
        index[:, :9],
    ).cache
    assert other.length.tolist() == [21, 21]
    back = other.rewind(jnp.array([12, 12], jnp.int32))
    assert back.length.tolist() == [12, 12]
    assert close(feed(back, 12, LENGTH).logits, wanted[:, 12:])


def test_rewinding_never_lengthens():
    cache = feed(empty(48), 0, 12).cache
    back = cache.rewind(jnp.array([30, 5], jnp.int32))
    assert back.length.tolist() == [12, 5]
    assert (np.asarray(back.visibility.enter) >= 0).sum(axis=1).tolist() == [12, 5]


def test_growing_keeps_what_is_there():
    wanted = conversation()[-1]
    cache = feed(empty(16), 0, 15).cache.grow(48)
    assert cache.capacity == 48
    assert close(feed(cache, 15, LENGTH).logits, wanted[:, 15:])
    with pytest.raises(ValueError, match="cannot shrink"):
        cache.grow(4)


def test_a_full_cache_drops_tokens_and_says_so_by_its_length():
    """Nothing that is there may be overwritten; whoever appends compares length with capacity."""
    before = feed(empty(12), 0, 12).cache
    kept = np.asarray(before.k)
    after = feed(before, 12, 16).cache
    assert after.length.tolist() == [16, 16] and after.capacity == 12
    assert np.array_equal(np.asarray(after.k), kept)


def test_unwritten_slots_are_invisible_whatever_they_hold():
    wanted = conversation()[-1]
    cache = empty(48)
    filled = jax.tree.map(lambda x: x, cache)
    filled = KVCache(cache.k + 50, cache.v - 50, filled.visibility, filled.length)
    assert close(feed(filled, 0, LENGTH).logits, wanted)


def test_a_donated_cache_hands_over_every_buffer_once():
    cache = empty(48)
    feed(cache, 0, 8)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))


def test_the_cache_is_written_in_place():
    """Per token the decoder must not copy the cache: temporaries stay below one layer's share of it."""
    cache = KVCache.empty(CONFIG.text, ROWS, 4096)
    ids, positions, index, features, _ = conversation()
    compiled = append.lower(
        nnx.state(model()),
        cache,
        ids[:, :1],
        positions[:, :, :1],
        causal(0, 1),
        features,
        index[:, :1],
        logits="last",
    ).compile()
    whole = cache.k.nbytes + cache.v.nbytes
    assert compiled.memory_analysis().temp_size_in_bytes < 0.75 * whole
    assert compiled.memory_analysis().alias_size_in_bytes >= whole


def test_bfloat16_cache():
    wanted = conversation()[-1]
    cache = KVCache.empty(CONFIG.text, ROWS, 48, dtype=jnp.bfloat16)
    out = feed(cache, 0, 20)
    assert out.cache.k.dtype == jnp.bfloat16
    error = np.abs(np.asarray(feed(out.cache, 20, LENGTH).logits) - wanted[:, 20:])
    assert 0 < error.max() < 0.1 * np.abs(wanted).max()
