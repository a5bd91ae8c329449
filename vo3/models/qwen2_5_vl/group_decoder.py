"""The decoder over groups: a prefix is computed once for all leaves of its group and never copied.

    extend_prefix   tokens of the prefix, one row a group
    extend_leaves   new tokens of any leaves of a group as one row; each sees the prefix and what its own leaf has before it
    decode_leaves   one token of every leaf

Layers are unrolled, so that each works on arrays of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.prefix_decode.merge import merge
from pallas_kernels.visibility import Visibility
from vo3.attention import attention, leaf_attention, prepare
from vo3.models.qwen2_5_vl import rope
from vo3.models.qwen2_5_vl.decoder import Decoder
from vo3.models.qwen2_5_vl.group_cache import PrefixCache, SuffixCache, write_prefix, write_suffix


def extend_prefix(
    decoder: Decoder,
    x: Float[Array, "G L D"],
    positions: Int[Array, "3 G L"],
    slots: Int[Array, "G L"],
    prefix: PrefixCache,
) -> tuple[Float[Array, "G L D"], PrefixCache]:
    """Appends tokens to prefixes.

    Args:
      decoder: of the model.
      x: embedded tokens.
      positions: M-RoPE positions.
      slots: where each token stands in its prefix, -1 for padding; every slot before a token's is in use.
      prefix: of the groups.

    Returns:
      normed hidden states, and the prefix with the tokens in it.
    """
    used = jnp.max(slots, axis=1, keepdims=True)
    mask = _mask(decoder, x.dtype)(
        Visibility.document(slots, slots >= 0), _slots(prefix.capacity, used), causal=True
    )
    scale = decoder.config.head_dim**-0.5

    def attend(layer: int, q, k, v, keys, values):
        keys, values = write_prefix(keys, slots, k), write_prefix(values, slots, v)
        return attention(q, keys, values, mask, scale=scale), keys, values

    x, k, v = _layers(decoder, x, positions, attend, prefix.k, prefix.v)
    return x, PrefixCache(k, v)


def extend_leaves(
    decoder: Decoder,
    x: Float[Array, "G L D"],
    positions: Int[Array, "3 G L"],
    leaf: Int[Array, "G L"],
    slots: Int[Array, "G L"],
    prefix: PrefixCache,
    prefix_length: Int[Array, " G"],
    suffix: SuffixCache,
) -> tuple[Float[Array, "G L D"], SuffixCache]:
    """Appends tokens to leaves: a tree row of queries over [prefix | suffixes], joined by log-sum-exp.

    Args:
      decoder: of the model.
      x: embedded tokens, those of one leaf in order.
      positions: M-RoPE positions.
      leaf: which leaf of its group each token belongs to.
      slots: where it stands in that leaf's suffix, -1 for padding; every slot before it is in use.
      prefix: of the groups.
      prefix_length: slots of it in use.
      suffix: of the leaves.

    Returns:
      normed hidden states, and the suffixes with the tokens in them.
    """
    groups, leaves, capacity = x.shape[0], suffix.leaves, suffix.capacity
    mask = _mask(decoder, x.dtype)
    live = slots >= 0
    over_prefix = mask(
        Visibility.document(jnp.zeros_like(slots), live),
        _slots(prefix.capacity, prefix_length[:, None] - 1),
        causal=False,
    )
    # Leaf i's interval is [i, i + 1); its last slot in use is the largest one written here.
    mine = leaf[:, None] == jnp.arange(leaves, dtype=jnp.int32)[None, :, None]
    used = jnp.max(jnp.where(mine, slots[:, None], -1), axis=2)
    own = _slots(capacity, used.reshape(-1, 1))
    branch = jnp.tile(jnp.arange(leaves, dtype=jnp.int32), groups)[:, None]
    own = jax.tree.map(
        lambda field: field.reshape(groups, leaves * capacity), own.on_branches(branch)
    )
    over_suffix = mask(Visibility.document(slots, live).on_branches(leaf), own, causal=True)
    scale = decoder.config.head_dim**-0.5
    flat = lambda y: y.swapaxes(1, 2).reshape(groups, -1, leaves * capacity, y.shape[-1])

    def attend(layer: int, q, k, v, keys, values):
        keys, values = write_suffix(keys, leaf, slots, k), write_suffix(values, leaf, slots, v)
        call = functools.partial(attention, scale=scale, return_lse=True)
        out, _ = merge(
            *_f32(call(q, prefix.k[layer], prefix.v[layer], over_prefix)),
            *_f32(call(q, flat(keys), flat(values), over_suffix)),
        )
        return out.astype(q.dtype), keys, values

    x, k, v = _layers(decoder, x, positions, attend, suffix.k, suffix.v)
    return x, SuffixCache(k, v)


def decode_leaves(
    decoder: Decoder,
    x: Float[Array, "G n D"],
    positions: Int[Array, "3 G n"],
    active: Bool[Array, "G n"],
    prefix: PrefixCache,
    prefix_length: Int[Array, " G"],
    suffix: SuffixCache,
    suffix_length: Int[Array, "G n"],
) -> tuple[Float[Array, "G n D"], SuffixCache]:
    """One token of every active leaf.

    Args:
      decoder: of the model.
      x: embedded tokens.
      positions: M-RoPE positions.
      active: leaves that have a token; the others' caches stay as they are, and their hidden states mean nothing.
      prefix, prefix_length: of the groups.
      suffix, suffix_length: of the leaves; slots in use before the token.

    Returns:
      normed hidden states, and the suffixes with the tokens in them.
    """
    leaf = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    slots = jnp.where(active, suffix_length, -1)
    length = suffix_length + active.astype(jnp.int32)
    scale = decoder.config.head_dim**-0.5

    def attend(layer: int, q, k, v, keys, values):
        keys, values = write_suffix(keys, leaf, slots, k), write_suffix(values, leaf, slots, v)
        out = leaf_attention(
            q.swapaxes(1, 2),
            prefix.k[layer],
            prefix.v[layer],
            keys,
            values,
            prefix_length=prefix_length,
            suffix_length=length,
            scale=scale,
            mesh=decoder.mesh,
        )
        return out.swapaxes(1, 2), keys, values

    x, k, v = _layers(decoder, x, positions, attend, suffix.k, suffix.v)
    return x, SuffixCache(k, v)


def _layers(
    decoder: Decoder, x: Array, positions: Array, attend: Callable, keys: tuple, values: tuple
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """Every layer in turn: hidden states, and the cache's arrays as `attend` leaves them."""
    angles = rope.text_angles(positions, decoder.config)
    graph, state = nnx.split(decoder.layers)
    new_keys, new_values = [], []
    for index in range(decoder.config.num_hidden_layers):
        layer = nnx.merge(graph, jax.tree.map(lambda w, at=index: w[at], state))
        q, k, v = layer.project(x, angles)
        # The cache may hold another type than the computation.
        heads, written_k, written_v = attend(index, q, k, v, keys[index], values[index])
        x = layer.finish(x, heads)
        new_keys.append(written_k)
        new_values.append(written_v)
    return decoder.norm(x), tuple(new_keys), tuple(new_values)


def _mask(decoder: Decoder, dtype) -> Callable:
    return functools.partial(
        prepare,
        q_heads=decoder.config.num_attention_heads,
        kv_heads=decoder.config.num_key_value_heads,
        dtype=dtype,
        mesh=decoder.mesh,
    )


def _slots(capacity: int, last: Int[Array, "B 1"]) -> Visibility:
    """Fields [B, capacity] of a cache's slots, in use up to and with `last`."""
    index = jnp.arange(capacity, dtype=jnp.int32)[None]
    return Visibility.document(jnp.broadcast_to(index, (last.shape[0], capacity)), index <= last)


def _f32(pair: tuple[Array, Array]) -> tuple[Array, Array]:
    out, lse = pair
    return out.astype(jnp.float32), lse.astype(jnp.float32)
