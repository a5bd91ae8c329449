"""Packed training rows: what crosses the border from host to device.

Two forms. `RowBatch` is what the loader makes of real videos: every field has the row axis first and a row brings its own
patches, so that one rule splits all of it over devices. `Batch` is that of sources that render frames of equal sizes on the
fly and share them between the rows (ClueWorld).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from pallas_kernels.visibility import Visibility
from vo3.chat import Encoded
from vo3.models.qwen2_5_vl.vision import VisionInputs


@dataclasses.dataclass(frozen=True)
class Example:
    """One encoded trajectory, its loss weight per token, and which frames its videos are: (source, number)."""

    encoded: Encoded
    weight: Float[np.ndarray, "L"]
    shown: tuple[tuple[str, int], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowBatch:
    """Packed rows, the row axis first in every field. M = P / (patches per token).

    Attributes:
      ids: token ids.
      positions: M-RoPE positions, each trajectory from 0.
      visibility: fields [B, L]; trajectories do not see each other. `hide` is that of the TDAM policy; the step draws
        whether it counts.
      weight: loss weight of each token as a target (0: no loss).
      feature_index: -1 or the place among the row's own vision tokens.
      patches: uint8 grey levels or normalised floats; None where `features` are.
      vision: the tower's inputs, row axis first; None where `features` are.
      features: what the frozen tower gave before its merger, see `vo3.train.features`; None where `patches` are.
    """

    ids: Int[np.ndarray, "B L"]
    positions: Int[np.ndarray, "B 3 L"]
    visibility: Visibility
    weight: Float[np.ndarray, "B L"]
    feature_index: Int[np.ndarray, "B L"]
    patches: Shaped[np.ndarray, "B P C"] | None = None
    vision: VisionInputs | None = None
    features: Float[np.ndarray, "B M W"] | None = None

    @classmethod
    def of(cls, rows: Any) -> RowBatch:
        """The part of `vo3.data.rows.Rows` that the device needs."""
        return cls(**{f.name: getattr(rows, f.name) for f in dataclasses.fields(cls)})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed rows. Several trajectories may stand in a row and share the same video frames.

    Attributes:
      ids: token ids.
      positions: M-RoPE positions, each trajectory from 0.
      visibility: fields [B, L]; trajectories do not see each other.
      weight: loss weight of each token as a target (0: no loss).
      feature_index: -1 or the row of [overview tokens of all overviews, then clip tokens of all clips].
      overviews: frames of each overview.
      clips: frames of each clip.
    """

    ids: Int[np.ndarray, "B L"]
    positions: Int[np.ndarray, "3 B L"]
    visibility: Visibility
    weight: Float[np.ndarray, "B L"]
    feature_index: Int[np.ndarray, "B L"]
    overviews: UInt8[np.ndarray, "O T h w 3"]
    clips: UInt8[np.ndarray, "C t H W 3"]


def pack_rows(
    rows: Sequence[Sequence[Example]],
    *,
    length: int,
    overviews: UInt8[np.ndarray, "O T h w 3"],
    clips: UInt8[np.ndarray, "C t H W 3"],
) -> Batch:
    """Rows of trajectories one after the other, padded to `length`.

    Raises:
      ValueError: a row longer than `length`.
    """
    batch = len(rows)
    ids = np.zeros((batch, length), np.int32)
    positions = np.zeros((3, batch, length), np.int32)
    segments = np.full((batch, length), -1, np.int32)
    weight = np.zeros((batch, length), np.float32)
    index = np.full((batch, length), -1, np.int32)
    kind, hide = np.zeros((2, batch, length), np.int32)
    per_video = {"overview": _tokens(overviews), "clip": _tokens(clips)}
    base = {"overview": 0, "clip": len(overviews) * per_video["overview"]}
    for b, row in enumerate(rows):
        start = 0
        for segment, example in enumerate(row):
            stop = start + len(example.encoded.ids)
            if stop > length:
                raise ValueError(
                    f"row {b} holds {stop} tokens, more than length={length}; raise the row length"
                )
            ids[b, start:stop] = example.encoded.ids
            positions[:, b, start:stop] = example.encoded.positions
            segments[b, start:stop] = segment
            weight[b, start:stop] = example.weight
            index[b, start:stop] = _rows(example, per_video, base)
            kind[b, start:stop] = example.encoded.visibility.kind
            hide[b, start:stop] = example.encoded.visibility.hide
            start = stop
    seen = dataclasses.replace(Visibility.segments(segments), kind=kind, hide=hide)
    return Batch(ids, positions, seen, weight, index, overviews, clips)


def _tokens(frames: np.ndarray) -> int:
    _, t, h, w, _ = frames.shape
    return (t // 2) * (h // 28) * (w // 28)


def _rows(
    example: Example, per_video: dict[str, int], base: dict[str, int]
) -> Int[np.ndarray, "L"]:
    """Feature rows of a trajectory's video tokens, in order of appearance, as rows of the batch's features."""
    local = example.encoded.feature_index
    if not example.shown:  # text alone
        return local
    flat = np.concatenate(
        [
            base[source] + number * per_video[source] + np.arange(per_video[source])
            for source, number in example.shown
        ]
    )
    return np.where(local >= 0, flat[np.maximum(local, 0)], -1).astype(np.int32)
