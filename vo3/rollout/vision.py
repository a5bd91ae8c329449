"""A clip as calls of the vision tower: some temporal patches at a time, padded to a bucket."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from vo3.models.qwen2_5_vl.config import VisionConfig
from vo3.models.qwen2_5_vl.vision import VisionInputs, vision_inputs
from vo3.rollout.buckets import smallest
from vo3.video import Clip, patchify
from vo3.video.patches import TEMPORAL


@dataclasses.dataclass(frozen=True)
class Patches:
    """One call of the vision tower.

    Attributes:
      row: of the conversation's vision features that the first one is.
      grid: (t, h, w) in patches.
      count: features that come out, padding left aside.
      used: patches, padding left aside.
      patches: padded.
      inputs: for the tower.
    """

    row: int
    grid: tuple[int, int, int]
    count: int
    used: int
    patches: Float[np.ndarray, "P C"]
    inputs: VisionInputs


def clip_patches(
    clip: Clip, vision: VisionConfig, table: tuple[int, ...], row: int
) -> Iterator[Patches]:
    """A clip's calls in order.

    Args:
      clip: the frames.
      vision: of the model.
      table: buckets of patches.
      row: of the conversation's vision features that the clip's first one is.

    Raises:
      BucketError: one temporal patch is larger than the largest bucket.
    """
    t, height, width = clip.grid
    smallest(height * width, table, what=f"patches of one {clip.width} x {clip.height} frame")
    steps = table[-1] // (height * width)
    for first in range(0, t, steps):
        frames = clip.frames[_frames(clip, first) : _frames(clip, min(t, first + steps))]
        if clip.alone:
            frames = np.repeat(frames, TEMPORAL, axis=0)  # as the processors do with a picture
        patches, grid = patchify(frames, patch_size=vision.patch_size)
        if grid[1:] != (height, width):
            raise ValueError(
                f"frames of {clip.width} x {clip.height} are planned as {width} x {height} patches, for this vision tower they are "
                f"{grid[2]} x {grid[1]}; sample the video with the model's own CropPolicy"
            )
        bucket = smallest(len(patches), table, what="patches")
        padded = np.zeros((bucket, patches.shape[1]), np.float32)
        padded[: len(patches)] = patches
        count = len(patches) // vision.spatial_merge_size**2
        inputs = vision_inputs([grid], vision, pad_patches=bucket)
        yield Patches(row, grid, count, len(patches), padded, inputs)
        row += count


def _frames(clip: Clip, step: int) -> int:
    """The first frame of a temporal patch."""
    return step if clip.alone else TEMPORAL * step
