"""Frames to patch rows, in the order and with the normalisation of the Hugging Face Qwen2-VL processors."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

# Mean and standard deviation of the CLIP image encoder's training data (OpenAI), per RGB channel in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TEMPORAL = 2  # frames per temporal patch
MERGE = 2  # patches per side of one token

Grid = tuple[int, int, int]


def patchify(
    frames: UInt8[np.ndarray, "T height width 3"], *, patch_size: int = 14
) -> tuple[Float32[np.ndarray, "P F"], Grid]:
    """Cuts a clip into patch rows.

    Rows run over temporal patches, then token rows, token columns and the 2 x 2 patches of one token; inside a row the order is
    channel, frame, y, x. An odd last frame is doubled.

    Args:
      frames: uint8 [T, height, width, 3]; both sides multiples of twice the patch size.
      patch_size: pixels per side of one patch.

    Returns:
      patches float32 [P, 3 * 2 * patch_size ** 2] and the grid (t, h, w) in patches.

    Raises:
      ValueError: another shape or dtype.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.shape[0]:
        raise ValueError(
            f"frames must be uint8 [T, height, width, 3] with T > 0, not {frames.dtype} {list(frames.shape)}"
        )
    unit = patch_size * MERGE
    if frames.shape[1] % unit or frames.shape[2] % unit:
        raise ValueError(
            f"frames of {frames.shape[2]} x {frames.shape[1]} pixels do not divide into tokens of {unit}; resize first"
        )
    if frames.shape[0] % TEMPORAL:
        frames = np.concatenate([frames, frames[-1:]])
    t, h, w = (
        frames.shape[0] // TEMPORAL,
        frames.shape[1] // patch_size,
        frames.shape[2] // patch_size,
    )
    cut = frames.reshape(
        t, TEMPORAL, h // MERGE, MERGE, patch_size, w // MERGE, MERGE, patch_size, 3
    )
    cut = cut.transpose(
        0, 2, 5, 3, 6, 8, 1, 4, 7
    )  # t, rows, columns, y, x of a token, channel, frame, y, x of a patch
    rows = np.empty(cut.shape, np.float32)
    for channel in range(3):
        rows[:, :, :, :, :, channel] = _LEVELS[channel][cut[:, :, :, :, :, channel]]
    return rows.reshape(t * h * w, -1), (t, h, w)


def patchify_image(
    image: UInt8[np.ndarray, "height width 3"], *, patch_size: int = 14
) -> tuple[Float32[np.ndarray, "P F"], Grid]:
    """Cuts one image into patch rows: a clip whose single frame is doubled. See `patchify`."""
    return patchify(np.asarray(image)[None], patch_size=patch_size)


# The normalised value of each of the 256 grey levels, float32 [3, 256]: a table is exact and faster than arithmetic.
_LEVELS = (
    (np.arange(256, dtype=np.float64)[None] / 255 - np.array(MEAN)[:, None])
    / np.array(STD)[:, None]
).astype(np.float32)
