"""Where things stand on the timeline."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import viewer_samples
from hypothesis import given
from hypothesis import strategies as st

from vo3.viewer.pictures import clock, rate, window
from vo3.viewer.timeline import MIN_WINDOW, looks_of, place, strip_cells

pytestmark = pytest.mark.quick


def test_windows_stand_at_their_share_of_the_video():
    trajectory, _ = viewer_samples.sample((150.0, 300.0), (599.0, 600.0))
    first, second = looks_of(trajectory)
    assert (first.left, first.right) == (25.0, 50.0)
    # 1 s of 600 is too thin to be seen: it is widened about its middle and kept inside.
    assert second.right - second.left == pytest.approx(MIN_WINDOW)
    assert second.right <= 100.0
    assert (first.color, second.color) == (1, 2)


@given(
    centres=st.lists(st.floats(0, 100), min_size=1, max_size=8),
    gap=st.floats(0, 3),
)
def test_boxes_keep_order_gaps_and_borders(centres, gap):
    width = (100 - gap * (len(centres) - 1)) / len(centres)
    for size in (width, width / 2):
        lefts = place(sorted(centres), size, gap)
        assert min(lefts) >= -1e-9
        assert max(lefts) + size <= 100 + 1e-9
        assert all(b - a >= size + gap - 1e-6 for a, b in itertools.pairwise(lefts))


def test_a_lone_box_stands_under_its_window():
    assert place([50.0], 20.0, 2.0) == [40.0]
    assert place([3.0], 20.0, 2.0) == [0.0]
    assert place([99.0], 20.0, 2.0) == [80.0]


def test_the_strip_prefers_what_was_looked_at():
    overview = viewer_samples.clip(0.0, 600.0, frames=64, size=(28, 56))
    plain = strip_cells(overview, prefer=[], total=600.0)
    assert len(plain) == 8  # 1080 / (60 * 2) = 9, made even
    shown = strip_cells(overview, prefer=[(95.0, 119.0)], total=600.0)
    changed = [i for i, (a, b) in enumerate(zip(plain, shown, strict=True)) if a.frame != b.frame]
    assert changed == [1]  # 107 s lies in the second share of 75 s
    times = overview.times
    assert abs(times[shown[1].frame] - 107.0) == np.abs(times - 107.0).min()
    # A narrow screen keeps one of each pair: the one that was looked at.
    assert [c.narrow for c in plain] == [True, False] * 4
    assert [c.narrow for c in shown] == [False, True] + [True, False] * 3


def test_every_share_shows_a_frame_of_its_own():
    overview = viewer_samples.clip(0.0, 600.0, frames=64, size=(28, 56))
    cells = strip_cells(overview, prefer=[(74.0, 77.0), (76.0, 76.5)], total=600.0)
    for number, cell in enumerate(cells):
        assert number * 75.0 <= overview.times[cell.frame] < (number + 1) * 75.0 + 1e-6


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_strip_of_few_frames(frames):
    overview = viewer_samples.clip(0.0, 3.0, frames=frames, size=(28, 56))
    cells = strip_cells(overview, prefer=[], total=3.0)
    assert 1 <= len(cells) <= frames
    assert any(cell.narrow for cell in cells)


@pytest.mark.parametrize(
    ("seconds", "decimals", "text"),
    [
        (0, 0, "0:00"),
        (7.4, 0, "0:07"),
        (59.96, 1, "1:00.0"),
        (754.25, 1, "12:34.2"),
        (3723, 0, "1:02:03"),
    ],
)
def test_clock(seconds, decimals, text):
    assert clock(seconds, decimals=decimals) == text


def test_windows_and_rates_in_words():
    assert window(754.0, 761.0) == "12:34 \u2013 12:41"
    assert window(83.5, 91.0) == "1:23.5 \u2013 1:31.0"
    assert rate(2.0) == "2 a second"
    assert rate(0.25) == "one every 4\u00a0s"
