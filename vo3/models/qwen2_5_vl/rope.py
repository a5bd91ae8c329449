"""Rotary angles: three-axis sections for text (M-RoPE), two axes for vision. The angles are f32 throughout."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vo3.models.qwen2_5_vl import config as config_lib


def text_angles(
    positions: Int[Array, "3 B L"], config: config_lib.TextConfig
) -> tuple[Float[Array, "B 1 L h"], Float[Array, "B 1 L h"]]:
    """(cos, sin) for the decoder's heads, h = H / 2.

    Frequency i belongs to the axis (time, y, x) whose section of `mrope_section` it falls in.
    """
    frequencies = _frequencies(config.head_dim, config.rope_theta)
    axis = np.repeat(np.arange(3), config.mrope_section)
    chosen = jnp.moveaxis(positions, 0, -1).astype(jnp.float32)[..., axis]  # [B, L, h]
    angles = (chosen * frequencies.reshape(1, 1, -1))[:, None]
    return jnp.cos(angles), jnp.sin(angles)


def vision_angles(
    positions: Int[Array, "B P 2"], config: config_lib.VisionConfig
) -> tuple[Float[Array, "B 1 P h"], Float[Array, "B 1 P h"]]:
    """(cos, sin) for the vision heads: the first half of the frequencies turns with y, the second with x."""
    frequencies = _frequencies(config.head_dim // 2, config.rope_theta)
    angles = positions.astype(jnp.float32)[..., None] * frequencies.reshape(
        1, 1, 1, -1
    )  # [B, P, 2, H / 4]
    angles = angles.reshape(*positions.shape[:2], -1)[:, None]
    return jnp.cos(angles), jnp.sin(angles)


def _frequencies(dim: int, theta: float) -> Float[np.ndarray, "half"]:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)
