"""Clip: the frames of one observation with everything that the chat and the model need to know of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from vo3.trajectory import Observation, Strategy


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames of the whole video (an overview) or of a window of it.

    Attributes:
      frames: uint8 [T, height, width, 3], RGB, resized; T is even where two share a patch.
      times: float64 [T], true presentation times in seconds from the video's first frame.
      indices: int64 [T], frame numbers on the nominal grid.
      fps: frames shown per second of video.
      start, end: seconds of the whole video.
      grid: (t, h, w) in patches; two frames share one t, or each has its own (`alone`); 2 x 2 patches are one token.
      tokens: tokens in the context.
    """

    frames: np.ndarray
    times: np.ndarray
    indices: np.ndarray
    fps: float
    start: float
    end: float
    grid: tuple[int, int, int]
    tokens: int

    @property
    def alone(self) -> bool:
        """Whether every frame is a picture of its own."""
        return self.grid[0] == len(self.frames)

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.frames.shape[2])

    def observation(self, index: int, strategy: Strategy | None = None) -> Observation:
        """What a trajectory keeps of this clip.

        Args:
          index: 0 for the overview, then 1, 2, ... in order of appearance.
          strategy: the call's strategy; None for the overview.
        """
        return Observation(
            index=index,
            start=self.start,
            end=self.end,
            fps=self.fps,
            times=tuple(self.times.tolist()),
            indices=tuple(self.indices.tolist()),
            height=self.height,
            width=self.width,
            grid=self.grid,
            tokens=self.tokens,
            strategy=strategy,
            media="frames" if self.alone else "video",
        )
