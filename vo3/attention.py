"""Attention of the models: one call, sharded over a mesh when one is given. It chooses nothing else."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from pallas_kernels import Visibility, splash_attention

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class AttentionMesh:
    """Which axes of a mesh attention is split over. Rows and heads are independent, so nothing is exchanged.

    Attributes:
      mesh: the devices.
      batch: axes that split rows; those the mesh lacks are passed over.
      heads: axes that split heads.
    """

    mesh: Mesh
    batch: tuple[str, ...] = ("replica", "data", "fsdp")
    heads: tuple[str, ...] = ("model", "tensor")


def attention(
    q: Float[Array, "B N L H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    q_vis: Visibility,
    kv_vis: Visibility,
    *,
    causal: bool,
    scale: float,
    mesh: AttentionMesh | None = None,
) -> Float[Array, "B N L H"]:
    """`pallas_kernels.splash_attention`, each device on its own rows and heads.

    Args:
      q, k, v: queries, keys, values.
      q_vis, kv_vis: int32 fields [B, L] and [B, S].
      causal: whether `order` counts.
      scale: factor on the scores.
      mesh: how to shard; None runs on one device, or leaves the choice to the compiler.

    Returns:
      out in q's dtype; a row that sees nothing is zero.
    """
    run = functools.partial(splash_attention, causal=causal, scale=scale)
    if mesh is None:
        return run(q, k, v, q_vis, kv_vis)
    rows = _axes(mesh.mesh, mesh.batch, q.shape[0], "rows")
    heads = _axes(mesh.mesh, mesh.heads, k.shape[1], "kv heads")
    tensor, fields = PartitionSpec(rows, heads), PartitionSpec(rows)
    sharded = jax.shard_map(
        run,
        mesh=mesh.mesh,
        in_specs=(tensor, tensor, tensor, fields, fields),
        out_specs=tensor,
        # Kernels declare no variance over mesh axes; the specs above are the whole truth.
        check_vma=False,
    )
    return sharded(q, k, v, q_vis, kv_vis)


@functools.lru_cache(maxsize=256)
def _axes(mesh: Mesh, names: tuple[str, ...], size: int, what: str) -> tuple[str, ...] | None:
    """The axes of the mesh that split `size`; none, and a log line, when it is no multiple of their product."""
    present = tuple(name for name in names if mesh.shape.get(name, 1) > 1)
    ways = math.prod(mesh.shape[name] for name in present)
    if size % ways == 0:
        return present or None
    _log.warning(
        "attention: %d %s cannot be split %d ways over %s; every device computes all",
        size,
        what,
        ways,
        present,
    )
    return None
