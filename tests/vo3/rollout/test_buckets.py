"""Bucket tables, and prefixes kept for later."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vo3.rollout.buckets import _CALL, PROMPT, Buckets, GroupBuckets, smallest
from vo3.rollout.errors import BucketError
from vo3.rollout.kv_cache import PrefixStore, prefix_key
from vo3.rollout.policy import RolloutPolicy
from vo3.video import CropPolicy, plan_clip

TABLE = (16, 64, 256)


@given(st.integers(0, 1500))
def test_a_split_holds_the_tokens_and_no_more_calls_than_needed(tokens):
    parts = Buckets(tokens=TABLE).split(tokens)
    assert set(parts) <= set(TABLE) and sum(parts) >= tokens
    # Only the last call is padded.
    assert sum(parts[:-1]) < tokens or not parts
    assert sum(parts) - tokens < 256


@pytest.mark.parametrize("tokens", [1, 16, 17, 60, 65, 100, 130, 200, 255, 256])
def test_a_split_is_the_cheapest(tokens):
    options = [
        parts
        for count in range(1, 7)
        for parts in itertools.product(TABLE, repeat=count)
        if sum(parts) >= tokens
    ]
    best = min(sum(parts) + _CALL * len(parts) for parts in options)
    split = Buckets(tokens=TABLE).split(tokens)
    assert sum(split) + _CALL * len(split) == best


def test_long_prompts_take_the_largest_bucket_first():
    assert Buckets(tokens=(32, 2048)).split(2048 * 8) == (2048,) * 8


def test_capacities_end_at_the_context():
    assert Buckets(capacity=(1024, 4096)).limit(3000).capacity == (1024, 3000)
    assert Buckets(capacity=(1024, 4096)).limit(9000).capacity == (1024, 4096, 9216)
    assert Buckets(capacity=(1024, 4096)).limit(1024).capacity == (1024,)


def test_long_contexts_take_whole_blocks_of_the_kernels():
    """Another size would be copied in every layer for every token."""
    assert Buckets(capacity=(1024,)).limit(20_000).capacity == (1024, 20_480)
    groups = GroupBuckets(prefix=(512, 20_480), suffix=(512, 32_768)).limit(20_000)
    assert (groups.prefix, groups.suffix) == ((512, 20_480), (512, 20_480))
    assert GroupBuckets().limit(52_384).suffix[-1] == 52_736
    assert Buckets().limit(4000).capacity[-1] == 4000  # small ones are padded at little cost


def test_a_prefix_holds_the_overviews_that_a_crop_policy_makes():
    for recipe in ("rl", "eval", "sft", "videozoomer"):
        assert GroupBuckets().showing(CropPolicy(recipe=recipe)) == GroupBuckets()
    longvt = CropPolicy(recipe="longvt")
    shown = plan_clip(fps=30, frames=1800 * 30, height=720, width=1280, policy=longvt)
    assert shown.tokens > GroupBuckets().prefix[-1]
    context = RolloutPolicy(dialect="longvt").limits.max_length
    table = GroupBuckets().showing(longvt).limit(context)
    assert table.prefix[:-1] == GroupBuckets().prefix
    assert table.prefix[-1] >= shown.tokens + 2 * longvt.max_frames + PROMPT
    assert table.prefix[-1] % 512 == 0


def test_too_large():
    with pytest.raises(BucketError, match="patches: 300 is more than the largest bucket, 256"):
        smallest(300, TABLE, what="patches")


@pytest.mark.parametrize(
    "wrong", [{"tokens": ()}, {"tokens": (64, 16)}, {"capacity": (0, 5)}, {"patches": (10,)}]
)
def test_bad_tables(wrong):
    with pytest.raises(ValueError, match=f"Buckets.{next(iter(wrong))}"):
        Buckets(**wrong)


def test_keys_tell_contents_shapes_and_borders_apart():
    a = np.arange(6, dtype=np.int32)
    keys = [
        prefix_key([a]),
        prefix_key([a.reshape(2, 3)]),
        prefix_key([a.astype(np.int64)]),
        prefix_key([a[:3], a[3:]]),
        prefix_key([a[::-1]]),
    ]
    assert len(set(keys)) == 5 and prefix_key([a.reshape(2, 3).T.T]) == keys[1]


def test_the_store_drops_what_was_used_longest_ago():
    store = PrefixStore(2)
    for name in (b"a", b"b"):
        store.put(name, name)
    store.get(b"a")
    store.put(b"c", b"c")
    assert store.get(b"b") is None and store.get(b"a") == b"a" and store.get(b"c") == b"c"
    assert (store.hits, store.misses, len(store)) == (3, 1, 2)
    store.clear()
    assert len(store) == 0
    empty = PrefixStore(0)
    assert not empty.wanted
    with pytest.raises(ValueError, match="0 or more"):
        PrefixStore(-1)
