"""The right frames at the right times, for every kind of file, and no more decoded than needed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import video_makers
import video_reference

from vo3.video import CropPolicy, VideoCrop
from vo3.video.deadline import Deadline
from vo3.video.decode import read_frames
from vo3.video.resize import resize

# Without a least size: small videos stay small, and the tests quick.
SMALL = CropPolicy(overview_min=0, crop_min=0)
WHOLE = [name for name in (*video_makers.MAKERS, *video_makers.FROM_OTHERS) if name != "8k.mp4"]


def windows(duration: float, seed: str):
    """Windows over the video: both ends, whole, and some at random."""
    rng = random.Random(seed)
    yield 0.0, min(2.0, duration)
    yield max(0.0, duration - 1.5), duration
    yield 0.0, duration + 5
    for _ in range(6):
        start = rng.uniform(0, duration - 1.1)
        yield start, start + rng.uniform(1.1, 4)


@pytest.mark.parametrize("name", WHOLE)
def test_frames_are_those_on_screen(video, name):
    path = video(name)
    crop = VideoCrop(path, SMALL)
    clips = [crop.overview()]
    if crop.duration >= 1.2:
        for start, end in windows(crop.duration, name):
            clips.append(crop.crop(start, end, "medium"))
            assert clips[-1].start == start and clips[-1].end == min(end, crop.duration)
    video_reference.check(path, crop, clips)


@pytest.mark.parametrize("name", WHOLE)
def test_every_frame_in_turn(video, name):
    """At a rate that asks for every index, nothing is skipped, repeated or out of order."""
    path = video(name)
    policy = CropPolicy(crop_fps=1000.0, sample_fps=1000.0, overview_quota=768, overview_min=1)
    crop = VideoCrop(path, policy)
    clip = crop.overview()
    assert (np.diff(clip.times) >= 0).all()
    video_reference.check(path, crop, [clip])


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("gop250.mp4", 28.0), ("plain.mkv", 12.0), ("plain.ts", 12.0), ("live.webm", 6.0), ("mpeg4_b.avi", 12.0),
     ("fragmented.mp4", 8.0), ("delayed.mkv", 12.0), ("delayed.mp4", 28.0), ("one_frame.mp4", 0.04), ("vp8.webm", 6.0)],
)  # fmt: skip
def test_duration(video, name, seconds):
    assert VideoCrop(video(name)).duration == pytest.approx(seconds, abs=0.06)


def test_duration_of_variable_rate_is_where_the_last_frame_ends(video):
    times = video_makers.irregular(200)
    assert VideoCrop(video("vfr.mp4")).duration == pytest.approx(
        (times[-1] - times[0]) / 1e3, abs=2.1
    )


def test_a_webm_without_count_and_duration_is_measured(video):
    crop = VideoCrop(video("live.webm"))
    assert crop._probe.measured
    assert (crop.frames, crop.fps) == (150, pytest.approx(25, abs=0.05))
    assert not VideoCrop(video("vp8.webm"))._probe.measured


def test_a_bare_stream_is_as_long_as_its_frames(tmp_path):
    """FFmpeg guesses the length of MPEG-1 from a nominal bit rate, here one frame, and makes up stamps with a hole."""
    path, joined = tmp_path / "bare.m1v", tmp_path / "joined.m1v"
    video_makers.write(path, codec="mpeg1video", frames=300, gop=15, format="mpeg1video")
    joined.write_bytes(path.read_bytes() * 2)
    crop, twice = VideoCrop(path, SMALL), VideoCrop(joined, SMALL)
    assert (crop.frames, crop.fps) == (300, 25) and crop._probe.measured
    assert (twice.frames, twice.fps) == (600, 25)
    for clip in (crop.overview(), twice.crop(13, 23, "medium")):
        assert clip.times == pytest.approx(clip.indices / 25)
        for index, frame in zip(clip.indices % 300, clip.frames, strict=True):
            near = [video_makers.picture(k) for k in range(max(0, index - 2), index + 3)]
            off = [np.abs(resize(p, *frame.shape[:2]).astype(int) - frame).mean() for p in near]
            assert int(np.argmin(off)) == min(index, 2), index


def test_a_program_stream_keeps_its_last_frames(tmp_path):
    path = tmp_path / "disc.mpg"
    options = {"codec": "mpeg2video", "gop": 15, "options": {"bf": "2"}}
    video_makers.write(path, frames=300, format="mpeg", **options)
    crop = VideoCrop(path)
    assert (crop.frames, crop.fps, crop.duration) == (300, 25, 12)
    assert crop.crop(10, 12, "coarse").times[-1] == pytest.approx(11.92, abs=0.05)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_orientation(tmp_path, degrees, mirror):
    """All eight ways a camera can be held: the picture comes out as a player shows it."""

    def corner(i, height, width):
        image = np.zeros((height, width, 3), np.uint8)
        image[: height // 2, : width // 2] = (255, 0, 0)
        image[: height // 2, width // 2 :] = (0, 255, 0)
        image[height // 2 :, : width // 2] = (0, 0, 255)
        return image

    path = tmp_path / "turned.mp4"
    video_makers.write(
        path, frames=50, height=64, width=128, image=corner, orientation=(degrees, mirror, False)
    )
    wanted = np.rot90(corner(0, 64, 128), degrees // 90)
    if mirror:
        wanted = wanted[:, ::-1]
    crop = VideoCrop(path)
    assert (crop.height, crop.width) == wanted.shape[:2]
    clip = crop.crop(0.5, 1.9, "coarse")
    h, w = clip.height, clip.width
    for y, x in ((0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8)):
        shown = clip.frames[0][int(y * h), int(x * w)].astype(int)
        truth = wanted[int(y * wanted.shape[0]), int(x * wanted.shape[1])].astype(int)
        assert np.abs(shown - truth).max() < 60, (y, x)


def test_an_edit_list_hides_frames(video):
    """The copy from 3.3 s on starts with the frame at 3.3 s, though the file holds those from the key frame on."""
    whole, cut = VideoCrop(video("gop12.mp4")), VideoCrop(video("edit_list.mp4"))
    assert cut.duration == pytest.approx(28 - 3.3, abs=0.1)
    first = cut.overview().frames[0]
    at = round(3.3 * 25)
    candidates = [video_makers.picture(at + k) for k in range(-12, 13)]
    differences = [
        np.abs(resize(c, *first.shape[:2]).astype(int) - first).mean() for c in candidates
    ]
    assert abs(int(np.argmin(differences)) - 12) <= 1
    assert whole.frames - cut.frames == pytest.approx(3.3 * 25, abs=3)


def read(path, seconds):
    crop = VideoCrop(path)
    return crop, read_frames(
        crop._source, crop._probe, np.asarray(seconds, float), height=28, width=28, deadline=Deadline(60, "test")
    )  # fmt: skip


def test_a_window_decodes_no_more_than_itself_and_one_gop(video):
    rng = random.Random(0)
    for _ in range(20):
        start = rng.uniform(0, 23)
        _, got = read(video("gop250.mp4"), np.arange(start, start + 5, 0.5))
        before = (start * 25) % 250
        assert got.decoded <= before + 5 * 25 + 4
        assert got.seeks <= 2


def test_far_apart_frames_do_not_decode_the_file(video):
    _, got = read(video("gop12.mp4"), np.arange(0, 28, 2.0))
    assert got.seeks >= 12
    assert got.decoded <= 14 * 13
    _, got = read(video("mjpeg.avi"), np.arange(0, 4, 1.0))
    assert got.decoded <= 12


def test_far_apart_frames_without_an_index(video):
    """Key frames are found by trying; what is tried in vain stays within a small factor of decoding everything."""
    _, got = read(video("plain.ts"), np.arange(0, 12, 5.0))
    assert got.decoded < 200
    _, got = read(video("live.webm"), np.arange(0, 6, 3.0))
    assert got.decoded <= 300


def test_close_frames_are_decoded_in_one_run(video):
    _, got = read(video("gop12.mp4"), np.arange(0, 28, 0.08))
    assert got.seeks == 0
    assert got.decoded <= 700


def test_frames_that_nothing_needs_are_left_out(video):
    """Two of three frames here are B-frames that no other refers to; those off the screen are not decoded."""
    _, got = read(video("gop250.mp4"), np.arange(0, 28, 0.5))
    assert got.decoded < 0.75 * 700
    _, every = read(video("gop250.mp4"), np.arange(700) / 25)
    assert every.decoded == 700


def test_the_same_frame_twice_is_decoded_once(video):
    _, got = read(video("gop250.mp4"), [1.0] * 6)
    assert got.decoded <= 40
    assert (got.frames == got.frames[0]).all() and (got.times == 1.0).all()


def test_8k(video):
    clip = VideoCrop(video("8k.mp4")).overview()
    assert clip.tokens <= 16384 and len(clip.frames) == 2
    wanted = video_makers.large_picture(0, 4320, 7680)
    assert np.abs(resize(wanted, clip.height, clip.width).astype(int) - clip.frames[0]).mean() < 8


def test_a_clip_says_what_it_is(video):
    clip = VideoCrop(video("gop250.mp4")).crop(10, 14, "fine")
    assert clip.frames.dtype == np.uint8 and clip.frames.shape[1:] == (clip.height, clip.width, 3)
    assert clip.tokens == clip.grid[0] * clip.grid[1] * clip.grid[2] // 4
    assert len(clip.times) == len(clip.indices) == len(clip.frames) == 2 * clip.grid[0]
    observation = clip.observation(3, "fine")
    assert (observation.index, observation.strategy, observation.media) == (3, "fine", "video")
    assert observation.times == tuple(clip.times) and observation.grid == clip.grid
    assert (observation.start, observation.end, observation.fps) == (10, 14, clip.fps)
