"""What a TPU chip can do at best: the named peaks that MFU and predictions are measured against.

Source: Cloud TPU system architecture pages (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x). The usable memory is what the TPU
compiler grants a program, a little less than the chip has.
"""

from __future__ import annotations

import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip.

    Attributes:
      name: as in tuned/<name>.json.
      flops: bf16 matrix FLOP/s.
      hbm_bytes: memory that a program may use.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s that arrive over all links of a chip together: half the published bidirectional figure.
      dcn_bandwidth: bytes/s of network between slices, per chip: an assumption, 100 Gbit/s a host of four chips.
    """

    name: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float = 100e9 / 8 / 4


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * GIB, 1.2e12, 150e9),
        Chip("v5e", 197e12, int(15.75 * GIB), 0.8e12, 200e9),
        Chip("v5p", 459e12, 95 * GIB, 2.765e12, 600e9),
        Chip("v6e", 918e12, int(31.25 * GIB), 1.6e12, 400e9),
        Chip("tpu7x", 2307e12, 192 * GIB, 7.4e12, 600e9),
    )
}

# Accelerator types count TensorCores on v4 and v5p (two a chip), chips on the others.
_TYPES = {"v4": ("v4", 2), "v5p": ("v5p", 2), "v5litepod": ("v5e", 1), "v6e": ("v6e", 1)}
_SHAPES_2D = {
    1: "1x1",
    4: "2x2",
    8: "2x4",
    16: "4x4",
    32: "4x8",
    64: "8x8",
    128: "8x16",
    256: "16x16",
}
_SHAPES_3D = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: `name` as libtpu wants it (`v5p:2x2x4`), its chip and how many there are."""

    name: str
    chip: Chip
    chips: int


def topology(text: str) -> Topology:
    """A slice from `v5p:2x2x4`, or from its accelerator type, `v5p-32`.

    Raises:
      ValueError: neither; or a chip or size that is not known.
    """
    if ":" in text:
        chip, shape = text.split(":", 1)
        if chip not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
            raise ValueError(
                f"topology {text!r}: CHIP:AxB[xC] is expected, with CHIP one of {', '.join(CHIPS)}"
            )
        return Topology(text, CHIPS[chip], math.prod(map(int, shape.split("x"))))
    kind, _, count = text.partition("-")
    if kind not in _TYPES or not count.isdigit():
        raise ValueError(
            f"topology {text!r} is neither CHIP:AxBxC nor one of the types {', '.join(f'{k}-N' for k in _TYPES)}"
        )
    name, cores = _TYPES[kind]
    shapes = _SHAPES_3D if cores == 2 else _SHAPES_2D
    chips = int(count) // cores
    if int(count) % cores or chips not in shapes:
        sizes = ", ".join(f"{kind}-{n * cores}" for n in shapes)
        raise ValueError(f"topology {text!r}: no such size; known are {sizes}")
    return Topology(f"{name}:{shapes[chips]}", CHIPS[name], chips)
