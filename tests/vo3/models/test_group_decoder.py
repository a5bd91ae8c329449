"""The decoder over groups: prefixes, leaves and single tokens give what one pass over each leaf's whole sequence gives."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import Visibility
from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig, group_decoder
from vo3.models.qwen2_5_vl.group_cache import PrefixCache, SuffixCache

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CONFIG = Qwen2_5_VLConfig.tiny(text={"initializer_range": 0.1})
PREFIX = (9, 5)  # tokens of the two groups' prefixes
LEAVES = ((4, 7), (6, 3))  # and of their leaves, the last one of each decoded


@functools.cache
def model() -> Qwen2_5_VL:
    return Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0))


def sequence(group: int, leaf: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids [L], positions [3, L]) of a leaf with its prefix."""
    shared, own = np.random.default_rng(group), np.random.default_rng([group, leaf, 7])
    parts = [(shared, PREFIX[group], 0), (own, LEAVES[group][leaf], 40)]
    ids = np.concatenate([rng.integers(0, 250, n) for rng, n, _ in parts]).astype(np.int32)
    positions = np.concatenate(
        [np.sort(rng.integers(0, 40, (3, n)), axis=-1) + base for rng, n, base in parts], axis=1
    )
    positions[:, -1] = positions[0, -1]  # a decoded token is plain text
    return ids, positions.astype(np.int32)


@jax.jit
def whole(params, ids, positions):
    """Hidden states of one pass."""
    built = nnx.merge(nnx.graphdef(model()), params)
    visibility = jax.tree.map(lambda f: jnp.asarray(f)[None], Visibility.causal(ids.size))
    return built(ids[None], positions[:, None], visibility, logits="none").hidden[0]


def row(parts, length: int):
    """One row: ids, positions [3, L], leaf, slots of (leaf, first slot, ids, positions), padded."""
    ids, leaf = np.zeros(length, np.int32), np.zeros(length, np.int32)
    positions, slots = np.zeros((3, length), np.int32), np.full(length, -1, np.int32)
    at = 0
    for number, first, new, places in parts:
        part = slice(at, at + new.size)
        ids[part], leaf[part], positions[:, part] = new, number, places
        slots[part] = np.arange(first, first + new.size)
        at += new.size
    return ids, positions, leaf, slots


def batch(rows, length: int):
    """Rows of both groups as arguments: ids [G, L], positions [3, G, L], leaf, slots."""
    ids, positions, leaf, slots = zip(*(row(parts, length) for parts in rows), strict=True)
    return np.stack(ids), np.stack(positions, axis=1), np.stack(leaf), np.stack(slots)


def test_one_pass_over_each_leaf_gives_the_same():
    built = model()
    params = nnx.state(built)
    wanted = {
        (g, i): np.asarray(whole(params, *sequence(g, i))) for g in range(2) for i in range(2)
    }
    prefix = PrefixCache.empty(CONFIG.text, 2, 12, dtype=jnp.float32)
    suffix = SuffixCache.empty(CONFIG.text, 2, 2, 8, dtype=jnp.float32)
    # What slots hold that are not in use must not matter.
    prefix, suffix = jax.tree.map(lambda x: x + 1e4, (prefix, suffix))
    close = functools.partial(np.testing.assert_allclose, atol=2e-5)

    # The prefixes in two chunks, the second only for the longer one.
    for first, last in ((0, 6), (6, 9)):
        parts = []
        for g in range(2):
            ids, positions = sequence(g, 0)
            part = slice(first, min(last, PREFIX[g]))
            parts.append([(0, first, ids[part], positions[:, part])] if first < PREFIX[g] else [])
        ids, positions, _, slots = batch(parts, 6)
        hidden, prefix = nnx.jit(group_decoder.extend_prefix)(
            built.decoder, built.embed(ids), positions, slots, prefix
        )
        for g in range(2):
            count = max(0, min(last, PREFIX[g]) - first)
            close(hidden[g, :count], wanted[g, 0][first : first + count])
    lengths = np.asarray(PREFIX, np.int32)

    # New tokens of leaves, one after the other in a row: first of leaf 1 alone, then of both, up to the last but one.
    done = np.zeros((2, 2), np.int32)
    for counts in (((0, 2), (0, 1)), ((3, 4), (5, 1))):
        rows, places = [], []
        for g in range(2):
            parts, at = [], 0
            for i in range(2):
                ids, positions = sequence(g, i)
                start = PREFIX[g] + done[g, i]
                part = slice(start, start + counts[g][i])
                if counts[g][i]:
                    parts.append((i, done[g, i], ids[part], positions[:, part]))
                    places.append((g, i, at, part))
                at += counts[g][i]
                done[g, i] += counts[g][i]
            rows.append(parts)
        ids, positions, leaf, slots = batch(rows, 8)
        hidden, suffix = nnx.jit(group_decoder.extend_leaves)(
            built.decoder, built.embed(ids), positions, leaf, slots, prefix, lengths, suffix
        )
        for g, i, at, part in places:
            close(hidden[g, at : at + part.stop - part.start], wanted[g, i][part])

    # The last token of three leaves; the fourth stands still.
    active = np.array([[True, True], [True, False]])
    last = np.array([[sequence(g, i)[0][-1] for i in range(2)] for g in range(2)], np.int32)
    where = np.array([[sequence(g, i)[1][0, -1] for i in range(2)] for g in range(2)], np.int32)
    hidden, after = nnx.jit(group_decoder.decode_leaves)(
        built.decoder, built.embed(last), np.broadcast_to(where, (3, 2, 2)), active,
        prefix, lengths, suffix, done,
    )  # fmt: skip
    for g, i in np.argwhere(active):
        close(hidden[g, i], wanted[g, i][-1])
    for old, new in zip(jax.tree.leaves(suffix), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old[1, 1], new[1, 1])
        assert (np.asarray(old[0, 0]) != np.asarray(new[0, 0])).any()


def test_resizing_keeps_what_is_in_use():
    cache = SuffixCache.empty(CONFIG.text, 1, 2, 4, dtype=jnp.float32)
    cache = jax.tree.map(lambda x: x + jnp.arange(4, dtype=x.dtype).reshape(1, 1, 1, 4, 1), cache)
    grown = cache.resize(6)
    assert (grown.capacity, grown.leaves, grown.resize(3).capacity) == (6, 2, 3)
    np.testing.assert_array_equal(grown.k[0][..., :4, :], cache.k[0])
    np.testing.assert_array_equal(grown.resize(3).v[1], cache.v[1][..., :3, :])
