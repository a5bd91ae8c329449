"""Packing: a row holds its trajectories as each would be alone, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from loader_world import (
    LENGTH,
    PATCHES,
    POLICY,
    TOKENIZER,
    VISION,
    Source,
    trajectory,
    write_video,
)

from vo3.chat import encode
from vo3.data.clips import clip_refs, settle
from vo3.data.feature_cache import FeatureSpec
from vo3.data.items import Encoding, ItemReader, patchify_levels
from vo3.data.rows import fit, pack_rows
from vo3.models.qwen2_5_vl.vision import vision_inputs
from vo3.video import VideoCrop, patchify
from vo3.video.patches import MEAN, STD


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("rows")
    videos = [write_video(folder / f"{i}.mp4", seed=i, frames=30 + 4 * i) for i in range(3)]
    return Source([trajectory(i, videos[i], clip=i != 1) for i in range(3)])


@pytest.fixture(scope="module")
def items(source):
    encoding = Encoding(policy="turn")
    reader = ItemReader(source, TOKENIZER, crop_policy=POLICY, encoding=encoding)
    return [reader.read(i, step=0) for i in range(3)]


def alone(source, number):
    """Encoded and patches, made without the reader."""
    t = source[number]
    video = VideoCrop(t.task.video, POLICY)
    clips = [video.overview()]
    if len(t.observations) == 2:
        clips.append(video.crop(*clip_refs(t)[1].window, "fine"))
    seen = [clip.observation(i, "fine" if i else None) for i, clip in enumerate(clips)]
    encoded = encode(settle(t, seen).turns, TOKENIZER, policy="turn")
    return encoded, np.concatenate([patchify(clip.frames)[0] for clip in clips])


def normalised(levels: np.ndarray) -> np.ndarray:
    x = levels.reshape(len(levels), 3, -1) / 255
    return ((x - np.reshape(MEAN, (1, 3, 1))) / np.reshape(STD, (1, 3, 1))).reshape(len(levels), -1)


def test_levels_are_the_patches_before_their_normalisation():
    frames = np.random.default_rng(0).integers(0, 256, (4, 56, 84, 3), np.uint8)
    levels = patchify_levels(frames)
    assert levels.dtype == np.uint8
    np.testing.assert_allclose(normalised(levels), patchify(frames)[0], atol=1e-6)
    with pytest.raises(ValueError, match="3 frames of 84 x 56 pixels"):
        patchify_levels(frames[:3])


def test_a_row_holds_its_trajectories_as_they_are_alone(source, items):
    rows = pack_rows(
        [[items[0], items[1]], [], [items[2]]], length=LENGTH, patches=PATCHES, vision=VISION
    )
    assert rows.numbers == ((0, 1), (), (2,))
    for b, numbers in enumerate(rows.numbers):
        token = patch = 0
        for segment, number in enumerate(numbers):
            encoded, patches = alone(source, number)
            here, there = (
                slice(token, token + len(encoded)),
                slice(patch, patch + len(patches)),
            )
            np.testing.assert_array_equal(rows.ids[b, here], encoded.ids)
            np.testing.assert_array_equal(rows.positions[b, :, here], encoded.positions)
            np.testing.assert_array_equal(rows.weight[b, here], encoded.loss_mask)
            np.testing.assert_array_equal(rows.roles[b, here], encoded.roles)
            assert (rows.segments[b, here] == segment).all()
            np.testing.assert_allclose(
                normalised(rows.patches[b, there]), patches, atol=1e-6, rtol=0
            )
            # Feature m of the row is made of the patches 4 m to 4 m + 3.
            shows = encoded.feature_index >= 0
            np.testing.assert_array_equal(
                rows.feature_index[b, here],
                np.where(shows, encoded.feature_index + patch // 4, -1),
            )
            token, patch = here.stop, there.stop
        assert (rows.segments[b, token:] == -1).all()
        assert not rows.weight[b, token:].any() and not rows.patches[b, patch:].any()
        assert (rows.feature_index[b, token:] == -1).all()
        assert rows.vision.count[b] == patch


def test_trajectories_of_a_row_do_not_see_each_other(items):
    rows = pack_rows([[items[0], items[2]]], length=LENGTH, patches=PATCHES, vision=VISION)
    seen = rows.visibility.validate().dense(causal=True)[0]
    wanted, at = np.zeros((LENGTH, LENGTH), bool), 0
    for item in (items[0], items[2]):
        size = len(item.encoded)
        wanted[at : at + size, at : at + size] = item.encoded.visibility.dense(causal=True)
        at += size
    assert rows.visibility.hide.any()
    np.testing.assert_array_equal(seen, wanted)


def test_the_towers_inputs_are_those_of_the_rows_clips(items):
    rows = pack_rows([[items[1]], [items[0]]], length=LENGTH, patches=PATCHES, vision=VISION)
    for b, item in enumerate((items[1], items[0])):
        wanted = vision_inputs(
            [s.observation.grid for s in item.shots], VISION, pad_patches=PATCHES
        )
        np.testing.assert_array_equal(rows.vision.positions[b], wanted.positions)
        np.testing.assert_array_equal(rows.vision.windows.enter[b], wanted.windows.enter)
        np.testing.assert_array_equal(rows.vision.order[b], wanted.order)


def test_features_stand_where_their_tokens_are(items):
    spec = FeatureSpec(width=6, dtype="bfloat16")
    rng = np.random.default_rng(0)
    clips = [shot.observation.tokens for shot in items[0].shots]
    made = [rng.normal(size=(n, 6)).astype(spec.dtype) for n in clips]
    shots = (
        dataclasses.replace(items[0].shots[0], features=made[0], patches=None),
        dataclasses.replace(items[0].shots[1], key="k"),  # not kept yet
    )
    item = dataclasses.replace(items[0], shots=shots)
    first = dataclasses.replace(
        items[1], shots=(dataclasses.replace(items[1].shots[0], features=made[0][:0], key="j"),)
    )
    tokens = first.shots[0].observation.tokens
    first = dataclasses.replace(
        first,
        shots=(dataclasses.replace(first.shots[0], features=np.ones((tokens, 6), spec.dtype)),),
    )
    rows = pack_rows(
        [[], [first, item]], length=LENGTH, patches=PATCHES, vision=VISION, features=spec
    )
    assert rows.patches is None and rows.vision is None
    assert rows.features.shape == (2, PATCHES // 4, 6) and rows.features.dtype == spec.dtype
    overview = (rows.segments[1] == 1) & (rows.feature_index[1] >= 0)
    places = rows.feature_index[1][overview]
    np.testing.assert_array_equal(rows.features[1][places[: clips[0]]], made[0])
    (missing,) = rows.missing
    assert (missing.key, missing.row, missing.start) == ("k", 1, places[clips[0]])
    np.testing.assert_array_equal(missing.patches, items[0].shots[1].patches)
    assert not rows.features[1][places[clips[0] :]].any()


def test_what_no_longer_fits_is_left_out(items):
    sizes = [len(item.encoded) for item in items]
    kept, failures = fit(
        items, step=7, length=sizes[0] + sizes[2], patches=items[0].patches + items[2].patches
    )
    assert [item.number for item in kept] == [0, 2] or [item.number for item in kept] == [0, 1]
    assert len(failures) == 1
    (failure,) = failures
    assert (failure.step, failure.kind) == (7, "length")
    assert "measure them again" in failure.message
    _, failures = fit(items[:1], step=0, length=LENGTH, patches=items[0].patches - 1)
    assert [f.number for f in failures] == [0]


@pytest.mark.parametrize(("length", "patches"), [(40, PATCHES), (LENGTH, 16)])
def test_an_overfull_row_is_refused(items, length, patches):
    with pytest.raises(ValueError, match="row 1 holds"):
        pack_rows([[], [items[0]]], length=length, patches=patches, vision=VISION)
