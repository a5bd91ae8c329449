"""Key-value caches of rollout groups: a prefix that a group's leaves share, and a suffix per leaf.

Every layer has arrays of its own: a layer's slice of one stacked array would be copied for each token before attention reads it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vo3.models.qwen2_5_vl.config import TextConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefixCache:
    """What each group's leaves share. How many slots are in use is the caller's to know.

    Attributes:
      k, v: keys (rotated) and values, one [G, K, M, H] a layer.
    """

    k: tuple[Float[Array, "G K M H"], ...]
    v: tuple[Float[Array, "G K M H"], ...]

    @classmethod
    def empty(cls, config: TextConfig, groups: int, capacity: int, *, dtype: Any) -> PrefixCache:
        """`capacity` slots for each of `groups` groups."""
        return cls(
            *_zeros(config, (groups, config.num_key_value_heads, capacity, config.head_dim), dtype)
        )

    @property
    def capacity(self) -> int:
        """M: slots a group."""
        return self.k[0].shape[2]

    @property
    def groups(self) -> int:
        """G."""
        return self.k[0].shape[0]

    def resize(self, capacity: int) -> PrefixCache:
        """A copy with more slots, or with the first `capacity` of them."""
        return jax.tree.map(lambda x: _resize(x, capacity), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SuffixCache:
    """What each leaf adds. How many slots are in use is the caller's to know.

    Attributes:
      k, v: keys (rotated) and values, one [G, n, K, R, H] a layer.
    """

    k: tuple[Float[Array, "G n K R H"], ...]
    v: tuple[Float[Array, "G n K R H"], ...]

    @classmethod
    def empty(
        cls, config: TextConfig, groups: int, leaves: int, capacity: int, *, dtype: Any
    ) -> SuffixCache:
        """`capacity` slots for each of `groups` x `leaves` leaves."""
        shape = (groups, leaves, config.num_key_value_heads, capacity, config.head_dim)
        return cls(*_zeros(config, shape, dtype))

    @property
    def capacity(self) -> int:
        """R: slots a leaf."""
        return self.k[0].shape[3]

    @property
    def leaves(self) -> int:
        """n: leaves of a group."""
        return self.k[0].shape[1]

    def resize(self, capacity: int) -> SuffixCache:
        """A copy with more slots, or with the first `capacity` of them."""
        return jax.tree.map(lambda x: _resize(x, capacity), self)


def write_prefix(
    stored: Float[Array, "G K M H"], slots: Int[Array, "G L"], new: Float[Array, "G K L H"]
) -> Float[Array, "G K M H"]:
    """`stored` with `new` at `slots` of each group; negative slots are dropped."""
    slots = jnp.where(slots < 0, stored.shape[2], slots)
    # Group by group, so that groups on different devices stay there.
    write = lambda kept, at, x: kept.at[:, at].set(x, mode="drop")
    return jax.vmap(write)(stored, slots, new.astype(stored.dtype))


def write_suffix(
    stored: Float[Array, "G n K R H"],
    leaf: Int[Array, "G L"],
    slots: Int[Array, "G L"],
    new: Float[Array, "G K L H"],
) -> Float[Array, "G n K R H"]:
    """`stored` with `new` at (`leaf`, `slots`) of each group; negative slots are dropped."""
    slots = jnp.where(slots < 0, stored.shape[3], slots)
    update = new.transpose(0, 2, 1, 3).astype(stored.dtype)
    write = lambda kept, which, at, x: kept.at[which, :, at].set(x, mode="drop")
    return jax.vmap(write)(stored, leaf, slots, update)


def _zeros(config: TextConfig, shape: tuple[int, ...], dtype: Any) -> list[tuple[Array, ...]]:
    """Keys and values of every layer, no buffer shared: a donated cache must not hand one over twice."""
    layers = range(config.num_hidden_layers)
    return [tuple(jnp.zeros(shape, dtype) for _ in layers) for _ in range(2)]


def _resize(x: Array, capacity: int) -> Array:
    extra = capacity - x.shape[-2]
    if extra <= 0:
        return x[..., :capacity, :]
    return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, extra), (0, 0)))
