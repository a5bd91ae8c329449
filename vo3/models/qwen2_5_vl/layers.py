"""The pieces both towers are made of: RMSNorm, gated feed-forward, stacked layers under a scan."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

DType = Any


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation; statistics in f32, as the published model."""

    def __init__(self, features: int, *, eps: float, dtype: DType, param_dtype: DType):
        self.scale = nnx.Param(jnp.ones((features,), param_dtype))
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """x / rms(x) * scale, in `dtype`."""
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(self.dtype)
        return x32.astype(self.dtype) * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


class Linear(nnx.Module):
    """y = x @ kernel [in, out] + bias [out], in `dtype`."""

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        *,
        bias: bool,
        stddev: float,
        rngs: nnx.Rngs,
        dtype: DType,
        param_dtype: DType,
    ):
        init = nnx.initializers.normal(stddev)
        self.kernel = nnx.Param(init(rngs.params(), (fan_in, fan_out), param_dtype))
        self.bias = nnx.Param(jnp.zeros((fan_out,), param_dtype)) if bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """The product, in `dtype`."""
        kernel = self.kernel[...].astype(self.dtype)
        # As a matrix: with more axes XLA on CPU transposes both operands of the kernel's gradient, which costs as much
        # as the product itself.
        y = x.astype(self.dtype).reshape(-1, x.shape[-1]) @ kernel
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)[None]
        return y.reshape(*x.shape[:-1], kernel.shape[-1])

    def in_f32(self, x: Float[Array, "B L I"]) -> Float[Array, "B L O"]:
        """The product without the bias, accumulated and returned in f32."""
        kernel = self.kernel[...].astype(self.dtype)
        return jnp.einsum(
            "BLI,IO->BLO", x.astype(self.dtype), kernel, preferred_element_type=jnp.float32
        )


class GatedMLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, features: int, hidden: int, *, bias: bool, **options: Any):
        self.gate = Linear(features, hidden, bias=bias, **options)
        self.up = Linear(features, hidden, bias=bias, **options)
        self.down = Linear(hidden, features, bias=bias, **options)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """The block's output, without the residual."""
        rows = x.reshape(-1, x.shape[-1])
        return self.down(gated(self.gate(rows), self.up(rows))).reshape(x.shape)


@jax.custom_vjp
def gated(gate: Float[Array, "*B F"], up: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """silu(gate) * up. The backward pass keeps the two arguments only and computes the sigmoid again: less memory, and
    on CPU less time than reading back what was kept.
    """
    return jax.nn.silu(gate) * up


def _gated_forward(gate, up):
    return gated(gate, up), (gate, up)


def _gated_backward(saved, gradient):
    gate, up = saved
    sigmoid = jax.nn.sigmoid(gate)
    scaled = gate * sigmoid
    # d silu(g) / dg = s + g s (1 - s)
    return gradient * up * (sigmoid + scaled - scaled * sigmoid), gradient * scaled


gated.defvjp(_gated_forward, _gated_backward)


def stack_layers(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules as one whose parameters carry a leading layer axis."""
    return nnx.split_rngs(splits=count)(nnx.vmap(make, in_axes=0, out_axes=0, axis_size=count))(
        rngs
    )


def remat(body: Callable, policy: str) -> Callable:
    """`body` of a layer scan under the named recomputation policy (`Qwen2_5_VLConfig.remat`)."""
    if policy == "none":
        return body
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_saveable,
        "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    # Inside a scan the loop itself keeps the recomputation from being merged with the forward pass.
    return functools.partial(jax.checkpoint, policy=policies[policy], prevent_cse=False)(body)


def rotate(
    x: Float[Array, "B N L H"], cos: Float[Array, "B 1 L h"], sin: Float[Array, "B 1 L h"]
) -> Float[Array, "B N L H"]:
    """Rotary embedding in f32 over the two halves of H (h = H / 2); returns x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return out.astype(x.dtype)
