"""Which frames of a video are shown, and at what size: pure arithmetic on the nominal grid, no decoding.

The nominal grid numbers frames 0 .. frames - 1 at a constant `fps`; frame number i stands for the time i / fps.
Formulas: Video-o3's published stages (paper arXiv 2601.23224 and its training, RL and evaluation settings).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from vo3.trajectory import STRATEGIES
from vo3.video.errors import VideoError
from vo3.video.policy import CropPolicy

OLD_QUOTA = "old_quota"


@dataclasses.dataclass(frozen=True)
class ClipPlan:
    """What to decode for one clip.

    Attributes:
      indices: int64 [T], numbers on the nominal grid, not decreasing; T is even where two share a patch.
      height, width: pixels of the frames to show, multiples of the policy's token size.
      tokens: tokens of the whole clip.
      fps: frames shown per second of video.
    """

    indices: np.ndarray
    height: int
    width: int
    tokens: int
    fps: float


def plan_clip(
    *,
    fps: float,
    frames: int,
    height: int,
    width: int,
    window: tuple[float, float] | None = None,
    strategy: str | None = None,
    policy: CropPolicy | None = None,
    clips: int = 1,
    rate: float | None = None,
) -> ClipPlan:
    """Plans the overview (`window` None) or a crop.

    Args:
      fps: average frames per second of the stream.
      frames: number of frames, or round(duration * fps) where the container does not tell.
      height, width: pixels of the video as displayed (after rotation).
      window: seconds (t0, t1) of the whole video, or None for all of it.
      strategy: "coarse", "medium", "fine"; None gives the overview's whole quota, "old_quota" that quota divided by `clips`.
      policy: the numbers; `CropPolicy()` when None.
      clips: how many clips share the overview's quota under "old_quota".
      rate: frames per second of a crop; None: the policy's.

    Returns:
      The plan.

    Raises:
      VideoError: kind "window", "strategy" or "aspect".
      ValueError: `fps`, `frames`, `height`, `width` or `clips` out of range (a caller's mistake).
    """
    policy = policy or CropPolicy()
    if not (
        math.isfinite(fps) and fps > 0 and frames >= 1 and height >= 1 and width >= 1 and clips >= 1
    ):
        raise ValueError(
            f"not a video's shape: fps {fps}, frames {frames}, height {height}, width {width}, clips {clips}"
        )
    total, minimum = _quota(policy, strategy, whole=window is None, clips=clips)
    indices, sample_fps = _indices(fps, frames, window, policy, rate)
    together = policy.frames_per_patch
    pairs = len(indices) // together
    upper = together * total / len(indices) if not policy.floor_patch_quota else total // pairs
    upper = min(upper, policy.patch_max)
    if upper < 1:
        raise ValueError(
            f"a quota of {total} tokens cannot hold {len(indices)} frames; lower the frame limit"
        )
    lower = min(max(minimum // pairs, policy.patch_min), upper)
    size = policy.token_size
    height, width = fit(
        height, width, lower=lower, upper=upper, token_size=size, max_aspect=policy.max_aspect
    )
    tokens = pairs * (height // size) * (width // size)
    return ClipPlan(indices=indices, height=height, width=width, tokens=tokens, fps=sample_fps)


def _quota(policy: CropPolicy, strategy: str | None, *, whole: bool, clips: int) -> tuple[int, int]:
    minimum = policy.overview_min if whole else policy.crop_min
    if strategy is None:
        return policy.overview_quota, minimum
    if strategy == OLD_QUOTA:
        return policy.overview_quota // clips, minimum
    if strategy not in STRATEGIES:
        raise VideoError(
            "strategy",
            f"unknown sampling strategy {strategy!r}",
            f"use one of {', '.join(STRATEGIES)}",
        )
    return policy.quota(strategy), minimum


def check_window(window: tuple[float, float]) -> tuple[float, float]:
    """The window as two finite floats, in order.

    Raises:
      VideoError: kind "window".
    """
    try:
        start, end = (float(t) for t in window)
    except (TypeError, ValueError, OverflowError):
        raise VideoError(
            "window", f"the window {window!r} is not two numbers", "give two times in seconds"
        ) from None
    if not (math.isfinite(start) and math.isfinite(end)):
        raise VideoError(
            "window", f"the window [{start}, {end}] is not finite", "give two times in seconds"
        )
    if start >= end:
        raise VideoError(
            "window",
            f"the window [{start:g}, {end:g}] ends before it starts",
            "give the start first, then the end",
        )
    return start, end


def _indices(
    fps: float,
    frames: int,
    window: tuple[float, float] | None,
    policy: CropPolicy,
    rate: float | None,
) -> tuple[np.ndarray, float]:
    whole = window is None
    rule = policy.overview_rule if whole else policy.crop_rule
    rate = policy.sample_fps if whole else rate or policy.crop_fps
    most = policy.max_frames if whole else policy.max_crop_frames
    least = policy.min_frames if whole else policy.min_crop_frames
    seconds = frames / fps
    first, last = 0, frames - 1
    if window is not None:
        start, end = check_window(window)
        start, end = max(start, 0.0), min(end, seconds)
        first = int(start * fps) if rule == "truncate" else math.ceil(start * fps)
        last = min(math.floor(end * fps), frames - 1)
        if first >= last:
            raise VideoError(
                "window",
                f"the window [{window[0]:g}, {window[1]:g}] holds no two frames of a video of {seconds:g} s at {fps:g} fps",
                f"choose a longer window inside [0, {seconds:g}]",
            )
        seconds = end - start
    count = last - first + 1
    if rule == "truncate":
        n = max(1, min(math.floor(seconds * rate), most, count))
        indices = np.linspace(first, last, n).astype(np.int64)
        if n % policy.frames_per_patch:
            indices = np.append(indices, indices[-1])
        return indices, n / count * fps
    n = max(2, _even(min(max(count / fps * rate, least), most, count)))
    # A video of fewer frames than the rate asks for is shown frame by frame, as under "round": steps of fps / rate, less than
    # one frame each, would repeat its first frames and never reach its end.
    if rule == "stride" and not (fps < rate and count <= most):
        wanted = math.floor(count / fps * rate)
        steps = np.arange(n, dtype=np.float64) * fps / rate
        if wanted > most:
            steps = np.arange(1, n + 1, dtype=np.float64) * count / (most + 1)
        return np.minimum(first + steps.astype(np.int64), last), n / count * fps
    return np.rint(linspace32(first, last, n)).astype(np.int64), n / count * fps


def _even(value: float) -> int:
    return math.floor(value / 2) * 2


def linspace32(first: float, last: float, n: int) -> np.ndarray:
    """n >= 2 evenly spaced float32 values, computed from both ends to the middle.

    Bitwise torch.linspace on processors with fused multiply-add (all since 2013): the step is float32, each value is
    rounded once. The float64 product of two float32 numbers is exact, which stands in for the fused operation.
    """
    start, end = np.float32(first), np.float32(last)
    step = np.float64((end - start) / np.float32(n - 1))
    i = np.arange(n)
    up = np.float64(start) + step * i
    down = np.float64(end) - step * (n - 1 - i)
    return np.where(i < n // 2, up, down).astype(np.float32)


def check_aspect(height: int, width: int, most: float, name: str = "the video") -> None:
    """Raises VideoError, kind "aspect", where one side is more than `most` times the other."""
    if max(height, width) / min(height, width) > most:
        raise VideoError(
            "aspect",
            f"{name}: in frames of {width} x {height} pixels one side is more than {most:g} times the other",
            "crop or pad the video to a less extreme shape",
        )


def fit(
    height: int,
    width: int,
    *,
    lower: float,
    upper: float,
    token_size: int = 28,
    max_aspect: float = 200.0,
) -> tuple[int, int]:
    """The size, in multiples of `token_size`, that keeps the shape and holds `lower` to `upper` tokens.

    The area never exceeds `upper` tokens: where rounding up or the least side would, the other side is floored.

    Args:
      height, width: pixels of the original.
      lower, upper: least and most tokens; 1 <= upper, lower <= upper.
      token_size: pixels per side of one token.
      max_aspect: the longer side over the shorter one, at most.

    Returns:
      height, width in pixels.

    Raises:
      VideoError: kind "aspect".
    """
    check_aspect(height, width, max_aspect)
    unit = token_size
    most, least = upper * unit * unit, lower * unit * unit
    h, w = (max(unit, round(side / unit) * unit) for side in (height, width))
    if h * w > most:
        scale = math.sqrt(height * width / most)
        h, w = (max(unit, math.floor(side / scale / unit) * unit) for side in (height, width))
    elif h * w < least:
        scale = math.sqrt(least / (height * width))
        exact = height * scale / unit, width * scale / unit
        h, w = (math.ceil(side) * unit for side in exact)
        if h * w > most:
            h, w = _floored(exact, most, unit)
    if h * w > most:  # one side was raised to one token: the other takes what is left
        room = max(unit, math.floor(most / (unit * unit)) * unit)
        h, w = min(h, room), min(w, room)
    return h, w


def _floored(exact: tuple[float, float], most: float, unit: int) -> tuple[int, int]:
    """Rounds as many sides up as the quota allows; the minimum yields."""
    (h0, h1), (w0, w1) = (
        (max(1, math.floor(side)) * unit, math.ceil(side) * unit) for side in exact
    )
    fitting = [(h, w) for h, w in ((h1, w0), (h0, w1)) if h * w <= most]
    return max(fitting, key=lambda size: size[0] * size[1], default=(h0, w0))
