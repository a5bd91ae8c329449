"""Attention of the models: masks prepared once per step, one call, sharded over a mesh when one is given. It chooses nothing else."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import Plan, Visibility, attention_plan, prefix_decode, splash_attention

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class AttentionMesh:
    """Which axes of a mesh attention is split over; those the mesh lacks are passed over.

    Rows and heads are independent: splitting them exchanges nothing. A split sequence gathers keys and values: each device
    computes its queries against all of them. For even work under a causal mask lay the tokens out by `striping`.

    Attributes:
      mesh: the devices.
      batch: axes that split rows.
      heads: axes that split heads. Where they are more than the kv heads, neighbours share one and each keeps a copy.
      sequence: axes that split the sequence (context parallelism).
    """

    mesh: Mesh
    batch: tuple[str, ...] = ("replica", "dcn_data", "data", "fsdp")
    heads: tuple[str, ...] = ("model", "tensor")
    sequence: tuple[str, ...] = ("context",)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """What the layers that share a mask share; `prepare` makes it once per step, outside the scan over layers.

    Attributes:
      q_vis, kv_vis: fields [B, L] and [B, S].
      plan: the block schedule, None where the implementation takes none. On a mesh every array in it carries one axis more,
        in front: one entry per shard of rows and sequence.
      causal: whether `order` counts.
      mesh: how attention is split.
    """

    q_vis: Visibility
    kv_vis: Visibility
    plan: Plan | None
    causal: bool = dataclasses.field(metadata={"static": True})
    mesh: AttentionMesh | None = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EitherMask:
    """One of two masks, chosen by a traced value: layers of both kinds in one scan.

    Attributes:
      which: take `yes`, else `no`.
      yes, no: masks of the same tokens.
    """

    which: Bool[Array, ""]
    yes: Mask
    no: Mask


def prepare(
    q_vis: Visibility,
    kv_vis: Visibility,
    *,
    causal: bool,
    q_heads: int,
    kv_heads: int,
    dtype: jnp.dtype,
    reach: int | None = None,
    mesh: AttentionMesh | None = None,
) -> Mask:
    """The mask that `attention` takes, with the block schedule of each device.

    Args:
      q_vis, kv_vis: int32 fields [B, L] and [B, S].
      causal: whether `order` counts.
      q_heads, kv_heads, dtype: of the calls that will use it.
      reach: a promise: what a query sees stands less than this many places from it, as in windows; None: no promise.
      mesh: how to shard; None runs on one device, or leaves the choice to the compiler.
    """
    build = functools.partial(attention_plan, causal=causal, dtype=dtype, reach=reach)
    if mesh is None:
        plan = build(q_vis, kv_vis, q_heads=q_heads, kv_heads=kv_heads)
        return Mask(q_vis, kv_vis, plan, causal, mesh)
    split = _split(mesh, q_vis.order.shape[0], q_heads, kv_heads, q_vis.order.shape[-1])

    def local(q_vis: Visibility, kv_vis: Visibility) -> Plan | None:
        plan = build(q_vis, kv_vis, q_heads=split.q_heads, kv_heads=split.kv_heads)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], plan)

    plan = jax.shard_map(
        local,
        mesh=mesh.mesh,
        in_specs=(PartitionSpec(split.rows, split.sequence), PartitionSpec(split.rows)),
        out_specs=PartitionSpec((*(split.rows or ()), *(split.sequence or ())) or None),
        check_vma=False,
    )(q_vis, kv_vis)
    return Mask(q_vis, kv_vis, plan, causal, mesh)


def attention(
    q: Float[Array, "B N L H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Mask | EitherMask,
    *,
    scale: float,
    return_lse: bool = False,
) -> Float[Array, "B N L H"] | tuple[Float[Array, "B N L H"], Float[Array, "B N L"]]:
    """`pallas_kernels.splash_attention`, each device on its own rows, heads and queries.

    Args:
      q, k, v: queries, keys, values.
      mask: of these tokens and head counts, as `prepare` made it.
      scale: factor on the scores.
      return_lse: also return the log-sum-exp of the scores, f32.

    Returns:
      out in q's dtype [, lse]; a row that sees nothing is zero, its lse -inf.
    """
    if isinstance(mask, EitherMask):
        call = lambda chosen: (
            lambda q, k, v: attention(q, k, v, chosen, scale=scale, return_lse=return_lse)
        )
        if mask.yes.plan is None and mask.no.plan is None:
            pick = lambda yes, no: jnp.where(mask.which, yes, no)
            return call(jax.tree.map(pick, mask.yes, mask.no))(q, k, v)
        # Schedules of different block sizes are different kernels.
        return jax.lax.cond(mask.which, call(mask.yes), call(mask.no), q, k, v)
    run = functools.partial(
        splash_attention, causal=mask.causal, scale=scale, return_lse=return_lse
    )
    if mask.mesh is None:
        return run(q, k, v, mask.q_vis, mask.kv_vis, plan=mask.plan)
    mesh = mask.mesh.mesh
    split = _split(mask.mesh, q.shape[0], q.shape[1], k.shape[1], q.shape[2])
    keys_split = split.sequence if _divides(mesh, split.sequence, k.shape[2]) else None

    def local(q, k, v, q_vis, kv_vis, plan):
        k, v = split.own_heads(k), split.own_heads(v)
        if keys_split:
            gather = functools.partial(jax.lax.all_gather, axis_name=keys_split, axis=2, tiled=True)
            k, v = gather(k), gather(v)
        return run(q, k, v, q_vis, kv_vis, plan=jax.tree.map(lambda x: x[0], plan))

    rows, kv_axes = split.rows, None if split.shared else split.heads
    keys = PartitionSpec(rows, kv_axes, keys_split)
    shards = PartitionSpec((*(rows or ()), *(split.sequence or ())) or None)
    queries = PartitionSpec(rows, split.heads, split.sequence)
    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(
            queries,
            keys,
            keys,
            PartitionSpec(rows, split.sequence),
            PartitionSpec(rows),
            shards,
        ),
        out_specs=(queries, queries) if return_lse else queries,
        # Kernels declare no variance over mesh axes; the specs above are the whole truth.
        check_vma=False,
    )
    return sharded(q, k, v, mask.q_vis, mask.kv_vis, mask.plan)


def leaf_attention(
    q: Float[Array, "G n N H"],
    prefix_k: Float[Array, "G K M H"],
    prefix_v: Float[Array, "G K M H"],
    suffix_k: Float[Array, "G n K R H"],
    suffix_v: Float[Array, "G n K R H"],
    *,
    prefix_length: Int[Array, " G"],
    suffix_length: Int[Array, "G n"],
    scale: float,
    mesh: AttentionMesh | None = None,
) -> Float[Array, "G n N H"]:
    """`pallas_kernels.prefix_decode`, each device on its own groups and heads.

    Args:
      q: one query per leaf and head.
      prefix_k, prefix_v, suffix_k, suffix_v: the caches; another dtype than q's is cast.
      prefix_length, suffix_length: slots in use.
      scale: factor on the scores.
      mesh: how to shard; None: not.

    Returns:
      out in q's dtype.
    """
    caches = [x.astype(q.dtype) for x in (prefix_k, prefix_v, suffix_k, suffix_v)]

    def run(q, *arrays):
        *kv, prefix_length, suffix_length = arrays
        return prefix_decode(
            q, *kv, prefix_length=prefix_length, suffix_length=suffix_length, scale=scale
        )

    if mesh is None:
        return run(q, *caches, prefix_length, suffix_length)
    split = _split(mesh, q.shape[0], q.shape[2], prefix_k.shape[1], 1)

    def local(q, prefix_k, prefix_v, suffix_k, suffix_v, *lengths):
        prefix = [split.own_heads(x) for x in (prefix_k, prefix_v)]
        suffix = [split.own_heads(x, axis=2) for x in (suffix_k, suffix_v)]
        return run(q, *prefix, *suffix, *lengths)

    rows, kv_axes = split.rows, None if split.shared else split.heads
    prefix, suffix = PartitionSpec(rows, kv_axes), PartitionSpec(rows, None, kv_axes)
    queries, lengths = PartitionSpec(rows, None, split.heads), PartitionSpec(rows)
    sharded = jax.shard_map(
        local,
        mesh=mesh.mesh,
        in_specs=(queries, prefix, prefix, suffix, suffix, lengths, lengths),
        out_specs=queries,
        check_vma=False,
    )
    return sharded(q, *caches, prefix_length, suffix_length)


def striping(length: int, shards: int, *, run: int = 512) -> Int[np.ndarray, " L"]:
    """Where each place of a striped row comes from: `x[..., striping(...)]` is the row to split over `shards` devices.

    Runs of `run` tokens are dealt out to the devices in turn, forth and back, so that under a causal mask every device has as many visible
    pairs. A run is at least a block: token-level shuffles are exact too, but leave no block empty. Everything that goes with
    a token moves along (ids, positions, labels, Visibility, whose `order` stays what it was).

    Args:
      length: of the row, a multiple of `shards` and of `run`.
      shards: devices along the sequence.
      run: tokens per run.

    Returns:
      a permutation, int32; its inverse is `np.argsort` of it.

    Raises:
      ValueError: the row cannot be cut that way.
    """
    if min(length, shards, run) < 1 or length % (shards * run):
        raise ValueError(
            f"a row of {length} tokens cannot be dealt out to {shards} devices in runs of {run}; wanted a multiple of"
            f" {shards * run}, or shorter runs"
        )
    turns = np.arange(length // run, dtype=np.int32).reshape(-1, shards)
    turns[1::2] = turns[1::2, ::-1]
    starts = turns.T.reshape(-1, 1) * np.int32(run)
    return (starts + np.arange(run, dtype=np.int32)).reshape(-1)


@dataclasses.dataclass(frozen=True)
class _Split:
    """How one call is laid out: mesh axes (None: whole) and what each device has of the heads.

    Attributes:
      rows, heads, sequence: axes that split them.
      q_heads, kv_heads: on one device.
      shared: several devices use the same kv head: each is handed all of them and keeps its own.
      ways: devices along `heads`.
      all_kv_heads: of the whole call.
    """

    rows: tuple[str, ...] | None
    heads: tuple[str, ...] | None
    sequence: tuple[str, ...] | None
    q_heads: int
    kv_heads: int
    shared: bool
    ways: int
    all_kv_heads: int

    def own_heads(self, x: Float[Array, "..."], *, axis: int = 1) -> Float[Array, "..."]:
        """The kv head, on `axis`, that this device's query heads read, where it was handed all."""
        if not self.shared:
            return x
        place = jax.lax.axis_index(self.heads) * np.int32(self.all_kv_heads)
        return jax.lax.dynamic_slice_in_dim(
            x, jax.lax.div(place, np.int32(self.ways)), 1, axis=axis
        )


@functools.lru_cache(maxsize=256)
def _split(mesh: AttentionMesh, rows: int, q_heads: int, kv_heads: int, length: int) -> _Split:
    """The layout of a call; what cannot be split is computed by every device, with a log line."""
    axes = functools.partial(_axes, mesh.mesh)
    sequence = axes(mesh.sequence, length, "queries")
    row_axes = axes(mesh.batch, rows, "rows")
    ways = _ways(mesh.mesh, mesh.heads)
    shared = kv_heads % ways != 0 and ways % kv_heads == 0 and q_heads % ways == 0
    heads = axes(mesh.heads, ways if shared else kv_heads, "kv heads")
    if heads is None:
        return _Split(row_axes, None, sequence, q_heads, kv_heads, False, 1, kv_heads)
    mine = 1 if shared else kv_heads // ways
    return _Split(row_axes, heads, sequence, q_heads // ways, mine, shared, ways, kv_heads)


def _ways(mesh: Mesh, names: tuple[str, ...]) -> int:
    return math.prod(mesh.shape.get(name, 1) for name in names)


def _divides(mesh: Mesh, names: tuple[str, ...] | None, size: int) -> bool:
    return size % _ways(mesh, names or ()) == 0


def _axes(mesh: Mesh, names: tuple[str, ...], size: int, what: str) -> tuple[str, ...] | None:
    """The axes of the mesh that split `size`; none, and a log line, when it is no multiple of their product."""
    present = tuple(name for name in names if mesh.shape.get(name, 1) > 1)
    ways = _ways(mesh, present)
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
