"""The chunked loss on a mesh: every device goes through the chunks of its own rows alone.

Left to the compiler, the output matrix would be gathered for every chunk, and its gradient reduced after every chunk: for a 7B and rows
of 40k tokens nine tenths of all that a step sends. Here it is gathered once before the chunks and its gradient, added up in the
master weights' dtype, is reduced once after them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from vo3.models.qwen2_5_vl import Qwen2_5_VL
from vo3.train.losses import Sums, summed_cross_entropy


def sharded_cross_entropy(
    hidden: Float[Array, "B L D"],
    targets: Int[Array, "B L"],
    weight: Float[Array, "B L"],
    model: Qwen2_5_VL,
    *,
    mesh: Mesh | None,
    axes: Sequence[str],
    **options: Any,
) -> Sums:
    """`summed_cross_entropy` with the model's output matrix, rows split over `axes`.

    Args:
      hidden, targets, weight: see there.
      model: gives the output matrix; other axes may split its vocabulary.
      mesh: the devices; None: one.
      axes: of the mesh that split rows; where they do not divide B the compiler is left to choose.
      **options: of `summed_cross_entropy`.
    """
    sums = by_rows(
        lambda unembed, *rows: jax.tree.map(
            lambda x: x[None], summed_cross_entropy(*rows, unembed, **options)
        ),
        (hidden, targets, weight),
        model,
        mesh=mesh,
        axes=axes,
    )
    return jax.tree.map(functools.partial(jnp.sum, axis=0), sums)


def by_rows(
    body: Callable[..., Any],
    arrays: Sequence[Array],
    model: Qwen2_5_VL,
    *,
    mesh: Mesh | None,
    axes: Sequence[str],
) -> Any:
    """`body(unembed, *arrays)`, every device on its own rows with the whole output matrix, gathered once.

    Args:
      body: gives a tree of arrays whose first axis is that of rows, or of devices.
      arrays: rows first; the first of them are the states that the layers end in.
      model, mesh, axes: see `sharded_cross_entropy`.
    """
    axes = tuple(axis for axis in axes if mesh is not None and mesh.shape[axis] > 1)
    ways = math.prod(mesh.shape[axis] for axis in axes)
    if ways == 1 or arrays[0].shape[0] % ways:
        return body(model.unembed, *arrays)
    tied = model.unembedding is None
    matrix = model.embed.table[...] if tied else model.unembedding.kernel[...]
    letters = "BLD,VD->BLV" if tied else "BLD,DV->BLV"

    def local(matrix: Array, *arrays: Array) -> Any:
        def unembed(states: Array) -> Array:
            # Cast inside the chunk, so that the gradient adds up in the matrix's own dtype.
            return jnp.einsum(
                letters, states, matrix.astype(states.dtype), preferred_element_type=jnp.float32
            )

        return body(unembed, *arrays)

    states, *rest = arrays
    matrix, states = _reduced_first(matrix, states)
    rows = PartitionSpec(axes)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), *[rows] * len(arrays)),
        out_specs=rows,
        axis_names=set(axes),
        # The sums start as constants, which vary over no axis; the specs above are the whole truth.
        check_vma=False,
    )(matrix, states, *rest)


@jax.custom_vjp
def _reduced_first(matrix: Array, states: Array) -> tuple[Array, Array]:
    """Both as they are. On the way back the matrix' gradient is reduced before the states' goes on to the layers: until then every device holds all of it."""
    return matrix, states


def _forward(matrix: Array, states: Array) -> tuple[tuple[Array, Array], None]:
    return (matrix, states), None


def _backward(_: None, gradients: tuple[Array, Array]) -> tuple[Array, Array]:
    return jax.lax.optimization_barrier(gradients)


_reduced_first.defvjp(_forward, _backward)
