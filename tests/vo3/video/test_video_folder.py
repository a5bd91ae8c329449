"""Videos that come as folders or lists of extracted frames."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import video_makers
from PIL import Image

from vo3.video import VideoCrop, VideoError
from vo3.video.resize import resize


@pytest.fixture
def folder(tmp_path):
    """41 frames at 4 per second, numbered without leading zeros, among other files."""
    path = tmp_path / "frames"
    path.mkdir()
    for i in range(41):
        Image.fromarray(video_makers.picture(i)).save(path / f"frame_{i + 1}.png")
    (path / "notes.txt").write_text("not a frame")
    return path


def test_a_folder(folder):
    crop = VideoCrop(folder, frame_fps=4.0)
    assert (crop.fps, crop.frames, crop.duration) == (4.0, 41, 10.25)
    assert (crop.height, crop.width) == (video_makers.HEIGHT, video_makers.WIDTH)
    clip = crop.overview()
    assert len(clip.frames) == 20
    assert (clip.times == clip.indices / 4.0).all()
    for frame, index in zip(clip.frames, clip.indices, strict=True):
        assert (frame == resize(video_makers.picture(index), clip.height, clip.width)).all()
    clip = crop.crop(2.1, 5.9, "fine")
    assert (clip.indices[0], clip.indices[-1]) == (9, 23)


def test_a_folder_may_be_written_as_people_write_it(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    for name in ("~/frames", f"file://{folder}", folder):
        crop = VideoCrop(name, frame_fps=4.0)
        assert (crop.frames, crop.name) == (41, str(folder))
        with pytest.raises(VideoError, match=r"is a directory.*frame_fps") as caught:
            VideoCrop(name)
        assert caught.value.kind == "directory"
    assert VideoCrop(["~/frames/frame_1.png", f"file://{folder}/frame_2.png"], frame_fps=4.0).frames == 2  # fmt: skip
    with pytest.raises(VideoError, match="3 is not a path"):
        VideoCrop([3], frame_fps=4.0)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch, number):
    """Permissions and stale mounts too: whoever goes on to the next video catches VideoError alone."""

    def listdir(path):
        raise OSError(number, os.strerror(number))

    # However it is listed: pathlib's ways differ between versions.
    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.setattr(os, "scandir", listdir)
    with pytest.raises(VideoError, match=f"{folder} cannot be read") as caught:
        VideoCrop(folder, frame_fps=4.0)
    assert caught.value.kind == "missing" and isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(PermissionError(errno.EACCES, "no"), "missing"), (OSError(errno.EIO, "no"), "read"), (RuntimeError("429"), "read")],
)  # fmt: skip
def test_a_frame_that_cannot_be_read_is_named(folder, monkeypatch, error, kind):
    crop = VideoCrop(folder, frame_fps=4.0)

    def read_bytes(path):
        raise error

    monkeypatch.setattr(type(crop._files._files[0]), "read_bytes", read_bytes)
    with pytest.raises(VideoError, match=r"frame_1\.png") as caught:
        crop.overview()
    assert caught.value.kind == kind


def test_a_list(folder):
    files = [folder / f"frame_{i + 1}.png" for i in (3, 1, 4, 1, 5, 9)]
    clip = VideoCrop(files, frame_fps=2.0).overview()
    assert clip.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert (clip.frames[1] == clip.frames[3]).all() and (clip.frames[0] != clip.frames[1]).any()
    assert len(VideoCrop(tuple(str(f) for f in files), frame_fps=2.0).overview().frames) == 6


def test_frames_of_other_sizes_and_colours(tmp_path):
    Image.new("RGB", (64, 32), "red").save(tmp_path / "0.png")
    Image.new("L", (32, 32), 128).save(tmp_path / "1.png")
    Image.new("RGBA", (64, 32), (0, 0, 255, 255)).save(tmp_path / "2.png")
    Image.new("P", (64, 32)).save(tmp_path / "3.png")
    clip = VideoCrop(tmp_path, frame_fps=1.0).overview()
    assert clip.frames.shape[0] == 4
    assert clip.frames[[0, 1, 2], 5, 5].tolist() == [[255, 0, 0], [128, 128, 128], [0, 0, 255]]


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), "4"])
def test_the_rate_must_be_one(folder, fps):
    with pytest.raises(VideoError, match="frame_fps") as caught:
        VideoCrop(folder, frame_fps=fps)
    assert caught.value.kind == "source"


def test_without_a_rate(folder):
    with pytest.raises(VideoError, match="frame_fps") as caught:
        VideoCrop([folder / "frame_1.png"])
    assert caught.value.kind == "source"


def test_an_empty_folder(tmp_path):
    with pytest.raises(VideoError, match="no frames") as caught:
        VideoCrop(tmp_path, frame_fps=4.0)
    assert caught.value.kind == "empty"
    with pytest.raises(VideoError) as caught:
        VideoCrop([], frame_fps=4.0)
    assert caught.value.kind == "empty"


def test_a_broken_frame_is_named(folder):
    (folder / "frame_20.png").write_bytes(b"\x89PNG broken")
    crop = VideoCrop(folder, frame_fps=4.0)
    assert len(crop.crop(0, 3, "coarse").frames) == 6
    with pytest.raises(VideoError, match="frame_20") as caught:
        crop.crop(4, 6, "coarse")
    assert caught.value.kind == "corrupt"


def test_a_missing_frame_is_named(folder):
    files = [folder / f"frame_{i}.png" for i in range(30, 50)]
    with pytest.raises(VideoError, match=r"frame_4\d") as caught:
        VideoCrop(files, frame_fps=4.0).overview()
    assert caught.value.kind == "missing"


def test_an_extreme_shape_is_refused(tmp_path):
    Image.fromarray(np.zeros((4, 1000, 3), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(VideoError, match="1000 x 4") as caught:
        VideoCrop(tmp_path, frame_fps=4.0)
    assert caught.value.kind == "aspect"


def test_a_rate_for_a_video_file_is_not_used(video):
    assert VideoCrop(video("gop12.mp4"), frame_fps=4.0).fps == 25
