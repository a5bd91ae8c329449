"""What a video shows and when, found the slow way: everything decoded by PyAV in order, times from ffprobe."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
from collections.abc import Iterable

import av
import numpy as np
import pytest

from vo3.video import Clip, VideoCrop
from vo3.video.resize import resize


def times_of(path: pathlib.Path) -> np.ndarray:
    """Seconds from the first frame at which each frame is shown, float64 [N]."""
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed (apt install ffmpeg)")
    out = subprocess.run(
        ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "frame=best_effort_timestamp_time", "-of", "csv=p=0", str(path)],
        capture_output=True, text=True, check=True, timeout=300,
    ).stdout.split()  # fmt: skip
    times = np.array([np.nan if "N/A" in line else float(line.strip(",")) for line in out])
    if np.isnan(times).all():
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            times = np.arange(len(times)) / float(stream.average_rate or stream.guessed_rate)
    for i in np.flatnonzero(np.isnan(times)):  # AVI's last frames
        times[i] = 2 * times[i - 1] - times[i - 2]
    return times - times[0]


def check(path: pathlib.Path, crop: VideoCrop, clips: Iterable[Clip], tick: float = 1e-3) -> None:
    """Each clip shows, at each index, the frame on screen at index / fps, and says when that frame begins."""
    times = times_of(path)
    slack = min(1.01 * tick, 0.25 / crop.fps)
    wanted: dict[int, list[tuple[Clip, int]]] = {}
    for clip in clips:
        for i, index in enumerate(clip.indices.tolist()):
            at = max(0, int(np.searchsorted(times, index / crop.fps + slack, side="right")) - 1)
            assert clip.times[i] == pytest.approx(times[at], abs=2e-3), (i, index / crop.fps)
            wanted.setdefault(at, []).append((clip, i))
    assert wanted
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        for number, frame in enumerate(container.decode(stream)):
            pairs = wanted.pop(number, ())
            if not pairs:
                continue
            image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            assert image.shape[:2] == (crop.height, crop.width)
            for clip, i in pairs:
                # Resizing, then turning, differs from the opposite order by rounding.
                truth = resize(image, clip.height, clip.width).astype(int)
                differ = np.abs(truth - clip.frames[i]).mean()
                assert differ < 0.5, (
                    f"frame {i} is not the one on screen: mean difference {differ:.1f}"
                )
    assert not wanted, f"the full decode ends before frames {sorted(wanted)}"
