"""Video files through PyAV: probe, seek, decode."""

from __future__ import annotations

import bisect
import dataclasses
import os
from fractions import Fraction

import av
import numpy as np

from vo3.video.errors import VideoError
from vo3.video.resize import resize


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a stream says of itself: nominal fps, frames on that grid, display size, time of the first frame (seconds)."""

    fps: float
    frames: int
    height: int
    width: int
    origin: float


def probe(path: str) -> Probe:
    with av.open(path) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate)
        duration = float((stream.duration or 0) * stream.time_base) or container.duration / av.time_base
        frames = stream.frames or round(duration * fps)
        origin = float((stream.start_time or 0) * stream.time_base)
        return Probe(fps=fps, frames=frames, height=stream.height, width=stream.width, origin=origin)


def read_frames(path: str, times: np.ndarray, origin: float, height: int, width: int):
    out, shown = [], []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        base = stream.time_base
        container.seek(int((times[0] + origin) / base), stream=stream, backward=True)
        previous, i = None, 0
        for frame in container.decode(stream):
            t = float(frame.pts * base) - origin
            while i < len(times) and previous is not None and t > times[i] + 1e-3:
                _keep(out, shown, *previous, height, width)
                i += 1
            previous = (frame, t)
            if i == len(times):
                break
        while i < len(times):
            _keep(out, shown, *previous, height, width)
            i += 1
    return np.stack(out), np.array(shown)


def _keep(out, shown, frame, t, height, width):
    if shown and shown[-1] == t:
        out.append(out[-1])
    else:
        out.append(resize(frame.to_ndarray(format="rgb24"), height, width))
    shown.append(t)
