"""Every kind of bad or odd video through `vo3 ask`: one line that names it with a remedy and exit code 2, or an answer; never a hang."""

from __future__ import annotations

import functools
import pathlib
import time

import av
import numpy as np
import pytest
import rollout_fakes as fakes
import video_makers

from vo3 import cli
from vo3.trajectory import Trajectory

SHARES = [0.001, 0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]  # a missing tail of a second is held


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """A function: `vo3 ask` on a tiny random checkpoint, whose model says the given turns."""
    checkpoint = fakes.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
    data = tmp_path_factory.mktemp("out") / "trajectory.json"

    def run(path, *turns: str) -> tuple[int, Trajectory | None]:
        data.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vo3.agent.Engine", functools.partial(fakes.ScriptedEngine, script=turns))
            began = time.monotonic()
            code = cli.main(
                ["ask", str(path), "Why?", "--checkpoint", str(checkpoint), "--json", str(data)]
            )
            assert time.monotonic() - began < 300
        return code, Trajectory.loads(data.read_text()) if data.exists() else None

    return run


def refused(ask, capsys, path: pathlib.Path, says: str) -> None:
    code, trajectory = ask(path)
    error = capsys.readouterr().err
    assert (code, trajectory) == (2, None)
    assert error.startswith("vo3: ") and error.count("\n") == 1
    assert str(path) in error and says in error
    assert error.rstrip().endswith(")"), f"no remedy: {error}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The same noisy pictures with the index at the end and at the beginning."""

    def noise(i: int, height: int, width: int) -> np.ndarray:
        return np.random.default_rng(i).integers(0, 256, (height, width, 3)).astype(np.uint8)

    files = {}
    for name, muxer in (("end", {}), ("start", {"movflags": "faststart"})):
        path = tmp_path_factory.mktemp("whole") / "whole.mp4"
        video_makers.write(path, frames=200, gop=50, muxer=muxer, image=noise)
        files[name] = path.read_bytes()
    return files


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("index", ["end", "start"])
def test_truncated(ask, whole, tmp_path, capsys, index, share):
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[index][: int(len(whole[index]) * share)])
    if index == "end" or share < 0.02:
        says = "not a video"
    else:
        says = "nothing decodes" if share < 0.1 else "ends at"
    refused(ask, capsys, path, says)


def test_audio_only(ask, tmp_path, capsys):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        for i in range(30):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.rate, frame.pts = 16000, 1024 * i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    refused(ask, capsys, path, "only audio")


def test_aspect_ratio(ask, tmp_path, capsys):
    path = tmp_path / "wide.mkv"
    video_makers.write(path, codec="ffv1", frames=30, height=4, width=1004, pix_fmt="bgr0")
    refused(ask, capsys, path, "1004 x 4")


@pytest.mark.parametrize("name", ["one_frame.mp4", "one_pixel.mkv", "8k.mp4", "live.webm"])
def test_odd_videos_are_answered(ask, video, name):
    """One frame, one pixel, 8K, a stream of unknown duration."""
    code, trajectory = ask(video(name), fakes.answer("yes"))
    assert (code, trajectory.answer) == (0, "yes")
    assert trajectory.observations[0].tokens <= fakes.CROP.overview_quota


def test_windows_that_cannot_be_shown_are_told_to_the_model(ask, video):
    bad = [(9, 3), (-9, -3), ("NaN", 9), (3, "Infinity"), (100, 120), (3, 3.5)]
    calls = [fakes.call(*window) for window in bad]
    code, trajectory = ask(video("gop12.mp4"), *calls, fakes.answer("yes"))
    assert (code, trajectory.answer) == (0, "yes")
    errors = [turn.error for turn in trajectory.turns if turn.kind == "error"]
    assert len(errors) == len(bad) and all(errors)
    assert len(trajectory.observations) == 1
