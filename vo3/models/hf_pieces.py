"""From the tensors of safetensors files to arrays in their places, one device's piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vo3.models import safetensors_io as st
from vo3.models.hf_table import Entry
from vo3.models.qwen2_5_vl import int8

# Rows of a matrix that are made int8 at once.
INT8_ROWS = 2048


def assemble(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    filled: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """An array in its sharding; each distinct piece is filled once and handed over before the next is begun."""
    pieces: dict[tuple, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        key = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        pieces.setdefault(key, []).append(device)
    arrays = []
    for key, devices in pieces.items():
        value = filled(tuple(slice(*bounds) for bounds in key))
        # The buffer is not touched again, so a device that is the host may keep it instead of a copy.
        arrays += [jax.device_put(value, device) for device in devices]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def fill(
    entry: Entry,
    tensors: dict[str, st.Tensor],
    dtype: np.dtype,
    index: tuple[slice, ...],
) -> np.ndarray:
    """The piece `index` of a parameter."""
    out = _aligned([s.stop - s.start for s in index], dtype)
    if not entry.stacked:
        _read(entry, tensors[entry.theirs], index, out)
        return out
    for place, layer in enumerate(range(index[0].start, index[0].stop)):
        _read(entry, tensors[entry.theirs.format(i=layer)], index[1:], out[place])
    return out


class Int8Pieces:
    """A linear layer's kernel and scales, made from blocks of rows of the file: a row [in] is an output channel."""

    def __init__(self, entry: Entry, tensors: dict[str, st.Tensor], shape: tuple[int, ...]):
        """`shape` is that of the scales."""
        self._entry, self._tensors = entry, tensors
        # Not a number: not known yet. Scales come with the kernel, so that nothing is read twice.
        self._scales = np.full(shape, np.nan, np.float32)

    def kernel(self, index: tuple[slice, ...]) -> np.ndarray:
        """The int8 piece `index`."""
        out = _aligned([s.stop - s.start for s in index], np.dtype(np.int8))
        *layers, inputs, outputs = index
        for place, layer in self._layers(layers):
            for rows in self._blocks(outputs):
                to = out[place][:, rows.start - outputs.start : rows.stop - outputs.start]
                st.copy(self._block(layer, rows)[:, inputs].T, to, transposed=True)
        return out

    def scale(self, index: tuple[slice, ...]) -> np.ndarray:
        """The piece `index` of the scales."""
        *layers, outputs = index
        for _, layer in self._layers(layers):
            for rows in self._blocks(outputs):
                if np.isnan(self._scales[layer][rows]).any():
                    self._block(layer, rows)
        return self._scales[index]

    def _layers(self, layers: Sequence[slice]) -> Iterator[tuple[Any, Any]]:
        """(place in the piece, layer); `...` for what is no stack of layers."""
        yield from enumerate(range(layers[0].start, layers[0].stop)) if layers else [(..., ...)]

    def _blocks(self, outputs: slice) -> Iterator[slice]:
        for start in range(outputs.start, outputs.stop, INT8_ROWS):
            yield slice(start, min(start + INT8_ROWS, outputs.stop))

    def _block(self, layer: Any, rows: slice) -> np.ndarray:
        values = st.read(self._tensors[self._entry.theirs.format(i=layer)], rows)
        values, self._scales[layer][rows] = int8.scaled_rows(values)
        return values


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Memory at a multiple of 64 bytes, which JAX on CPU takes over instead of copying."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _read(entry: Entry, tensor: st.Tensor, index: tuple[slice, ...], out: np.ndarray) -> None:
    """Puts the piece `index` of one layer's parameter, in our form, into `out`; reads only the rows it needs."""
    if entry.form == "same":
        values = st.read(tensor, index[0])[(slice(None), *index[1:])]
    else:
        rows = st.read(tensor, index[1])
        values = rows.reshape(rows.shape[0], -1).T[index[0]]
    st.copy(values, out, transposed=entry.form != "same")
