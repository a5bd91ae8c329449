"""Parameters that lie on several hosts, brought to the memory of one."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from vo3.models.hf_table import table
from vo3.train import processes
from vo3.train.sharding import replicated
from vo3.train.state import Params, Trainable


def gather(run: Trainable, params: Params) -> dict[str, np.ndarray]:
    """All parameters in the memory of the first process's host; the others take part and get none.

    Beside what it holds already, a device needs room for one layer's tensor (a 7B model: at most 2.2 GB, the embedding in f32;
    a stacked kernel would be 7.6 GB, all of it 30 GB).

    Args:
      run: whose mesh and shardings `params` have.
      params: by path, adapters merged.
    """
    stacked = {entry.ours for entry in table(run.model) if entry.stacked}
    whole = jax.jit(_same, out_shardings=replicated(run.mesh))
    gathered: dict[str, np.ndarray] = {}
    for name in sorted(params):
        value = params[name]
        pieces = _layers(value, run.shapes[name].sharding) if name in stacked else [(..., value)]
        if processes.first():
            gathered[name] = np.empty(value.shape, value.dtype)
        for index, piece in pieces:
            # By all processes: pieces that queue up on a device take its memory.
            piece = whole(piece).block_until_ready()
            if processes.first():
                gathered[name][index] = piece.addressable_data(0)
    return gathered


def _layers(
    value: Shaped[Array, "layers *shape"], sharding: NamedSharding
) -> Iterator[tuple[int, Shaped[Array, "*shape"]]]:
    # A program of its own, whose result is spread as the parameter is: fused with the gathering it could come after it.
    place = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    pick = jax.jit(_layer, out_shardings=place)
    for index in range(value.shape[0]):
        yield index, pick(value, index)


def _layer(value: Shaped[Array, "layers *shape"], index: int) -> Shaped[Array, "*shape"]:
    return jax.lax.dynamic_index_in_dim(value, index, keepdims=False)


def _same(value: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    return value
