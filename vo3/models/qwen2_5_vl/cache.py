"""Key-value cache with static shapes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.visibility import Visibility, pad
from vo3.models.qwen2_5_vl.config import TextConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, with the visibility of each slot.

    Slots from `length` on are unwritten (enter = leave = -1): nothing sees them, whatever they hold.

    Attributes:
      k, v: keys (rotated) and values, in the layout attention reads.
      visibility: fields [B, S].
      length: slots in use per row; the next tokens are written there.
    """

    k: Float[Array, "layers B K S H"]
    v: Float[Array, "layers B K S H"]
    visibility: Visibility
    length: Int[Array, " B"]

    @classmethod
    def empty(
        cls, config: TextConfig, batch: int, capacity: int, *, dtype: Any = jnp.float32
    ) -> KVCache:
        """An unwritten cache of `capacity` slots a row."""
        shape = (
            config.num_hidden_layers,
            batch,
            config.num_key_value_heads,
            capacity,
            config.head_dim,
        )
        return cls(
            k=jnp.zeros(shape, dtype),
            v=jnp.zeros(shape, dtype),
            # One array per field, never one shared: a donated cache must not hand over a buffer twice.
            visibility=jax.tree.map(jnp.array, Visibility.padding(batch, capacity)),
            length=jnp.zeros((batch,), jnp.int32),
        )

    @property
    def capacity(self) -> int:
        """S: slots a row."""
        return self.k.shape[3]

    @property
    def batch(self) -> int:
        """B: rows."""
        return self.k.shape[1]

    def slots(self, count: int) -> Int[Array, "B L"]:
        """Where the next `count` tokens of each row are written; slots past the capacity are dropped by `write`."""
        return self.length[:, None] + jnp.arange(count, dtype=jnp.int32)[None]

    def rewind(self, length: Int[Array, " B"]) -> KVCache:
        """The cache as it was at `length` [B] slots: later slots become unwritten, a smaller count is kept."""
        length = jnp.minimum(jnp.asarray(length, jnp.int32), self.length)
        kept = jnp.arange(self.capacity, dtype=jnp.int32)[None] < length[:, None]
        vis = self.visibility
        minus = jnp.int32(-1)
        vis = dataclasses.replace(
            vis, enter=jnp.where(kept, vis.enter, minus), leave=jnp.where(kept, vis.leave, minus)
        )
        return dataclasses.replace(self, visibility=vis, length=length)

    def grow(self, capacity: int) -> KVCache:
        """The cache with more slots, new ones unwritten.

        Raises:
          ValueError: `capacity` is below the present one.
        """
        extra = capacity - self.capacity
        if extra < 0:
            raise ValueError(f"a cache of {self.capacity} slots cannot shrink to {capacity}")
        return KVCache(
            k=jnp.pad(self.k, ((0, 0),) * 3 + ((0, extra), (0, 0))),
            v=jnp.pad(self.v, ((0, 0),) * 3 + ((0, extra), (0, 0))),
            visibility=pad(self.visibility, extra),
            length=self.length,
        )


def write_visibility(cache: KVCache, new: Visibility) -> tuple[Visibility, Int[Array, " B"]]:
    """The cache's visibility with `new` [B, L] written at the end, and the new length.

    The length grows up to the last token of `new` that is no padding, so padding at the end of a chunk is
    overwritten by the next chunk and padding inside it is kept.
    """
    slots = cache.slots(new.order.shape[1])
    rows = jnp.arange(slots.shape[0], dtype=jnp.int32)[:, None]
    written = jax.tree.map(
        lambda old, x: old.at[rows, slots].set(x, mode="drop"), cache.visibility, new
    )
    used = jnp.where(new.enter >= 0, jnp.arange(1, slots.shape[1] + 1, dtype=jnp.int32)[None], 0)
    return written, cache.length + jnp.max(used, axis=1)


def write_layer(
    stored: Float[Array, "layers B K S H"],
    layer: Int[Array, ""],
    slots: Int[Array, "B L"],
    new: Float[Array, "B K L H"],
) -> Float[Array, "layers B K S H"]:
    """`stored` with `new` written at `slots` of one layer; slots past the capacity are dropped."""
    rows = jnp.arange(slots.shape[0], dtype=jnp.int32)[:, None]
    update = new.transpose(0, 2, 1, 3).astype(stored.dtype)
    return stored.at[layer, rows, :, slots].set(update, mode="drop", unique_indices=True)
