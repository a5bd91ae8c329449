"""A file of trajectories as a folder of pages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import rollout_fakes
import viewer_samples

from vo3.trajectory import Task, Trajectory, Turn
from vo3.video import CropPolicy, VideoCrop, VideoError
from vo3.viewer import gallery


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> str:
    return rollout_fakes.write_mp4(tmp_path_factory.mktemp("video") / "blocks.mp4")


@pytest.fixture(scope="module")
def asked(mp4) -> Trajectory:
    """A trajectory on a real file, with the clips' policy long forgotten."""
    crop = VideoCrop(mp4, rollout_fakes.CROP)
    turns = (
        Turn("question", "<video>", observations=(crop.overview().observation(0),)),
        Turn(
            "observation",
            "<video>",
            observations=(crop.crop(3.0, 9.0, "fine").observation(1, "fine"),),
        ),
        Turn("answer", "<answer>x</answer>", answer="x"),
    )
    return Trajectory(Task("t", mp4, "What?"), turns, "answered", "x")


def test_the_same_frames_are_shown_again(mp4, asked):
    crop = VideoCrop(mp4, rollout_fakes.CROP)
    clips = gallery.clips_of(asked)
    for again, first in ((clips[0], crop.overview()), (clips[1], crop.crop(3.0, 9.0, "fine"))):
        np.testing.assert_array_equal(again.frames, first.frames)
        np.testing.assert_array_equal(again.times, first.times)
        assert dataclasses.replace(again, frames=0, times=0, indices=0) == dataclasses.replace(
            first, frames=0, times=0, indices=0
        )


def test_another_video_is_refused(asked, tmp_path):
    short = rollout_fakes.write_mp4(tmp_path / "short.mp4", seconds=2)
    other = dataclasses.replace(asked, task=dataclasses.replace(asked.task, video=short))
    with pytest.raises(VideoError, match="does not have"):
        gallery.clips_of(other)


def test_relative_paths_start_from_the_root(asked, mp4):
    folder, name = mp4.rsplit("/", 1)
    relative = dataclasses.replace(asked, task=dataclasses.replace(asked.task, video=name))
    assert len(gallery.clips_of(relative, videos=folder)) == 2
    with pytest.raises(VideoError):
        gallery.clips_of(relative, videos=folder + "/elsewhere")
    for whole in (mp4, f"file://{mp4}"):
        named = dataclasses.replace(asked, task=dataclasses.replace(asked.task, video=whole))
        assert len(gallery.clips_of(named, videos="/elsewhere")) == 2


def test_a_broken_line_costs_that_line_and_is_named(asked, tmp_path):
    sample, _ = viewer_samples.sample((95.0, 119.0))
    lines = [asked.dumps(), "{", "", '{"schema_version": 99}', "[1]", sample.dumps()]
    source = tmp_path / "many.jsonl"
    source.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    result = gallery.write(source, tmp_path / "out")
    assert (result.pages, result.shown, result.broken) == (2, 2, 4)
    assert [p.split(": ")[0].rsplit(" ", 1)[1] for p in result.problems] == [
        "2",
        "4",
        "5",
        "6",
        "7",
    ]
    assert "shown without frames" in result.problems[-2]  # its video does not exist
    index = (tmp_path / "out" / "index.html").read_text()
    assert '"page":"00001.html"' in index
    assert '"page":"00002.html"' in index
    first = (tmp_path / "out" / "00001.html").read_text()
    assert first.count("data:image/jpeg") > 4
    assert "data:image/jpeg" not in (tmp_path / "out" / "00002.html").read_text()


def test_limit(asked, tmp_path):
    source = tmp_path / "many.jsonl"
    source.write_text((asked.dumps() + "\n") * 5)
    assert gallery.write(source, tmp_path / "out", limit=2, frames=False).pages == 2
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_frame_rate_of_the_policy_does_not_matter(mp4):
    crop = VideoCrop(mp4, CropPolicy(recipe="eval"))
    clip = crop.crop(2.0, 5.0, "medium")
    again = VideoCrop(mp4).show(clip.observation(1, "medium"))
    np.testing.assert_array_equal(again.frames, clip.frames)
