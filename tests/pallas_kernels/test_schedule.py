"""Block states are sound, tight where it matters, the same in numpy and traced; lists hold every active pair once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import schedule
from pallas_kernels.visibility import Visibility, pad
from tests.pallas_kernels.layouts import KINDS, layout


def dense_blocks(q_vis, kv_vis, block_q, block_kv, causal):
    """Per block pair: any and all of the dense mask, [b, q_blocks, kv_blocks]."""
    mask = q_vis.dense(causal=causal, kv=kv_vis)
    rows, length, keys = mask.shape
    blocks = mask.reshape(rows, length // block_q, block_q, keys // block_kv, block_kv)
    return blocks.any(axis=(2, 4)), blocks.all(axis=(2, 4))


def random_case(seed):
    rng = np.random.default_rng(seed)
    block_q, block_kv = (int(x) for x in rng.choice([2, 4, 8], 2))
    kind = KINDS[seed % len(KINDS)]
    vis = layout(rng, kind, int(rng.integers(8, 70)))
    causal = bool(rng.random() < 0.7) and kind != "windows"
    q_vis = vis
    if rng.random() < 0.3:  # a chunk of queries, as in chunked prefill
        start = int(rng.integers(0, vis.order.size))
        q_vis = jax.tree.map(lambda x: x[start : start + 16], vis)
    q_vis, kv_vis = (
        pad(jax.tree.map(lambda x: x[None], x), -x.order.size % block)
        for x, block in ((q_vis, block_q), (vis, block_kv))
    )
    return q_vis, kv_vis, {"block_q": block_q, "block_kv": block_kv, "causal": causal}


def check_sound(states, any_seen, all_seen):
    assert not (any_seen & (states == schedule.EMPTY)).any(), "a block with a visible pair is empty"
    assert not (~all_seen & (states == schedule.FULL)).any(), "a block with a hidden pair is full"


def test_no_block_is_wrong_over_random_layouts():
    """1,600 layouts of all kinds: numpy states against the dense mask."""
    needless = visited = 0
    for seed in range(1600):
        q_vis, kv_vis, options = random_case(seed)
        states = schedule.block_states(q_vis, kv_vis, **options)
        any_seen, all_seen = dense_blocks(q_vis, kv_vis, *options.values())
        check_sound(states, any_seen, all_seen)
        if KINDS[seed % len(KINDS)] in ("causal", "packed", "tree", "forest", "windows"):
            visited += int((states != schedule.EMPTY).sum())
            needless += int(((states != schedule.EMPTY) & ~any_seen).sum())
    # Bounds cost nothing to speak of on the structured layouts, at blocks as small as 2 tokens.
    assert needless <= 0.05 * visited, f"{needless} of {visited} pairs visited for nothing"


def test_the_check_finds_a_wrong_state():
    q_vis, kv_vis, options = random_case(1)
    states = schedule.block_states(q_vis, kv_vis, **options)
    any_seen, all_seen = dense_blocks(q_vis, kv_vis, *options.values())
    with pytest.raises(AssertionError, match="visible pair"):
        check_sound(np.zeros_like(states), any_seen, all_seen)
    with pytest.raises(AssertionError, match="hidden pair"):
        check_sound(np.full_like(states, schedule.FULL), any_seen, all_seen)


def test_traced_equals_numpy():
    """States and both lists, over every layout kind, at one shape so that one compilation serves."""
    rng = np.random.default_rng(0)
    options = {"block_q": 8, "block_kv": 16}
    for causal in (True, False):
        traced = jax.jit(lambda q, k: schedule.make_plan(q, k, causal=causal, **options))  # noqa: B023
        for kind in KINDS * 3:
            rows = [layout(rng, kind, 64) for _ in range(2)]
            vis = jax.tree.map(lambda *x: np.stack(x), *rows)
            want = schedule.make_plan(vis, vis, causal=causal, **options)
            got = traced(*jax.tree.map(jnp.asarray, (vis, vis)))
            assert isinstance(want.by_q, np.ndarray)
            for a, b in (("by_q", "q_count"), ("by_kv", "kv_count")):
                assert int(getattr(got, b)) == int(getattr(want, b))
                for x, y in zip(
                    *(
                        dataclasses.astuple(schedule.decode(getattr(p, a), getattr(p, b)))
                        for p in (got, want)
                    ),
                    strict=True,
                ):
                    np.testing.assert_array_equal(x, y)


def test_lists_hold_every_active_pair_once_and_every_major_block():
    for seed in range(200):
        q_vis, kv_vis, options = random_case(seed)
        states = schedule.block_states(q_vis, kv_vis, **options)
        plan = schedule.make_plan(q_vis, kv_vis, **options)
        for words, count, table in (
            (plan.by_q, plan.q_count, states),
            (plan.by_kv, plan.kv_count, states.swapaxes(1, 2)),
        ):
            pairs = schedule.decode(words, count)
            found = np.zeros(table.shape[1:], int)
            active = pairs.full | pairs.partial
            np.add.at(found, (pairs.major[active], pairs.minor[active]), 1)
            np.testing.assert_array_equal(found, table[0] != schedule.EMPTY)
            assert (
                table[0, pairs.major[pairs.full], pairs.minor[pairs.full]] == schedule.FULL
            ).all()
            np.testing.assert_array_equal(np.unique(pairs.major), np.arange(table.shape[1]))
            np.testing.assert_array_equal(pairs.major, np.sort(pairs.major))
            np.testing.assert_array_equal(pairs.first, np.r_[True, np.diff(pairs.major) > 0])
            np.testing.assert_array_equal(pairs.last, np.r_[np.diff(pairs.major) > 0, True])
            lone = ~(pairs.full | pairs.partial)
            assert (pairs.first & pairs.last)[lone].all()


def test_block_indices_of_large_batches_survive_packing():
    """Majors above 2^14 sit in the sign bit of a word."""
    states = np.full((1, schedule.MAX_MAJOR, 1), schedule.FULL, np.int32)
    pairs = schedule.decode(*schedule.compact(states))
    np.testing.assert_array_equal(pairs.major, np.arange(schedule.MAX_MAJOR))


def test_batch_rows_are_counted_through():
    vis = jax.tree.map(lambda *x: np.stack(x), Visibility.causal(16), Visibility.packed([8, 8]))
    plan = schedule.make_plan(vis, vis, block_q=8, block_kv=8, causal=True)
    pairs = schedule.decode(plan.by_q, plan.q_count)
    np.testing.assert_array_equal(pairs.major, [0, 1, 1, 2, 3])
    np.testing.assert_array_equal(pairs.minor, [0, 0, 1, 2, 3])


PACK = [9000, 12000, 7000, 11000]


def brute_force(q_vis, kv_vis, block, causal):
    """Block pairs that hold a visible pair, without a dense mask: one block row at a time."""
    total = 0
    for start in range(0, q_vis.order.size, block):
        rows = jax.tree.map(lambda x: x[start : start + block], q_vis)  # noqa: B023
        seen = rows.dense(causal=causal, kv=kv_vis).any(axis=0)
        total += int(np.add.reduceat(seen, np.arange(0, seen.size, block)).astype(bool).sum())
    return total


@pytest.mark.parametrize(
    ("name", "vis", "causal"),
    [
        ("pack", Visibility.packed(PACK, 40960), True),
        ("tree", Visibility.tree(16384, [4096] * 8, align=512), True),
        ("ragged tree", Visibility.tree(16000, [3000, 4096, 1500, 100], align=512), True),
        ("vision windows", Visibility.windows([64] * 150 + [32, 16] * 20), False),
        ("vision frames", Visibility.windows([1564] * 10), False),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_blocks_visited_against_the_minimum(name, vis, causal):
    """The goal is 1.05 times the brute-force minimum at block size 512."""
    vis = pad(vis, -vis.order.size % 512)
    plan = schedule.make_plan(vis, vis, block_q=512, block_kv=512, causal=causal)
    pairs = schedule.decode(plan.by_q, plan.q_count)
    visited = int((pairs.full | pairs.partial).sum())
    assert visited <= 1.05 * brute_force(vis, vis, 512, causal)
    if name == "tree":
        assert visited <= 2900  # 8 separate rows of 20k visit 6,560


def test_schedule_memory_at_40k_is_under_128_kb():
    vis = Visibility.packed(PACK, 40960)
    plan = schedule.make_plan(vis, vis, block_q=512, block_kv=512, causal=True)
    assert plan.by_q.nbytes <= 128_000 and plan.by_kv.nbytes <= 128_000


def test_too_many_blocks_are_refused_with_the_reason():
    vis = Visibility.causal(1 << 14)
    with pytest.raises(NotImplementedError, match="larger blocks than 16 x 16"):
        schedule.make_plan(vis, vis, block_q=16, block_kv=16, causal=True)


@pytest.mark.parametrize("traced", [False, True])
def test_reach_shortens_the_lists_and_loses_nothing(traced):
    """Windows of at most `reach`: the same pairs, room for as many as the blocks of a side can have."""
    rng = np.random.default_rng(0)
    options = {"block_q": 16, "block_kv": 8, "causal": False}
    short = functools.partial(schedule.make_plan, reach=12, **options)
    make = jax.jit(short) if traced else short
    for _ in range(5 if traced else 100):
        vis = Visibility.windows(rng.integers(1, 13, 40).tolist(), total=520)
        vis = pad(vis, -vis.order.size % 16)
        want = schedule.make_plan(vis, vis, **options)
        got = make(*((jax.tree.map(jnp.asarray, vis),) * 2 if traced else (vis, vis)))
        # 16 queries and 11 tokens to either side touch 6 blocks of 8; 8 keys and theirs 3 blocks of 16.
        assert got.by_q.size == 33 * 6 and got.by_kv.size == 66 * 3
        for words, count in (("by_q", "q_count"), ("by_kv", "kv_count")):
            a, b = (schedule.decode(getattr(p, words), getattr(p, count)) for p in (got, want))
            for x, y in zip(*map(dataclasses.astuple, (a, b)), strict=True):
                np.testing.assert_array_equal(x, y)


def test_a_broken_promise_of_reach_is_refused():
    vis = Visibility.windows([128] * 4)
    with pytest.raises(ValueError, match="pass the longest window"):
        schedule.make_plan(vis, vis, block_q=8, block_kv=8, causal=False, reach=8)


def test_a_promise_broken_inside_jit_marks_every_block_as_lost():
    options = {"block_q": 8, "block_kv": 8, "causal": False}
    make = jax.jit(functools.partial(schedule.make_plan, reach=8, **options))
    for lengths, broken in (([128] * 4, True), ([8] * 64, False)):
        vis = jax.tree.map(
            lambda x: jnp.stack([x, x]),
            Visibility.windows(lengths),
        )
        plan = make(vis, vis)
        for words, count in ((plan.by_q, plan.q_count), (plan.by_kv, plan.kv_count)):
            pairs = schedule.decode(words, count)
            np.testing.assert_array_equal(np.unique(pairs.major), np.arange(128))
            assert (pairs.full & pairs.partial).all() == broken
            if broken:
                np.testing.assert_array_equal(pairs.major, np.arange(128))
                np.testing.assert_array_equal(pairs.minor, np.repeat([0, 64], 64))
                assert pairs.first.all() and pairs.last.all()


def test_windows_of_many_blocks_fit_the_schedule_with_reach():
    vis = Visibility.windows([64] * 1024)
    options = {"block_q": 128, "block_kv": 128, "causal": False}
    with pytest.raises(NotImplementedError, match="or `reach`"):
        schedule.make_plan(vis, vis, **options)
    plan = schedule.make_plan(vis, vis, reach=64, **options)
    assert int(plan.q_count) == 512 and plan.by_q.nbytes < 8192


def test_lengths_must_be_whole_blocks():
    vis = jax.tree.map(lambda x: x[None], Visibility.causal(10))
    with pytest.raises(ValueError, match="no multiple of block size 8"):
        schedule.block_states(vis, vis, block_q=8, block_kv=8, causal=True)
