"""What the runtimes that people meet in notebooks hold; for the notebooks and docs/evaluation.md, which carry this table.

Figures of TPUs are those of `vo3.evals.compile_check` with the flags of the row: memory that the TPU compiler assigned (jax 0.10.2, libtpu
0.0.42), nothing ran there. Those of GPUs are arithmetic: weights, two caches of the whole context, and 2 GiB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

GIB = 2**30
COMPILED, RUN, ARITHMETIC = "compiled for", "runs in the tests", "arithmetic"
DECODE = "decode alone compiled for"


@dataclasses.dataclass(frozen=True)
class Fit:
    """A checkpoint that a runtime has room for.

    Attributes:
      runtime: as people call it.
      kind: what `device_kind` begins with, in lower case; "gpu": of any GPU.
      checkpoint, weights: which one, and how it is loaded.
      context: tokens of a whole conversation.
      gib: memory of a device that it takes at most, GiB; None: not worth a figure.
      basis: where that is known from.
      flags: of `vo3.evals.compile_check`, without --config.
    """

    runtime: str
    kind: str
    checkpoint: str
    weights: str
    context: int
    gib: float | None
    basis: str
    flags: str = ""

    @property
    def memory(self) -> str:
        """For people."""
        return "-" if self.gib is None else f"{self.gib:.1f} GiB"


_SEVEN = "--config.checkpoint=Qwen2.5-VL-7B-Instruct"
_V5E, _V6E = ("v5e-1", "tpu v5 lite"), ("v6e-1", "tpu v6 lite")
FITS: tuple[Fit, ...] = (
    Fit("CPU", "cpu", "clueworld", "as stored", 2048, None, RUN),
    Fit(*_V5E, "7B", "int8", 32_768, 14.1, COMPILED,
        f"{_SEVEN} --config.quantize=int8 --topology=v5litepod-1"),
    Fit(*_V6E, "7B", "bfloat16", 32_768, 20.7, COMPILED, f"{_SEVEN} --topology=v6e-1"),
    Fit(*_V6E, "7B", "int8", 73_728, 18.5, DECODE,
        f"{_SEVEN} --config.quantize=int8 --config.max_length=73728 --topology=v6e-1"),
    Fit("GPU of 16 GiB", "gpu", "7B", "int8", 32_768, 14.4, ARITHMETIC),
    Fit("GPU of 24 GiB", "gpu", "7B", "bfloat16", 32_768, 20.9, ARITHMETIC),
)  # fmt: skip


def table() -> str:
    """All rows as a Markdown table."""
    head = ("runtime", "checkpoint", "weights", "context", "memory", "known from")
    rows = [(f.runtime, f.checkpoint, f.weights, f"{f.context:,}", f.memory, f.basis) for f in FITS]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def describe(devices: Sequence[jax.Device]) -> str:
    """What a notebook runs on, and what of `FITS` it holds."""
    first = devices[0]
    limit = (first.memory_stats() or {}).get("bytes_limit")
    memory = f", {limit / GIB:.1f} GiB each" if limit else ""
    lines = [f"{len(devices)} x {first.device_kind}{memory}"]
    lines += [
        f"  holds {f.checkpoint} ({f.weights}) with a context of {f.context:,}: {f.memory}, {f.basis}"
        for f in FITS
        if _holds(f, first, limit)
    ]
    if len(lines) == 1:
        lines.append("  it is not in the table; `vo3.evals.compile_check` tells of any TPU")
    return "\n".join(lines)


def _holds(fit: Fit, device: jax.Device, limit: int | None) -> bool:
    if device.platform in ("gpu", "cuda", "rocm"):
        return fit.kind == "gpu" and (limit is None or fit.gib * GIB <= limit)
    return device.device_kind.lower().startswith(fit.kind)
