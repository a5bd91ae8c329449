"""Safetensors files, tensor by tensor: read into given memory, written as a stream.

The published reader maps whole files, and mapped pages count as memory until the file is closed. Here a file is read by
ranges, so what is held is one tensor. Paths are etils.epath: gs:// works.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
from etils import epath

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written: the message names the file or tensor and the remedy."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies.

    Attributes:
      name: its key.
      path: the file.
      dtype: the name in the file, such as "BF16".
      shape: its shape.
      offset: of its first byte in the file.
      nbytes: its size.
    """

    name: str
    path: epath.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: epath.Path) -> dict[str, Tensor]:
    """The tensors of a file, by name.

    Raises:
      CheckpointError: a missing, truncated or foreign file, or a dtype that is no plain float.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; download the checkpoint again")
    size = path.stat().length
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little") if len(head) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise CheckpointError(
                f"{path} is no safetensors file or is truncated ({size} bytes); download it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(name, path, item, 8 + length) for name, item in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} has an unreadable header ({error}); download it again"
        ) from error
    end = max((t.offset + t.nbytes for t in tensors.values()), default=8 + length)
    if end > size:
        raise CheckpointError(
            f"{path} is truncated: {size} bytes, its header tells of {end}; download it again"
        )
    return tensors


def _tensor(name: str, path: epath.Path, item: Mapping, start: int) -> Tensor:
    if item["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name} has dtype {item['dtype']}; only {sorted(DTYPES)} can be read, "
            "take the unquantised checkpoint"
        )
    begin, end = item["data_offsets"]
    shape = tuple(int(n) for n in item["shape"])
    if end - begin != math.prod(shape) * DTYPES[item["dtype"]].itemsize:
        raise CheckpointError(
            f"{path}: tensor {name} has {end - begin} bytes, which does not fit its shape {list(shape)}; "
            "download the file again"
        )
    return Tensor(name, path, item["dtype"], shape, start + begin, end - begin)


def read(tensor: Tensor, rows: slice = slice(None)) -> np.ndarray:
    """A tensor, or the given rows of its first axis, in its own memory and the file's dtype."""
    start, stop, _ = rows.indices(tensor.shape[0]) if tensor.shape else (0, 1, 1)
    row = tensor.nbytes // max(1, tensor.shape[0]) if tensor.shape else tensor.nbytes
    shape = (stop - start, *tensor.shape[1:]) if tensor.shape else ()
    data = np.empty(shape, DTYPES[tensor.dtype])
    view = memoryview(data.reshape(-1).view(np.uint8))
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset + start * row)
        done = 0
        while done < len(view):
            chunk = file.readinto(view[done : done + (1 << 26)])
            if not chunk:
                raise CheckpointError(
                    f"{tensor.path} ended inside tensor {tensor.name}; download the file again"
                )
            done += chunk
    return data


def copy(values: np.ndarray, out: np.ndarray, *, transposed: bool) -> None:
    """`out[...] = values`, fast for bfloat16 and, where `values` is a transposed matrix, for the cache."""
    if values.dtype == out.dtype:
        # NumPy copies its own integers many times faster than bfloat16.
        bits = np.dtype(f"u{out.itemsize}")
        values, out = values.view(bits), out.view(bits)
    if not transposed:
        out[...] = values
        return
    # Tile by tile it stays in the cache: five times faster than at once.
    for y in range(0, out.shape[0], 256):
        for x in range(0, out.shape[1], 256):
            out[y : y + 256, x : x + 256] = values[y : y + 256, x : x + 256]


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tensor to write: its key, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_shards(specs: Sequence[Spec], max_bytes: int) -> list[list[Spec]]:
    """Consecutive tensors grouped into shards of at most `max_bytes`; a larger tensor has a shard of its own."""
    shards: list[list[Spec]] = [[]]
    used = 0
    for spec in specs:
        if shards[-1] and used + spec.nbytes > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(spec)
        used += spec.nbytes
    return shards


def write(path: epath.Path, specs: Sequence[Spec], values: Iterator[np.ndarray]) -> None:
    """Writes one file, taking the values one by one in the order of `specs`.

    Raises:
      CheckpointError: a value that does not fit its spec.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        if spec.dtype not in _NAMES:
            raise CheckpointError(
                f"tensor {spec.name} has dtype {spec.dtype}; only {sorted(DTYPES)} can be written"
            )
        header[spec.name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for spec in specs:
            value = next(values)
            if value.shape != spec.shape or value.dtype != spec.dtype:
                raise CheckpointError(
                    f"tensor {spec.name}: got {value.dtype} {value.shape}, planned {spec.dtype} {spec.shape}"
                )
            file.write(memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8)))
            del value  # before the next one is made
