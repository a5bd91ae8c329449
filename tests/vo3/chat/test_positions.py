"""M-RoPE positions against hand-worked cases, a plain-loop reference, and transformers 4.57.6's own output."""

from __future__ import annotations

import json
import math
import pathlib
import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from vo3.chat.positions import grid_positions, grid_tokens, mrope_positions, next_position

pytestmark = pytest.mark.quick

IMAGE, VIDEO, START, END = 901, 902, 903, 904
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}


def positions(ids, grids=(), **kwargs):
    return mrope_positions(ids, grids, **{**TOKENS, **kwargs})


def media(grid, pad=VIDEO):
    return [START, *[pad] * grid_tokens(grid), END]


def reference(ids, grids, seconds, mrope_time):
    """The rule, one token at a time."""
    out, grids, largest, i = [], list(zip(grids, seconds, strict=True)), -1, 0
    while i < len(ids):
        if ids[i] not in (IMAGE, VIDEO):
            largest += 1
            out.append((largest, largest, largest))
            i += 1
            continue
        (t, h, w), s = grids.pop(0)
        first = largest + 1
        for step in range(t):
            when = {
                "constant": 2 * step,
                "hf_int": 2 * step * int(s),
                "exact": math.floor(2 * step * s),
            }[mrope_time]
            for y in range(h // 2):
                for x in range(w // 2):
                    out.append((first + when, first + y, first + x))
                    largest = max(largest, *out[-1])
                    i += 1
    return np.asarray(out, np.int32).reshape(-1, 3).T


def test_text_alone_counts_up_on_all_axes():
    np.testing.assert_array_equal(positions([5, 6, 7]), [[0, 1, 2]] * 3)
    assert positions([]).shape == (3, 0)


def test_one_video_worked_by_hand():
    # two texts and the vision start take 0 1 2; the video starts at 3; 2 steps of 1 x 2 tokens
    got = positions([1, 2, *media((2, 2, 4)), 9], [(2, 2, 4)])
    #                      text     video        text: 1 + 5, the time of step 1
    np.testing.assert_array_equal(got[0], [0, 1, 2, 3, 3, 5, 5, 6, 7])
    np.testing.assert_array_equal(got[1], [0, 1, 2, 3, 3, 3, 3, 6, 7])
    np.testing.assert_array_equal(got[2], [0, 1, 2, 3, 4, 3, 4, 6, 7])


def test_a_wide_video_continues_after_its_width():
    got = positions([*media((1, 2, 10)), 9], [(1, 2, 10)])
    np.testing.assert_array_equal(got[2], [0, 1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(got[0], [0, 1, 1, 1, 1, 1, 6, 7])


def test_image_then_video_worked_by_hand():
    got = positions([*media((1, 4, 4), IMAGE), *media((3, 2, 2))], [(1, 4, 4), (3, 2, 2)])
    np.testing.assert_array_equal(got[0], [0, 1, 1, 1, 1, 3, 4, 5, 7, 9, 10])
    np.testing.assert_array_equal(got[1], [0, 1, 1, 2, 2, 3, 4, 5, 5, 5, 10])
    np.testing.assert_array_equal(got[2], [0, 1, 2, 1, 2, 3, 4, 5, 5, 5, 10])


@pytest.mark.parametrize(
    ("mrope_time", "seconds", "steps"),
    [
        ("constant", 0.5, [0, 2, 4, 6]),
        ("constant", 3.0, [0, 2, 4, 6]),
        ("hf_int", 0.5, [0, 0, 0, 0]),  # above 2 frames per second time collapses
        ("hf_int", 1.9, [0, 2, 4, 6]),
        ("hf_int", 3.5, [0, 6, 12, 18]),
        ("exact", 0.5, [0, 1, 2, 3]),
        ("exact", 0.7, [0, 1, 2, 4]),
        ("exact", 3.25, [0, 6, 13, 19]),
    ],
)
def test_time_of_a_step(mrope_time, seconds, steps):
    got = grid_positions((4, 2, 2), mrope_time=mrope_time, second_per_grid=seconds)
    np.testing.assert_array_equal(got[0], steps)


def test_exact_time_does_not_fall_below_a_rounded_rate():
    fps = 20 / 300 * 30.0  # 2 but for rounding
    got = grid_positions((50, 2, 2), mrope_time="exact", second_per_grid=2 / math.nextafter(fps, 3))
    np.testing.assert_array_equal(got[0], 2 * np.arange(50))


grids_of_media = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(1, 5),
        st.integers(1, 4).map(lambda n: 2 * n),
        st.integers(1, 4).map(lambda n: 2 * n),
        st.integers(0, 5),
        st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.25, 7.5]),
    ),
    max_size=6,
)


def conversation(parts, lead=2):
    ids, grids, seconds = [1] * lead, [], []
    for is_video, t, h, w, text, s in parts:
        grid = (t if is_video else 1, h, w)
        ids += media(grid, VIDEO if is_video else IMAGE) + [1] * text
        grids.append(grid)
        seconds.append(s if is_video else 0.0)
    return ids, grids, seconds


@given(grids_of_media, st.sampled_from(["constant", "hf_int", "exact"]))
def test_equals_the_plain_loop_reference(parts, mrope_time):
    ids, grids, seconds = conversation(parts)
    got = positions(ids, grids, second_per_grid=seconds, mrope_time=mrope_time)
    np.testing.assert_array_equal(got, reference(ids, grids, seconds, mrope_time))
    assert got.dtype == np.int32


@given(grids_of_media, grids_of_media, st.integers(0, 3))
def test_continuing_equals_the_whole(parts, more, text):
    ids, grids, seconds = conversation(parts)
    new_ids, new_grids, new_seconds = conversation(more, lead=text)
    whole = positions(
        ids + new_ids, grids + new_grids, second_per_grid=seconds + new_seconds, mrope_time="exact"
    )
    head = positions(ids, grids, second_per_grid=seconds, mrope_time="exact")
    tail = positions(
        new_ids,
        new_grids,
        second_per_grid=new_seconds,
        mrope_time="exact",
        start=next_position(head),
    )
    np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), whole)
    assert next_position(tail, start=next_position(head)) == next_position(whole)


def test_equals_transformers_4_57():
    """Recorded from `get_rope_index` of transformers 4.57.6, Qwen2.5-VL, on random conversations."""
    cases = json.loads(pathlib.Path(__file__).with_name("rope_transformers_4_57.json").read_text())
    names = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
    assert sum(len(case["grids"]) for case in cases) >= 10
    for case in cases:
        for mrope_time, want in (("hf_int", case["positions"]), ("constant", case["constant"])):
            got = mrope_positions(
                case["ids"],
                case["grids"],
                **names,
                mrope_time=mrope_time,
                second_per_grid=case["second_per_grid"],
            )
            np.testing.assert_array_equal(got, np.asarray(want).reshape(3, -1))


def test_seconds_may_be_given_for_videos_alone():
    ids, grids, _ = conversation([(False, 1, 2, 2, 1, 0.0), (True, 3, 2, 2, 1, 2.5)])
    short = positions(ids, grids, second_per_grid=[2.5], mrope_time="exact")
    full = positions(ids, grids, second_per_grid=[0.0, 2.5], mrope_time="exact")
    np.testing.assert_array_equal(short, full)


@pytest.mark.parametrize(
    ("ids", "grids", "kwargs", "says"),
    [
        (media((1, 2, 2)), [], {}, "0 grids stand for 0 tokens, but ids hold 1 pads"),
        (media((2, 2, 2)), [(1, 2, 2)], {}, "stand for 1 tokens, but ids hold 2"),
        ([1], [(1, 2, 2)], {}, "stand for 1 tokens, but ids hold 0"),
        ([START, VIDEO, 1, VIDEO], [(2, 2, 2)], {}, "needs 2 equal pads in a row from token 1"),
        ([START, VIDEO, IMAGE], [(2, 2, 2)], {}, "needs 2 equal pads"),
        ([VIDEO], [(1, 2, 2)], {}, "does not follow the vision start"),
        (media((1, 2, 2)), [(1, 3, 2)], {}, "does not merge"),
        (media((1, 2, 2)), [(0, 2, 2)], {}, "does not merge"),
        (media((1, 2, 2)), [(1, 2, 2)], {"mrope_time": "exact"}, "needs second_per_grid"),
        (media((1, 2, 2)), [(1, 2, 2)], {"second_per_grid": [1.0, 2.0]}, "2 values for 1 grids"),
        (media((1, 2, 2)), [(1, 2, 2)], {"second_per_grid": [math.nan]}, "must be finite"),
        (media((1, 2, 2)), [(1, 2, 2)], {"mrope_time": "seconds"}, "unknown mrope_time"),
        ([[1]], [], {}, "ids must be"),
    ],
)
def test_what_does_not_fit_is_refused(ids, grids, kwargs, says):
    with pytest.raises(ValueError, match=says):
        positions(ids, grids, **kwargs)


def test_a_long_context_is_quick():
    grid = (384, 12, 14)  # 16,128 tokens
    ids = [1] * 8000 + media(grid) + [1] * 8000 + media(grid)
    began = time.perf_counter()
    positions(ids, [grid, grid])
    assert time.perf_counter() - began < 0.5
