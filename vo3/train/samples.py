"""A look into a batch: its first row as text, with the trained tokens marked, and its first frames as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8

from vo3.train.batch import Batch, RowBatch
from vo3.train.pixels import MEAN, STD

_FRAMES = 12
_MARK = "«", "»"  # around what carries loss


def text_of(batch: Batch | RowBatch, tokenizer: Any, *, row: int = 0) -> str:
    """The row's trajectories, one after the other; what carries loss stands between « and », a run of video tokens is counted."""
    ids, weight = np.asarray(batch.ids[row]), np.asarray(batch.weight[row])
    enter, shown = np.asarray(batch.visibility.enter[row]), np.asarray(batch.feature_index[row])
    # Where text, video and loss take turns.
    state = np.stack([enter, shown >= 0, weight > 0])
    starts = np.flatnonzero(np.any(np.diff(state, axis=1, prepend=state[:, :1] - 1), axis=0))
    parts = []
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        if enter[start] < 0:
            continue
        if start and enter[start] != enter[start - 1]:
            parts.append("\n" + "-" * 40 + "\n")
        if shown[start] >= 0:
            parts.append(f"[{stop - start} video tokens]")
            continue
        words = tokenizer.decode(ids[start:stop].tolist(), skip_special_tokens=False)
        parts.append(f"{_MARK[0]}{words}{_MARK[1]}" if weight[start] > 0 else words)
    return "".join(parts) + "\n"


def picture_of(batch: Batch | RowBatch, *, row: int = 0) -> UInt8[np.ndarray, "h w 3"] | None:
    """The first frames that the row shows, side by side; None where the batch carries features."""
    if isinstance(batch, Batch):
        frames = list(np.asarray(batch.overviews[0])[::2]) if len(batch.overviews) else []
    elif batch.patches is None:
        return None
    else:
        frames = _frames(batch, row)
    frames = frames[:_FRAMES]
    if not frames:
        return None
    height = max(f.shape[0] for f in frames)
    pad = lambda f: np.pad(f, ((0, height - f.shape[0]), (0, 2), (0, 0)))
    return np.concatenate([pad(f) for f in frames], axis=1)


def _frames(batch: RowBatch, row: int) -> list[np.ndarray]:
    """The first frame of each temporal patch, put together from patches at their places."""
    vision = batch.vision
    unit = vision.positions.shape[1] // vision.order.shape[1]
    frame = np.asarray(vision.frames.enter[row])
    found = []
    for number in range(min(int(frame.max(initial=-1)) + 1, _FRAMES)):
        places = np.flatnonzero(frame == number)
        source = np.asarray(vision.order[row])[places // unit] * unit + places % unit
        yx = np.asarray(vision.positions[row])[places]
        found.append(_put_together(np.asarray(batch.patches[row])[source], yx))
    return found


def _put_together(patches: np.ndarray, yx: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    side = int(np.sqrt(patches.shape[1] / 6))
    pixels = patches.reshape(-1, 3, 2, side, side)[:, :, 0].transpose(0, 2, 3, 1)
    if pixels.dtype != np.uint8:
        pixels = np.clip((pixels * STD + MEAN) * 255, 0, 255).round().astype(np.uint8)
    height, width = (yx.max(axis=0) + 1) * side
    frame = np.zeros((height, width, 3), np.uint8)
    for (y, x), patch in zip(yx * side, pixels, strict=True):
        frame[y : y + side, x : x + side] = patch
    return frame
