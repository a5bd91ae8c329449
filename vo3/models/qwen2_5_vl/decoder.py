"""The decoder: grouped-query attention with M-RoPE and SwiGLU, layers scanned over stacked parameters."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels.visibility import Visibility
from vo3.attention import AttentionMesh, attention, prepare
from vo3.models.qwen2_5_vl import cache as cache_lib
from vo3.models.qwen2_5_vl import layers, rope
from vo3.models.qwen2_5_vl.cache import KVCache
from vo3.models.qwen2_5_vl.config import TextConfig


class DecoderLayer(nnx.Module):
    """norm, attention, norm, SwiGLU. Projections q, k, v carry biases, o none."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, dtype, param_dtype):
        norm = {"eps": config.rms_norm_eps, "dtype": dtype, "param_dtype": param_dtype}
        options = {
            "stddev": config.initializer_range,
            "rngs": rngs,
            "dtype": dtype,
            "param_dtype": param_dtype,
        }
        dim, head = config.hidden_size, config.head_dim
        self.input_norm = layers.RMSNorm(dim, **norm)
        self.q = layers.Linear(dim, config.num_attention_heads * head, bias=True, **options)
        self.k = layers.Linear(dim, config.num_key_value_heads * head, bias=True, **options)
        self.v = layers.Linear(dim, config.num_key_value_heads * head, bias=True, **options)
        self.o = layers.Linear(config.num_attention_heads * head, dim, bias=False, **options)
        self.post_norm = layers.RMSNorm(dim, **norm)
        self.mlp = layers.GatedMLP(dim, config.intermediate_size, bias=False, **options)
        self.head_dim = head

    def project(self, x: Float[Array, "B L D"], angles) -> tuple[Array, Array, Array]:
        """Rotated queries [B, N, L, H], rotated keys and values [B, K, L, H]."""
        x = self.input_norm(x)

        def split(y: Array) -> Array:
            return y.reshape(*y.shape[:2], -1, self.head_dim).transpose(0, 2, 1, 3)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        return layers.rotate(q, *angles), layers.rotate(k, *angles), v

    def finish(
        self, x: Float[Array, "B L D"], heads: Float[Array, "B N L H"]
    ) -> Float[Array, "B L D"]:
        """What follows attention."""
        x = x + self.o(heads.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))
        return x + self.mlp(self.post_norm(x))


class Decoder(nnx.Module):
    """Embedded tokens to normed hidden states."""

    def __init__(
        self,
        config: TextConfig,
        *,
        rngs: nnx.Rngs,
        dtype,
        param_dtype,
        remat: str = "none",
        unroll: int = 1,
        mesh: AttentionMesh | None = None,
    ):
        self.layers = layers.stack_layers(
            lambda r: DecoderLayer(config, rngs=r, dtype=dtype, param_dtype=param_dtype),
            config.num_hidden_layers,
            rngs,
        )
        self.norm = layers.RMSNorm(
            config.hidden_size, eps=config.rms_norm_eps, dtype=dtype, param_dtype=param_dtype
        )
        self.config = config
        self.remat, self.unroll, self.mesh = remat, unroll, mesh

    def __call__(
        self,
        x: Float[Array, "B L D"],
        positions: Int[Array, "3 B L"],
        visibility: Visibility,
        *,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """Hidden states, and the cache with these tokens appended when one is given."""
        angles = rope.text_angles(positions, self.config)
        graph, state = nnx.split(self.layers)
        scale = self.config.head_dim**-0.5
        mask = functools.partial(
            prepare,
            visibility,
            causal=True,
            q_heads=self.config.num_attention_heads,
            kv_heads=self.config.num_key_value_heads,
            dtype=x.dtype,
            mesh=self.mesh,
        )

        if cache is None:
            own = mask(visibility)

            def body(x: Array, weights: nnx.State) -> tuple[Array, None]:
                layer = nnx.merge(graph, weights)
                q, k, v = layer.project(x, angles)
                return layer.finish(x, attention(q, k, v, own, scale=scale)), None

            x, _ = jax.lax.scan(layers.remat(body, self.remat), x, state, unroll=self.unroll)
            return self.norm(x), None

        slots = cache.slots(x.shape[1])
        seen, length = cache_lib.write_visibility(cache, visibility)
        over_cache = mask(seen)

        # The whole cache travels in the carry and is written in place: as scanned inputs and outputs every layer's
        # slice would be copied for each token.
        def step(carry: tuple[Array, Array, Array], item: tuple[nnx.State, Array]):
            x, keys, values = carry
            weights, index = item
            layer = nnx.merge(graph, weights)
            q, k, v = layer.project(x, angles)
            keys = cache_lib.write_layer(keys, index, slots, k)
            values = cache_lib.write_layer(values, index, slots, v)
            k = jax.lax.dynamic_index_in_dim(keys, index, keepdims=False).astype(q.dtype)
            v = jax.lax.dynamic_index_in_dim(values, index, keepdims=False).astype(q.dtype)
            heads = attention(q, k, v, over_cache, scale=scale)
            return (layer.finish(x, heads), keys, values), None

        indices = jnp.arange(self.config.num_hidden_layers, dtype=jnp.int32)
        (x, keys, values), _ = jax.lax.scan(
            step, (x, cache.k, cache.v), (state, indices), unroll=self.unroll
        )
        cache = dataclasses.replace(cache, k=keys, v=values, visibility=seen, length=length)
        return self.norm(x), cache
