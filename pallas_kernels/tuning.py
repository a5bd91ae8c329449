"""Block sizes and kernel variants per device: data in tuned/<device>.json, and the device that code is compiled for."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator

import jax

FOLDER = pathlib.Path(__file__).parent / "tuned"
INTERPRET = "interpret"
# jax's device_kind -> file name in tuned/.
DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "TPU v7x": "tpu7x",
}

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


@dataclasses.dataclass(frozen=True)
class KernelTuning:
    """The variant of one kernel.

    Attributes:
      unroll: emit the heads of a step one after the other instead of a loop.
      vmem_limit: bytes of VMEM it may use; None: the compiler's default.
      step_rows: as `Tuning.step_rows`, for this kernel alone; None: the device's.
    """

    unroll: bool
    vmem_limit: int | None = None
    step_rows: int | None = None


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What is tuned for one device.

    Attributes:
      block_q, block_kv: tokens per block.
      window_block: tokens per block, of queries and of keys, for masks that reach no further than this.
      step_rows: query rows (heads times block_q) that one grid step may hold in VMEM.
      forward, dkv, dq: the variant of each kernel.
    """

    block_q: int
    block_kv: int
    window_block: int
    step_rows: int
    forward: KernelTuning
    dkv: KernelTuning
    dq: KernelTuning


@functools.cache
def load(device: str) -> Tuning:
    """The tuning of a device by file name.

    Raises:
      NotImplementedError: no such file.
    """
    path = FOLDER / f"{device}.json"
    if not path.exists():
        known = sorted(p.stem for p in FOLDER.glob("*.json"))
        raise NotImplementedError(f"nothing is tuned for device {device!r}; known: {known}")
    data = json.loads(path.read_text())
    data.pop("why")
    kernels = {name: KernelTuning(**data.pop(name)) for name in ("forward", "dkv", "dq")}
    return Tuning(**data, **kernels)


@contextlib.contextmanager
def target(device: str) -> Iterator[None]:
    """Kernels traced inside are for `device` ("v5e", "v5p", ...), whatever runs here: compiling for a TPU without one.

    "interpret" runs the TPU kernels on the CPU, slowly, for tests. Read at trace time: a function that is jitted already keeps
    what it was traced with.
    """
    if device != INTERPRET:
        load(device)
    token = _target.set(device)
    try:
        yield
    finally:
        _target.reset(token)


def current_device() -> str | None:
    """The device kernels are for: the `target`, else the TPU this process runs on, else None.

    Raises:
      NotImplementedError: a TPU of a kind not known here.
    """
    named = _target.get()
    if named is not None or jax.default_backend() != "tpu":
        return named
    kind = jax.devices()[0].device_kind
    if kind not in DEVICE_KINDS:
        raise NotImplementedError(
            f"TPU kind {kind!r} is not known; known: {sorted(DEVICE_KINDS)}; use implementation='xla'"
        )
    return DEVICE_KINDS[kind]
