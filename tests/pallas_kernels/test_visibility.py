"""The drawn matrices are the masks, and bad fields are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import visibility
from pallas_kernels.visibility import CLIP, OVERVIEW, Visibility


def drawn(function) -> np.ndarray:
    """The 0/1 matrix in a docstring."""
    rows = [line.split() for line in function.__doc__.splitlines()]
    rows = [row for row in rows if row and set(row) <= {"0", "1"}]
    assert rows, f"{function.__qualname__} draws no matrix"
    return np.array(rows, int)


def ids(*values):
    return np.array(values, np.int32)


CASES = {
    "causal": (Visibility.causal, lambda: Visibility.causal(4, valid=3), True),
    "packed": (Visibility.packed, lambda: Visibility.packed([2, 3], 6), True),
    "windows": (Visibility.windows, lambda: Visibility.windows([2, 1, 2], 6), False),
    "segments": (Visibility.segments, lambda: Visibility.segments(ids(0, 1, 0, -1)), False),
    "tree": (Visibility.tree, lambda: Visibility.tree(2, [1, 2], align=2, total=7), True),
    "document": (
        Visibility.document,
        lambda: Visibility.document(ids(0, 2, 1, 3), np.array([True, True, True, False])),
        True,
    ),
    "branches": (
        Visibility.on_branches,
        lambda: Visibility.document(ids(0, 1, 0, 1), np.ones(4, bool)).on_branches(ids(0, 0, 1, 1)),
        True,
    ),
    "padding": (Visibility.padding, lambda: Visibility.padding(2), True),
    "concat": (
        Visibility.concat,
        lambda: Visibility.concat([Visibility.tree(1, [1, 1]), Visibility.causal(2)], 6),
        True,
    ),
    "tdam": (
        Visibility.with_kinds,
        lambda: Visibility.causal(5).with_kinds(
            ids(OVERVIEW, CLIP, 0, 0, 0), ids(0, 0, CLIP, OVERVIEW, 0)
        ),
        True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_mask_is_the_drawn_matrix(name):
    function, build, causal = CASES[name]
    vis = build().validate()
    np.testing.assert_array_equal(vis.dense(causal=causal).astype(int), drawn(function))
    traced = jax.jit(lambda v: v.dense(causal=causal))(jax.tree.map(jnp.asarray, vis))
    np.testing.assert_array_equal(traced.astype(int), drawn(function))
    assert all(x.dtype == np.int32 for x in jax.tree.leaves(vis))


def test_every_constructor_is_drawn():
    constructors = {n for n, f in vars(Visibility).items() if isinstance(f, classmethod)}
    assert constructors == set(CASES) - {"tdam", "branches"}


def test_predicate_bit_by_bit():
    """Against the definition, one pair of tokens at a time."""
    rng = np.random.default_rng(0)
    vis = Visibility(*(rng.integers(0, 4, 30).astype(np.int32) for _ in range(5)))
    for causal in (True, False):
        dense = vis.dense(causal=causal)
        for i in range(30):
            for j in range(30):
                want = vis.enter[j] <= vis.enter[i] < vis.leave[j]
                want = want and not (vis.hide[i] & vis.kind[j])
                want = want and (not causal or vis.order[j] <= vis.order[i])
                assert dense[i, j] == want


def test_a_tree_equals_separate_rows():
    """Leaf i under the tree sees what it sees in a row of its own: prefix, then itself."""
    prefix, leaves = 5, [3, 1, 4]
    tree = Visibility.tree(prefix, leaves, align=4)
    dense = tree.dense(causal=True)
    starts = visibility.leaf_starts(prefix, leaves, align=4)
    np.testing.assert_array_equal(starts, [8, 12, 16])
    for start, length in zip(starts, leaves, strict=True):
        tokens = np.r_[0:prefix, start : start + length]
        np.testing.assert_array_equal(
            dense[np.ix_(tokens, tokens)], np.tri(prefix + length, dtype=bool)
        )
        others = np.setdiff1d(np.arange(tree.order.size), tokens)
        assert not dense[np.ix_(tokens[prefix:], others)].any()


def test_queries_and_keys_have_fields_of_their_own():
    vis = Visibility.packed([3, 4], 8)
    chunk = jax.tree.map(lambda x: x[4:6], vis)
    np.testing.assert_array_equal(chunk.dense(causal=True, kv=vis), vis.dense(causal=True)[4:6])


def test_batched_fields_draw_batched_matrices():
    rows = jax.tree.map(lambda *x: np.stack(x), Visibility.causal(4), Visibility.packed([1, 2], 4))
    assert rows.dense(causal=True).shape == (2, 4, 4)
    np.testing.assert_array_equal(
        rows.dense(causal=True)[1], Visibility.packed([1, 2], 4).dense(causal=True)
    )


def test_padding_neither_sees_nor_is_seen():
    vis = visibility.pad(Visibility.causal(3), 2)
    dense = vis.dense(causal=False)
    assert dense[:3, :3].all() and not dense[3:].any() and not dense[:, 3:].any()


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Visibility.packed([3, 4], 6), "7 tokens are more than total=6"),
        (lambda: Visibility.packed([3, -1]), "negative"),
        (lambda: Visibility.windows([-2]), "negative"),
        (lambda: Visibility.tree(-1, [2]), "negative"),
        (lambda: Visibility.tree(1, [2], align=0), "align is 0"),
        (lambda: Visibility.tree(1, [2], total=2), "3 tokens are more than total=2"),
        (lambda: Visibility.concat([]), "parts is empty"),
        (lambda: Visibility.concat([Visibility.padding(2, 3)]), r"parts\[0\]"),
        (
            lambda: Visibility.causal(3).with_kinds(ids(1, 1), ids(0, 0, 0)),
            r"kind has shape \(2,\)",
        ),
        (lambda: Visibility.causal(2).with_kinds(ids(1, 1), ids(0, 256)), "hide has bits outside"),
        (lambda: Visibility.causal(2).with_kinds(ids(-1, 1), ids(0, 0)), "kind has bits outside"),
    ],
)
def test_constructors_refuse(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"leave": ids(1, 0, 1)}, r"token \(1,\) has enter 0, leave 0"),
        ({"enter": ids(0, -1, 0)}, r"token \(1,\) has enter -1, leave 1"),
        ({"enter": ids(0, 5, 0)}, r"token \(1,\) has enter 5, leave 1"),
        ({"leave": ids(1, 1)}, r"leave has shape \(2,\); wanted \(3,\)"),
        ({"order": np.arange(3)}, "order has dtype int64; wanted int32"),
        ({"hide": ids(0, 0, 300)}, "hide has bits outside"),
    ],
)
def test_bad_fields_are_refused(change, words):
    vis = dataclasses.replace(Visibility.causal(3), **change)
    with pytest.raises(ValueError, match=words):
        vis.validate("mask")
    x = jnp.ones((1, 1, 3, 8))
    with pytest.raises(ValueError, match=words):
        pallas_kernels.splash_attention(x, x, x, vis, vis, causal=True)
