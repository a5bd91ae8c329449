"""Where the arrays of groups lie: on one device, on a mesh, or on a mesh that several processes share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from vo3.models.qwen2_5_vl.config import TextConfig
from vo3.models.qwen2_5_vl.group_cache import PrefixCache, SuffixCache
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.rollout.sampler import Drawn


@dataclasses.dataclass
class GroupState:
    """What a batch of groups keeps on the device.

    Attributes:
      prefix, suffix: caches.
      drawn: tokens drawn last, G * n of them, a group's leaves side by side.
      features: of pictures, until their tokens are prefilled.
    """

    prefix: PrefixCache
    suffix: SuffixCache
    drawn: Drawn
    features: Float[Array, "Z F D"]


@dataclasses.dataclass(frozen=True)
class GroupPlaces:
    """Layouts. Rows (groups, shards, leaves) are split over the mesh's row axes, heads where attention computes them.

    Attributes:
      mesh: None on one device.
      kinds: sharding by kind of array: `rows`, `prefix`, `suffix`.
      processes: that share the mesh.
      shards: row shards of this process.
      groups: of this process.
    """

    mesh: Mesh | None
    kinds: dict[str, NamedSharding]
    processes: int
    shards: int
    groups: int

    @classmethod
    def of(cls, model: Qwen2_5_VL, groups: int) -> GroupPlaces:
        """The layouts of a model for `groups` groups in this process.

        Raises:
          ValueError: the groups cannot be dealt out to the mesh's row shards.
        """
        split = model.decoder.mesh
        if split is None:
            return cls(None, {}, 1, 1, groups)
        mesh = split.mesh
        rows = tuple(name for name in split.batch if mesh.shape.get(name, 1) > 1)
        heads = tuple(name for name in split.heads if mesh.shape.get(name, 1) > 1)
        ways = lambda names: math.prod(mesh.shape[name] for name in names)
        processes = len({device.process_index for device in mesh.devices.flat})
        all_shards = ways(rows)
        if all_shards % processes or groups % (all_shards // processes):
            raise ValueError(
                f"{groups} groups in each of {processes} processes cannot be dealt out to {all_shards} row shards of the mesh "
                f"{dict(mesh.shape)}; choose slots as a multiple of {max(1, all_shards // processes)}, and row axes that "
                "split the processes"
            )
        kv_heads = model.config.text.num_key_value_heads
        over = heads if heads and kv_heads % ways(heads) == 0 else None
        spec = lambda *parts: NamedSharding(mesh, PartitionSpec(*parts))
        row = rows or None
        kinds = {"rows": spec(row), "prefix": spec(row, over), "suffix": spec(row, None, over)}
        return cls(mesh, kinds, processes, all_shards // processes, groups)

    @property
    def shared(self) -> bool:
        """Whether other processes take part, so that programs run in lockstep."""
        return self.processes > 1

    def jit(self, body: Callable, out: tuple[str, ...], **options: Any) -> Callable:
        """A jitted `body` whose results lie as their kinds say: another layout would be another program for the next one."""
        if self.mesh is not None:
            shardings = tuple(self.kinds[name] for name in out)
            options["out_shardings"] = shardings if len(shardings) > 1 else shardings[0]
        return jax.jit(body, **options)

    def put(self, x: np.ndarray) -> Array | np.ndarray:
        """This process's rows as a part of everybody's."""
        if self.mesh is None:
            return x
        return jax.make_array_from_process_local_data(self.kinds["rows"], np.asarray(x))

    def local(self, x: Array) -> np.ndarray:
        """This process's rows of an array of kind `rows`."""
        if x.is_fully_addressable:
            return np.asarray(x)
        parts = {(shard.index[0].start or 0): shard.data for shard in x.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    def empty(
        self, config: TextConfig, leaves: int, prefix: int, suffix: int, features: int, dtype: Any
    ) -> GroupState:
        """Unwritten caches of these capacities, room for `features` features a shard, and nothing drawn."""
        parts = self._parts(config, leaves, prefix, suffix, features, dtype)
        if self.mesh is None:
            return GroupState(**{name: body() for name, (_, body) in parts.items()})
        # Made where they lie: a cache may be larger than one device.
        make = lambda kind, body: jax.jit(body, out_shardings=self.kinds[kind])()
        return GroupState(**{name: make(*part) for name, part in parts.items()})

    def abstract(
        self, config: TextConfig, leaves: int, prefix: int, suffix: int, features: int, dtype: Any
    ) -> GroupState:
        """Shapes, types and layouts of `empty`."""
        parts = self._parts(config, leaves, prefix, suffix, features, dtype)
        return GroupState(
            **{
                name: jax.tree.map(lambda x, k=kind: self._laid(x, k), jax.eval_shape(body))
                for name, (kind, body) in parts.items()
            }
        )

    def abstract_rows(self, x: np.ndarray) -> jax.ShapeDtypeStruct:
        """Shape, type and layout of `put(x)`."""
        shape = (x.shape[0] * self.processes, *x.shape[1:])
        return self._laid(jax.ShapeDtypeStruct(shape, x.dtype), "rows")

    def _laid(self, x: jax.ShapeDtypeStruct, kind: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.kinds.get(kind))

    def _parts(self, config, leaves, prefix, suffix, features, dtype) -> dict[str, tuple]:
        """Kind and maker of each field of the state."""
        groups = self.groups * self.processes

        def drawn() -> Drawn:
            zero = lambda kind: jnp.zeros(groups * leaves, kind)
            ints = [zero(jnp.int32) for _ in range(3)]
            return Drawn(ints[0], zero(jnp.float32), ints[1], ints[2], zero(jnp.uint32), zero(bool))

        pictures = (self.shards * self.processes, features, config.hidden_size)
        return {
            "prefix": ("prefix", lambda: PrefixCache.empty(config, groups, prefix, dtype=dtype)),
            "suffix": (
                "suffix",
                lambda: SuffixCache.empty(config, groups, leaves, suffix, dtype=dtype),
            ),
            "drawn": ("rows", drawn),
            "features": ("rows", lambda: jnp.zeros(pictures, dtype)),
        }
