"""VideoCrop: a video that is shown once coarsely and then window by window."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from vo3.trajectory import Observation
from vo3.video import container
from vo3.video.clip import Clip
from vo3.video.deadline import Deadline, within
from vo3.video.decode import Decoded, read_frames
from vo3.video.errors import VideoError
from vo3.video.folder import FrameFiles, is_folder
from vo3.video.pages import trim
from vo3.video.policy import CropPolicy
from vo3.video.sampling import ClipPlan, check_aspect, check_window, plan_clip
from vo3.video.source import Source, directory_error, make_source, plain_path


class VideoCrop:
    """Reads the overview and crops of one video.

    Nothing is kept between calls but the header's figures: every call opens the file, seeks to the key frame of its
    window and decodes no further than needed. Calls may come from several threads (those on one file object take
    turns). Times are seconds from the video's first frame.

    Attributes:
      policy: what is shown.
      timeout_s: time limit of each call, in seconds; it holds even where a read never returns.
      listed: paths of a list of frames, in order; None for anything else.
      fps: average frames per second; frames: number of frames on that nominal grid; height, width: pixels as displayed.
    """

    def __init__(
        self,
        source: Any,
        policy: CropPolicy | None = None,
        *,
        frame_fps: float | None = None,
        timeout_s: float = 120.0,
    ):
        """Opens the video and reads its header and first frame.

        Args:
          source: a path (gs:// too), bytes, a seekable binary file object; a folder or a list of frame files.
          policy: what is shown; `CropPolicy()` when None.
          frame_fps: the rate of extraction, for a folder or list of frames; not used for video files.
          timeout_s: time limit of this and of every later call.

        Raises:
          VideoError: the video cannot be used; `kind` says why, `remedy` what to do.
        """
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, not {timeout_s!r}")
        self.policy = policy or CropPolicy()
        self.timeout_s = timeout_s
        self.listed = tuple(map(str, source)) if isinstance(source, (list, tuple)) else None
        self._files: FrameFiles | None = None
        self._source: Source | None = None
        deadline = Deadline(timeout_s, _name(source))
        within(deadline, lambda: self._open(source, frame_fps, deadline))

    def _open(self, source: Any, frame_fps: float | None, deadline: Deadline) -> None:
        if isinstance(source, (list, tuple)):
            if frame_fps is None:
                raise VideoError("source", "a list of frames without its rate", "give frame_fps")
            self._files = FrameFiles(source, frame_fps, f"the list of {len(source)} frames")
        elif isinstance(source, (str, os.PathLike)):
            source = plain_path(source)
            if is_folder(source):
                if frame_fps is None:
                    raise directory_error(source)
                self._files = FrameFiles.folder(source, frame_fps)
        if self._files is not None:
            files = self._files
            self.fps, self.frames = files.fps, len(files)
            self.height, self.width = files.height, files.width
        else:
            self._source = make_source(source)
            self._probe = container.probe(self._source, deadline)
            self.fps, self.frames = self._probe.fps, self._probe.frames
            self.height, self.width = self._probe.height, self._probe.width
        check_aspect(self.height, self.width, self.policy.max_aspect, self.name)

    @property
    def name(self) -> str:
        """The path, or a description of what was given."""
        return (self._files or self._source).name

    @property
    def frame_fps(self) -> float | None:
        """The rate that was given for a folder or list of frames; None for a video file."""
        return None if self._files is None else self._files.fps

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.fps

    def overview(self) -> Clip:
        """The whole video, coarsely (observation 0).

        Raises:
          VideoError: see `vo3.video.errors`.
        """
        return self._clip(None, None, clips=1)

    def crop(
        self,
        t0: float,
        t1: float,
        strategy: str | None,
        *,
        clips: int = 1,
        rate: float | None = None,
    ) -> Clip:
        """A window of the video.

        Args:
          t0, t1: seconds of the whole video; what lies outside of it is cut off.
          strategy: "coarse", "medium" or "fine". Training rows also know None (the overview's whole quota) and
            "old_quota" (that quota divided by `clips`).
          clips: number of clips of the row, for "old_quota".
          rate: frames per second; None: the policy's.

        Raises:
          VideoError: kind "window" when the times are not numbers, reversed, outside of the video or less than
            `policy.min_seconds` apart; "strategy"; or what reading raises.
        """
        start, end = check_window((t0, t1))
        given = f"the window [{start:g}, {end:g}]"
        inside = f"choose a window inside [0, {self.duration:.1f}]"
        if end <= 0 or start >= self.duration:
            raise VideoError(
                "window", f"{given} lies outside of {self.name} ({self.duration:.1f} s)", inside
            )
        start, end = max(start, 0.0), min(end, self.duration)
        if end - start < self.policy.min_seconds - 1e-6:
            raise VideoError(
                "window",
                f"{given} covers {end - start:.2f} s of {self.name}, less than {self.policy.min_seconds:g} s",
                f"{inside} of at least {self.policy.min_seconds:g} s",
            )
        return self._clip((start, end), strategy, clips=clips, rate=rate)

    def show(self, observation: Observation) -> Clip:
        """The frames of an earlier observation of this video again, whatever policy made it.

        Raises:
          VideoError: kind "window" when it holds frames that this video does not have; or what reading raises.
        """
        o = observation
        plan = ClipPlan(np.asarray(o.indices, np.int64), o.height, o.width, o.tokens, o.fps)
        if not len(o.indices) or min(o.indices) < 0 or max(o.indices) >= self.frames:
            raise VideoError(
                "window",
                f"observation {o.index} holds frames that {self.name} ({self.frames} frames) does not have",
                "give the video that the trajectory was made from",
            )
        return self._decode(plan, o.start, o.end, o.grid)

    def _clip(
        self,
        window: tuple[float, float] | None,
        strategy: str | None,
        *,
        clips: int,
        rate: float | None = None,
    ) -> Clip:
        plan = plan_clip(
            fps=self.fps,
            frames=self.frames,
            height=self.height,
            width=self.width,
            window=window,
            strategy=strategy,
            policy=self.policy,
            clips=clips,
            rate=rate,
        )
        start, end = window or (0.0, self.duration)
        patch = self.policy.token_size // 2
        steps = len(plan.indices) // self.policy.frames_per_patch
        grid = (steps, plan.height // patch, plan.width // patch)
        return self._decode(plan, start, end, grid)

    def _decode(self, plan: ClipPlan, start: float, end: float, grid: tuple[int, int, int]) -> Clip:
        deadline = Deadline(self.timeout_s, self.name)
        try:
            decoded = within(deadline, lambda: self._read(plan, deadline))
        finally:
            trim()
        return Clip(
            frames=decoded.frames,
            times=decoded.times,
            indices=plan.indices,
            fps=plan.fps,
            start=start,
            end=end,
            grid=grid,
            tokens=plan.tokens,
        )

    def _read(self, plan: ClipPlan, deadline: Deadline) -> Decoded:
        if self._files is not None:
            return self._files.read(
                plan.indices, height=plan.height, width=plan.width, deadline=deadline
            )
        return read_frames(
            self._source,
            self._probe,
            plan.indices / self.fps,
            height=plan.height,
            width=plan.width,
            deadline=deadline,
        )


def _name(source: Any) -> str:
    return (
        os.fspath(source)
        if isinstance(source, (str, os.PathLike))
        else f"<{type(source).__name__}>"
    )
