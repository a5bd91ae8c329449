"""What a video shows and when, found the slow way: everything decoded by PyAV in order, times from ffprobe."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import subprocess

import av
import numpy as np
import pytest

from vo3.video import Clip
from vo3.video.resize import resize


@dataclasses.dataclass(frozen=True)
class Reference:
    """Every frame of a video, upright: times float64 [N] from the first one, RGB images."""

    times: np.ndarray
    images: list[np.ndarray]

    def on_screen(self, second: float, slack: float) -> int:
        """Which frame is shown at a time."""
        return max(0, int(np.searchsorted(self.times, second + slack, side="right")) - 1)


def decode_all(path: pathlib.Path) -> Reference:
    """Decodes all of it on one thread."""
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed (apt install ffmpeg)")
    out = subprocess.run(
        ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "frame=best_effort_timestamp_time", "-of", "csv=p=0", str(path)],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout.split()  # fmt: skip
    times = np.array([np.nan if "N/A" in line else float(line.strip(",")) for line in out])
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        images = [
            np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            for frame in container.decode(stream)
        ]
    if np.isnan(times).all():
        times = np.arange(len(times)) / rate
    for i in np.flatnonzero(np.isnan(times)):  # AVI's last frames
        times[i] = 2 * times[i - 1] - times[i - 2]
    # FFmpeg's own program may put a last frame less or more out of a stream that ends oddly.
    count = min(len(times), len(images))
    assert abs(len(times) - len(images)) <= 1, (len(times), len(images))
    return Reference(times[:count] - times[0], images[:count])


def check(clip: Clip, reference: Reference, fps: float, tick: float = 1e-3) -> None:
    """The clip shows, at each index, the frame on screen at index / fps, and says when that frame begins."""
    slack = min(1.01 * tick, 0.25 / fps)
    for i, index in enumerate(clip.indices.tolist()):
        at = reference.on_screen(index / fps, slack)
        assert clip.times[i] == pytest.approx(reference.times[at], abs=2e-3), (i, index / fps)
        # Resizing, then turning, differs from the opposite order by rounding.
        wanted = resize(reference.images[at], clip.height, clip.width)
        differ = np.abs(wanted.astype(int) - clip.frames[i]).mean()
        assert differ < 0.5, (
            f"frame {i} (index {index}) is not the one on screen: mean difference {differ:.1f}"
        )
