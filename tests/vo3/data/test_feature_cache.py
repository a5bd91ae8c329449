"""Features of a frozen tower: kept by clip and weights, found again without decoding."""

from __future__ import annotations

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from loader_world import (
    POLICY,
    TOKENIZER,
    VISION,
    ListedPlan,
    Source,
    trajectory,
    write_video,
)

from vo3.data.feature_cache import FeatureCache, FeatureSpec, weights_hash
from vo3.data.loader import make_loader
from vo3.trajectory import Observation

PLAN = ListedPlan((((0, 1), (2,)),))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("features")
    videos = [write_video(folder / f"{i}.mp4", seed=i) for i in range(2)]
    return Source([trajectory(i, videos[i % 2], clip=i != 1) for i in range(3)])


def rows_of(source, feature_cache=None):
    loader = make_loader(
        PLAN, source, TOKENIZER, crop_policy=POLICY, vision=VISION, rows_per_batch=2, stop_step=1,
        workers=0, feature_cache=feature_cache,
    )  # fmt: skip
    with loader:
        (batch,) = next(loader).micro_batches
    if feature_cache is not None:
        counts = loader.counts.cache
        assert counts["features_hits"] + counts["features_misses"] == 5
        assert counts["features_misses"] == len(batch.rows.missing)
    return batch.rows


def observation(tokens: int) -> Observation:
    return Observation(0, 0.0, 1.0, 2.0, (0.0, 0.5), (0, 1), 28, 28 * tokens, (1, 2, 2 * tokens), tokens)  # fmt: skip


def test_features_are_kept_by_clip_and_weights(tmp_path):
    spec = FeatureSpec(3, "bfloat16")
    cache = FeatureCache(tmp_path, weights="one", spec=spec, limit_bytes=1 << 20)
    features = np.arange(6).reshape(2, 3).astype(spec.dtype)
    assert cache.get("clip") is None
    assert cache.put("clip", observation(2), features)
    kept = pickle.loads(pickle.dumps(cache)).get("clip")
    assert kept.observation == observation(2) and kept.array.dtype == features.dtype
    np.testing.assert_array_equal(kept.array, features)
    assert cache.get("other clip") is None
    assert FeatureCache(tmp_path, weights="two", spec=spec).get("clip") is None
    other = FeatureSpec(3, "float32")
    assert FeatureCache(tmp_path, weights="one", spec=other).get("clip") is None
    for wrong in (features[:1], features[:, :2], features.astype(np.float32)):
        with pytest.raises(ValueError, match=r"wanted bfloat16 \(2, 3\)"):
            cache.put("clip", observation(2), wrong)
    with pytest.raises(ValueError, match="hash of the weights"):
        FeatureCache(tmp_path, weights="", spec=spec)


def test_a_hash_sees_every_bit_and_name():
    weights = {"a": np.zeros(3, np.float32), "b": {"c": np.ones((2, 2), np.int8)}}
    first = weights_hash(weights)
    assert first == weights_hash({"b": {"c": jnp.ones((2, 2), jnp.int8)}, "a": jnp.zeros(3)})
    flipped = weights["a"].copy()
    flipped.view(np.uint32)[1] = 1
    others = [
        weights | {"a": flipped},
        weights | {"a": np.zeros(3, np.int32)},
        weights | {"a": np.zeros((3, 1), np.float32)},
        {"d": weights["a"], "b": weights["b"]},
    ]
    assert len({first, *(weights_hash(other) for other in others)}) == 5


def test_rows_bring_what_is_kept_and_name_the_rest(source, tmp_path):
    """Without pixels where features are kept; what is missing comes with its pixels, and where it belongs."""
    spec = FeatureSpec(8, "bfloat16")
    cache = FeatureCache(tmp_path, weights="one", spec=spec)
    plain, empty = rows_of(source), rows_of(source, cache)
    assert empty.patches is None and empty.vision is None and not empty.features.any()
    assert len(empty.missing) == 5
    rng = np.random.default_rng(0)
    wanted = np.zeros_like(empty.features)
    for clip in empty.missing:
        # Three of the five stand on one video: the same overview has the same key.
        made = cache.get(clip.key)
        if made is None:
            tokens = clip.observation.tokens
            assert cache.put(
                clip.key, clip.observation, rng.normal(size=(tokens, 8)).astype(spec.dtype)
            )
            made = cache.get(clip.key)
        stop = clip.start + len(made.array)
        wanted[clip.row, clip.start : stop] = made.array
        pixels = plain.patches[clip.row, 4 * clip.start : 4 * stop]
        np.testing.assert_array_equal(pixels, clip.patches)
    assert len({clip.key for clip in empty.missing}) == 4
    full = rows_of(source, cache)
    assert full.missing == ()
    np.testing.assert_array_equal(full.features, wanted)
    for name in ("ids", "positions", "weight", "segments", "feature_index"):
        np.testing.assert_array_equal(getattr(full, name), getattr(plain, name))
