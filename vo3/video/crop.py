"""VideoCrop: a video that is shown once coarsely and then window by window."""

from __future__ import annotations

import os

from vo3.video import container
from vo3.video.clip import Clip
from vo3.video.errors import VideoError
from vo3.video.policy import CropPolicy
from vo3.video.sampling import check_window, plan_clip


class VideoCrop:
    """Reads the overview and crops of one video."""

    def __init__(self, source, policy: CropPolicy | None = None, *, timeout_s: float = 60.0):
        self.source = source
        self.policy = policy or CropPolicy()
        self.timeout_s = timeout_s
        self._probe = container.probe(os.fspath(source))

    @property
    def fps(self) -> float:
        return self._probe.fps

    @property
    def frames(self) -> int:
        return self._probe.frames

    @property
    def duration(self) -> float:
        return self._probe.frames / self._probe.fps

    @property
    def height(self) -> int:
        return self._probe.height

    @property
    def width(self) -> int:
        return self._probe.width

    def overview(self) -> Clip:
        return self._clip(None, None)

    def crop(self, t0: float, t1: float, strategy: str) -> Clip:
        start, end = check_window((t0, t1))
        start, end = max(start, 0.0), min(end, self.duration)
        if end - start < self.policy.min_seconds - 1e-6:
            raise VideoError(
                "window",
                f"the window [{t0:g}, {t1:g}] covers less than {self.policy.min_seconds:g} s of the video",
                f"choose a longer window inside [0, {self.duration:g}]",
            )
        return self._clip((start, end), strategy)

    def _clip(self, window, strategy) -> Clip:
        plan = plan_clip(
            fps=self.fps,
            frames=self.frames,
            height=self.height,
            width=self.width,
            window=window,
            strategy=strategy,
            policy=self.policy,
        )
        frames, times = container.read_frames(
            os.fspath(self.source), plan.indices / self.fps, self._probe.origin, plan.height, plan.width
        )
        start, end = window or (0.0, self.duration)
        patch = self.policy.token_size // 2
        return Clip(
            frames=frames,
            times=times,
            indices=plan.indices,
            fps=plan.fps,
            start=start,
            end=end,
            grid=(len(frames) // 2, plan.height // patch, plan.width // patch),
            tokens=plan.tokens,
        )
