"""One folder of test videos for the whole session."""

from __future__ import annotations

import pathlib
import shutil

import pytest
import video_makers


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="session")
def video(video_folder):
    """A function: the path of the test video with this name, made on first use."""

    def get(name: str) -> pathlib.Path:
        if name in video_makers.FROM_OTHERS:
            if shutil.which("ffmpeg") is None:
                pytest.skip(
                    "ffmpeg is not installed (apt install ffmpeg); it alone can make this file"
                )
            for source in ("gop12.mp4", "plain.mkv"):
                video_makers.make(video_folder, source)
        return video_makers.make(video_folder, name)

    return get
