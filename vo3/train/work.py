"""What a training step has to do, in tokens and in FLOPs, and what a device could at best."""

from __future__ import annotations

import dataclasses

import numpy as np

from pallas_kernels.tuning import DEVICE_KINDS
from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig
from vo3.train.chips import CHIPS

# Dense bf16, from the data sheets.
_GPUS = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12}


def peak_flops(device_kind: str) -> float | None:
    """bf16 FLOP/s of a device at best; None where it is not known."""
    if device_kind in DEVICE_KINDS:
        return CHIPS[DEVICE_KINDS[device_kind]].flops
    return next((v for kind, v in _GPUS.items() if device_kind.startswith(kind)), None)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step has to do, over all processes.

    Attributes:
      tokens: without padding.
      slots: places for tokens, padding included.
      patches: of vision, without padding.
      pairs: visible (query, key) pairs, without regard to TDAM: sum of l (l + 1) / 2 over the trajectories.
      trajectories: in the step.
      failed: of them, left out because they could not be read.
    """

    tokens: int = 0
    slots: int = 0
    patches: int = 0
    pairs: int = 0
    trajectories: int = 0
    failed: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))


def _values(work: Work) -> tuple[int, ...]:
    return tuple(getattr(work, f.name) for f in dataclasses.fields(work))


def work_of(
    segments: np.ndarray, count: np.ndarray | int, trajectories: int, failed: int = 0
) -> Work:
    """Of rows with these segment numbers [B, L] (-1: padding) and patch counts."""
    lengths = np.concatenate(
        [np.bincount(row[row >= 0]) for row in np.asarray(segments)] or [np.zeros(0, np.int64)]
    ).astype(np.int64)
    return Work(
        tokens=int(lengths.sum()),
        slots=int(np.asarray(segments).size),
        patches=int(np.sum(count)),
        pairs=int((lengths * (lengths + 1) // 2).sum()),
        trajectories=trajectories,
        failed=failed,
    )


def model_flops(work: Work, config: Qwen2_5_VLConfig, *, vision_trained: bool) -> float:
    """FLOPs a step needs, as MFU counts them: 2 a parameter and token forward, twice that backward, and the attention's pairs.

    The frozen vision tower runs forward only; recomputation is not counted, nor are the tower's windows (below 2 %).
    """
    t, v = config.text, config.vision
    heads = t.num_attention_heads * t.head_dim
    layer = 2 * t.hidden_size * (heads + t.num_key_value_heads * t.head_dim) + 3 * (
        t.hidden_size * t.intermediate_size
    )
    text = t.num_hidden_layers * layer + t.vocab_size * t.hidden_size
    block = 4 * v.hidden_size**2 + 3 * v.hidden_size * v.intermediate_size
    vision = v.depth * block + v.patch_dim * v.hidden_size
    width = v.hidden_size * v.merge_unit
    merger = (width * width + width * v.out_hidden_size) / v.merge_unit
    forward_and_back, passes = 3, 3 if vision_trained else 1
    return (
        forward_and_back * 2 * work.tokens * text
        + forward_and_back * 4 * work.pairs * heads * t.num_hidden_layers
        + 2 * work.patches * (passes * vision + forward_and_back * merger)
    )
