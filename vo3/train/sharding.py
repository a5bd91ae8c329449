"""Where arrays lie: the mesh, parameters by rules of the config, optimiser state as its parameters, batches by rows."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vo3.attention import AttentionMesh
from vo3.train.batch import Batch
from vo3.train.config import AXES, ROW_AXES, ConfigError, mesh_sizes

ParamSharding = Callable[[str, tuple[int, ...]], NamedSharding]

_log = logging.getLogger(__name__)


def make_mesh(config: ml_collections.ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `config.mesh` with the axes (dcn_data, data, fsdp, tensor, context).

    Args:
      config: `mesh` gives the sizes; one may be -1.
      devices: to use; None: all. Devices of a topology that is not there are fine.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or mesh.dcn_data is not the number of their slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(config, len(devices))
    shape = tuple(sizes[axis] for axis in AXES)
    if devices[0].platform != "tpu":
        return Mesh(np.asarray(devices).reshape(shape), AXES)
    # Devices of a topology that is one slice do not number it.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes["dcn_data"] != slices:
        raise ConfigError(
            f"mesh.dcn_data={sizes['dcn_data']}, but the {len(devices)} devices form {slices} slices; set "
            f"--config.mesh.dcn_data={slices}"
        )
    split = {"devices": devices, "allow_split_physical_axes": True}
    if slices > 1:
        slow = (slices, 1, 1, 1, 1)
        array = mesh_utils.create_hybrid_device_mesh((1, *shape[1:]), slow, **split)
    else:
        array = mesh_utils.create_device_mesh(shape, **split)
    return Mesh(array, AXES)


def attention_mesh(mesh: Mesh) -> AttentionMesh | None:
    """How attention is split; None on one device, where the wrapping would only cost."""
    if mesh.size == 1:
        return None
    return AttentionMesh(mesh, batch=ROW_AXES, heads=("tensor",), sequence=("context",))


def param_sharding(mesh: Mesh, rules: Sequence[tuple[str, str]]) -> ParamSharding:
    """(dotted path, shape) -> sharding.

    Args:
      mesh: the devices.
      rules: (regex on the path, axes of the last dimensions). Axes are comma-separated, `a+b` splits a dimension over both,
        `-` leaves it whole; dimensions before (stacked layers) stay whole. The first match wins; without a match a
        parameter lies whole on every device. A dimension that its axes do not divide stays whole, and is logged.
    """
    compiled = [(re.compile(pattern), _axes(spec)) for pattern, spec in rules]

    def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
        axes = next((axes for pattern, axes in compiled if pattern.search(path)), ())
        axes = axes[-len(shape) :] if shape else ()
        spec: list[Any] = [None] * (len(shape) - len(axes))
        for names, size in zip(axes, shape[len(shape) - len(axes) :], strict=True):
            names = tuple(n for n in names if mesh.shape[n] > 1)
            ways = math.prod(mesh.shape[n] for n in names)
            if size % ways:
                _log.warning("%s: a dimension of %d is not split %d ways", path, size, ways)
                names = ()
            spec.append(names or None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return sharding


def _axes(spec: str) -> tuple[tuple[str, ...], ...]:
    return tuple(
        () if part.strip() == "-" else tuple(n.strip() for n in part.split("+"))
        for part in spec.split(",")
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def like_params(tree: Any, shapes: Mapping[str, Any], sharding: ParamSharding, mesh: Mesh) -> Any:
    """Shardings of a tree that holds dicts by parameter path (optimiser state, gradients): as the parameter where the shape
    is its, else whole.
    """

    def one(path: tuple, leaf: Any) -> NamedSharding:
        names = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        name = next((n for n in reversed(names) if n in shapes), None)
        if name is not None and tuple(leaf.shape) == tuple(shapes[name].shape):
            return sharding(name, tuple(leaf.shape))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, tree)


# ---------------------------------------------------------------- batches


def row_axes(mesh: Mesh) -> tuple[str, ...]:
    """Axes of the mesh that split rows."""
    return tuple(axis for axis in ROW_AXES if mesh.shape[axis] > 1)


def row_ways(mesh: Mesh) -> int:
    """Into how many parts rows are split."""
    return math.prod(mesh.shape[axis] for axis in row_axes(mesh))


def batch_shardings(mesh: Mesh, batch: Any) -> Any:
    """A tree of shardings like `batch`: rows over the row axes, where their number allows."""
    ways = row_ways(mesh)

    def rows(x: Any, axis: int = 0) -> NamedSharding:
        if ways == 1 or x.shape[axis] % ways:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, row_axes(mesh)))

    shardings = jax.tree.map(rows, batch)
    if isinstance(batch, Batch):
        shardings = dataclasses.replace(shardings, positions=rows(batch.positions, 1))
    return shardings


def constrain(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Pins an activation [B, L, ...] inside jit: rows to the row axes, the sequence to the context axis, where they divide it."""
    if mesh is None or mesh.size == 1:
        return x
    rows, context = row_axes(mesh), mesh.shape["context"]
    spec = PartitionSpec(
        rows if rows and x.shape[0] % row_ways(mesh) == 0 else None,
        "context" if context > 1 and x.shape[1] % context == 0 else None,
    )
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def process_groups(mesh: Mesh) -> dict[int, int]:
    """Group of each process of the mesh. Processes whose devices hold the same rows are one group; groups count from 0.

    A process's rows need not be neighbours: the device meshes of most TPU slices interleave hosts. `place` gives a process's
    k-th row to the k-th of the places that its devices hold, so rows are only permuted between groups.

    Args:
      mesh: of `make_mesh`.

    Raises:
      ConfigError: rows that two groups share in part, or groups with different numbers of rows.
    """
    ways = row_ways(mesh)
    held: dict[int, set[int]] = {}
    # The row axes are the first of the mesh.
    for row, devices in enumerate(mesh.devices.reshape(ways, -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    blocks = {process: tuple(sorted(rows)) for process, rows in held.items()}
    distinct = sorted(set(blocks.values()))
    if sum(map(len, distinct)) != ways or len(set(map(len, distinct))) > 1:
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        raise ConfigError(
            f"mesh {sizes}: the {len(blocks)} processes hold {len(distinct)} different sets of rows, which overlap or differ "
            "in size, so no process can be told which rows to read; let mesh.tensor * mesh.context divide the devices of a "
            "process or be a multiple of them, or exchange the two"
        )
    return {process: distinct.index(block) for process, block in sorted(blocks.items())}


def row_groups(mesh: Mesh) -> tuple[int, int]:
    """(index, count) of this process's group and of all groups; see `process_groups`.

    Raises:
      ConfigError: see `process_groups`.
    """
    groups = process_groups(mesh)
    return groups[jax.process_index()], max(groups.values()) + 1


def rows_shared(mesh: Mesh) -> bool:
    """Whether several processes hold the same rows: a tensor or context axis spans hosts, which then must feed the same data.

    Raises:
      ConfigError: see `process_groups`.
    """
    groups = process_groups(mesh)
    return len(set(groups.values())) < len(groups)


def refuse_shared_rows(mesh: Mesh) -> None:
    """For programs whose processes make their own rows, as rollouts do.

    Raises:
      ConfigError: several processes hold the same rows; or see `process_groups`.
    """
    if rows_shared(mesh):
        groups = process_groups(mesh)
        raise ConfigError(
            f"mesh.tensor={mesh.shape['tensor']} and mesh.context={mesh.shape['context']} span processes: {len(groups)} "
            f"processes hold {len(set(groups.values()))} sets of rows, but each makes rows of its own; lower them until their "
            "product fits the devices of one process"
        )


def place(batch: Any, mesh: Mesh, *, groups: int = 1) -> Any:
    """The batch on the devices.

    Args:
      batch: numpy. A `Batch` holds all rows, in every process; a `RowBatch`, or any other tree of arrays with rows first, this
        group's rows, as many in each of `groups` groups: in order, they take the places that this process's devices hold.
      mesh: the devices.
      groups: of processes; see `row_groups`.
    """
    if not isinstance(batch, Batch):
        whole = lambda x: jax.ShapeDtypeStruct((x.shape[0] * groups, *x.shape[1:]), x.dtype)
        shardings = batch_shardings(mesh, jax.tree.map(whole, batch))
        return jax.tree.map(
            lambda x, s: jax.make_array_from_process_local_data(s, np.asarray(x), whole(x).shape),
            batch,
            shardings,
        )
    shardings = batch_shardings(mesh, batch)
    if jax.process_count() == 1:
        return jax.device_put(batch, shardings)
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, lambda index: x[index]),
        batch,
        shardings,
    )
