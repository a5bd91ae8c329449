"""Pixels travel from host to device as uint8, a quarter of the bytes, and are normalised there."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vo3.models.qwen2_5_vl.config import VisionConfig

# The processor's normalisation, the means and deviations of CLIP.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def patchify_traced(
    frames: UInt8[Array, "B T h w 3"], config: VisionConfig
) -> Float[Array, "B t P C"]:
    """`vo3.video.patchify` inside jit, temporal patches kept apart.

    Args:
      frames: T even, h and w multiples of patch_size * spatial_merge_size.

    Returns:
      [B, T / 2, patches of a temporal patch, 1176]: a temporal patch is a row of its own, since no vision attention crosses frames.
    """
    b, t, h, w, c = frames.shape
    two, patch, merge = config.temporal_patch_size, config.patch_size, config.spatial_merge_size
    x = frames.astype(jnp.float32) * np.float32(1 / 255)
    x = (x - MEAN.reshape(1, 1, 1, 1, 3)) / STD.reshape(1, 1, 1, 1, 3)
    side = merge * patch
    x = x.reshape(b, t // two, two, h // side, merge, patch, w // side, merge, patch, c)
    x = x.transpose(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return x.reshape(b, t // two, h * w // patch**2, c * two * patch**2)


def normalize(patches: UInt8[Array, "*B P C"]) -> Float[Array, "*B P C"]:
    """Patch rows of grey levels to what the tower takes, f32, inside jit."""
    repeat = patches.shape[-1] // 3
    row = lambda values: np.repeat(values, repeat).reshape((1,) * (patches.ndim - 1) + (-1,))
    return (patches.astype(jnp.float32) * np.float32(1 / 255) - row(MEAN)) / row(STD)
