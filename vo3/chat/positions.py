"""M-RoPE positions of a token sequence with videos and images, in NumPy.

The rule is that of transformers up to 4.57, vLLM and the checkpoints trained with them:

* a text token has the same position on the three axes (time, height, width), one more than the token before it;
* the video token at (i, y, x) of its merged grid has `(start + time(i), start + y, start + x)`, where `start` is
  one more than the largest position so far on any axis; an image is a video of one step;
* text after a video continues at one more than the largest position so far on any axis.

transformers 5 continues elsewhere after a video: hand it these positions when comparing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

MropeTime = Literal["constant", "hf_int", "exact"]

# Positions on the time axis per second of video; `tokens_per_second` of the Qwen2.5-VL configs.
TOKENS_PER_SECOND = 2

# Sample rates come out of divisions: 2.0000000000000004 frames per second must count as 2, not floor one position down.
_ROUNDING = 1e-6

Grid = tuple[int, int, int]


def grid_tokens(grid: Grid, *, spatial_merge_size: int = 2) -> int:
    """Tokens that a (t, h, w) grid of patches takes in the context.

    Raises:
      ValueError: a side is not positive, or not a multiple of the merge size.
    """
    t, h, w = (int(side) for side in grid)
    if min(t, h, w) < 1 or h % spatial_merge_size or w % spatial_merge_size:
        raise ValueError(
            f"grid {(t, h, w)} does not merge: t, h and w must be positive, and h and w multiples of {spatial_merge_size}"
        )
    return t * (h // spatial_merge_size) * (w // spatial_merge_size)


def grid_positions(
    grid: Grid,
    *,
    mrope_time: MropeTime = "constant",
    second_per_grid: float = 1.0,
    spatial_merge_size: int = 2,
) -> Int[np.ndarray, "3 P"]:
    """Positions of one grid's tokens, from 0, in context order: time slowest, then height, then width.

    Args:
      grid: (t, h, w) in patches.
      mrope_time: how step i of the grid becomes a position. `constant`: 2 i, as if each step lasted a second.
        `hf_int`: 2 i int(second_per_grid), as transformers 4.57. `exact`: floor(2 i second_per_grid).
      second_per_grid: seconds between two steps of the grid, 2 / sample fps.
      spatial_merge_size: patches per token along height and width.
    """
    grid_tokens(grid, spatial_merge_size=spatial_merge_size)
    t, h, w = grid[0], grid[1] // spatial_merge_size, grid[2] // spatial_merge_size
    steps = np.arange(t, dtype=np.int64) * TOKENS_PER_SECOND
    if mrope_time == "hf_int":
        steps = steps * int(second_per_grid)
    elif mrope_time == "exact":
        steps = np.floor(steps * float(second_per_grid) + _ROUNDING).astype(np.int64)
    elif mrope_time != "constant":
        raise ValueError(f"unknown mrope_time {mrope_time!r}; one of {get_args(MropeTime)}")
    axes = np.meshgrid(steps, np.arange(h), np.arange(w), indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes]).astype(np.int32)


def mrope_positions(
    ids: Int[np.ndarray, "L"] | Sequence[int],
    grids: Sequence[Grid] = (),
    *,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int | None = None,
    spatial_merge_size: int = 2,
    mrope_time: MropeTime = "constant",
    second_per_grid: Sequence[float] | None = None,
    start: int = 0,
) -> Int[np.ndarray, "3 L"]:
    """Positions of every token on the axes (time, height, width).

    To continue a conversation, hand the new tokens alone, with their grids, and `start=next_position(positions)` of
    what came before: the result is the same as for the whole.

    Args:
      ids: token ids; pads stand for video and image tokens.
      grids: (t, h, w) in patches of every video and image, in order of appearance.
      image_token_id, video_token_id: the pads.
      vision_start_token_id: when given, every grid must follow this token.
      spatial_merge_size: patches per token along height and width.
      mrope_time: see `grid_positions`.
      second_per_grid: seconds per grid step, one for each grid or one for each video; None counts as 1 for each
        (refused for `exact`, which is about these seconds).
      start: position of the first token.

    Raises:
      ValueError: pads and grids do not match, or the seconds do not fit the grids.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1:
        raise ValueError(f"ids must be [L], got shape {ids.shape}")
    if mrope_time not in get_args(MropeTime):
        raise ValueError(f"unknown mrope_time {mrope_time!r}; one of {get_args(MropeTime)}")
    pads = np.flatnonzero((ids == image_token_id) | (ids == video_token_id))
    sizes = [grid_tokens(grid, spatial_merge_size=spatial_merge_size) for grid in grids]
    if sum(sizes) != pads.size:
        raise ValueError(
            f"{len(sizes)} grids stand for {sum(sizes)} tokens, but ids hold {pads.size} pads"
        )
    firsts = pads[np.cumsum([0, *sizes[:-1]])] if sizes else np.zeros(0, np.int64)
    seconds = _seconds(ids[firsts] == video_token_id, second_per_grid, mrope_time)

    positions = np.empty((3, ids.size), np.int32)
    done, following = 0, start
    for number, (first, size) in enumerate(zip(firsts.tolist(), sizes, strict=True)):
        block = ids[first : first + size]
        if (block != block[0]).any():
            raise ValueError(
                f"grid {number} {tuple(grids[number])} needs {size} equal pads in a row from token {first}"
            )
        if vision_start_token_id is not None and (
            first == 0 or ids[first - 1] != vision_start_token_id
        ):
            raise ValueError(
                f"grid {number} starts at token {first}, which does not follow the vision start {vision_start_token_id}"
            )
        text = first - done
        positions[:, done:first] = np.arange(following, following + text)
        following += text
        local = grid_positions(
            grids[number],
            mrope_time=mrope_time,
            second_per_grid=seconds[number],
            spatial_merge_size=spatial_merge_size,
        )
        positions[:, first : first + size] = local + following
        following += int(local.max()) + 1
        done = first + size
    positions[:, done:] = np.arange(following, following + ids.size - done)
    return positions


def next_position(positions: Int[np.ndarray, "3 L"], *, start: int = 0) -> int:
    """The position of the token that follows: one more than the largest so far, `start` where there is none."""
    return int(positions.max()) + 1 if positions.size else start


def _seconds(
    is_video: np.ndarray, second_per_grid: Sequence[float] | None, mrope_time: MropeTime
) -> list[float]:
    """Seconds per step of every grid; images, which have one step, get 0."""
    videos = int(is_video.sum())
    if second_per_grid is None:
        if mrope_time == "exact" and videos:
            raise ValueError(
                "mrope_time='exact' needs second_per_grid (2 / sample fps) of every video"
            )
        return [1.0] * is_video.size
    given = [float(s) for s in second_per_grid]
    if len(given) == videos != is_video.size:
        rest = iter(given)
        given = [next(rest) if video else 0.0 for video in is_video]
    if len(given) != is_video.size:
        raise ValueError(
            f"second_per_grid has {len(given)} values for {is_video.size} grids ({videos} of them videos)"
        )
    for number, (video, s) in enumerate(zip(is_video, given, strict=True)):
        if video and not (np.isfinite(s) and s >= 0):
            raise ValueError(
                f"second_per_grid of grid {number} is {s}; it must be finite and not negative"
            )
    return given
