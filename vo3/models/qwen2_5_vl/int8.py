"""Weight-only int8: the decoder's matrices and the output matrix, one scale for each output channel.

Symmetric, by the largest magnitude (`qwix.quantize`). Activations, biases, norms, the embedding and the vision tower stay as they
are: of the 7B's 8.3 billion weights 7.1 become one byte each. qwix would multiply the weights by their scales before the product; here
the product's columns are multiplied, which is as many operations per token as there are outputs, not weights.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int8

from vo3.models.qwen2_5_vl.layers import Linear


class QwixMissing(ImportError):
    """The quantisation library is not installed; the message says how."""


Scaled = tuple[Int8[Array, "*B I O"], Float[Array, "*B O"]]


class Int8Linear(Linear):
    """A `Linear` whose kernel is int8.

    Attributes:
      kernel: int8 [layers, in, out].
      scale: f32 [layers, out]; column o of the kernel that is meant is kernel[:, o] * scale[o].
      bias, dtype: as they were.
    """

    def __init__(self, linear: Linear):
        kernel, scale = scaled(linear.kernel[...])
        self.kernel, self.scale = nnx.Param(kernel), nnx.Param(scale)
        self.bias, self.dtype = linear.bias, linear.dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """The product, in `dtype`."""
        y = self.in_f32(x.reshape(1, -1, x.shape[-1]))[0]
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)[None]
        return y.astype(self.dtype).reshape(*x.shape[:-1], y.shape[-1])

    def in_f32(self, x: Float[Array, "B L I"]) -> Float[Array, "B L O"]:
        """The product without the bias, in f32."""
        return super().in_f32(x) * self.scale[...][None, None]


def scaled(kernel: Float[Array, "*B I O"]) -> Scaled:
    """The int8 values and the scales of a kernel."""
    channels = tuple(axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2)
    made = qwix().quantize(kernel.astype(jnp.float32), jnp.int8, channelwise_axes=channels)
    return made.qvalue, made.scale.squeeze(-2)


def scaled_rows(rows: np.ndarray) -> tuple[Int8[np.ndarray, "O I"], Float[np.ndarray, " O"]]:
    """The same of the rows [out, in] of a file, computed on the host."""
    with jax.default_device(_host()):
        values, scale = _scaled_rows(rows)
    return np.asarray(values), np.asarray(scale)


@jax.jit
def _scaled_rows(rows: Float[Array, "O I"]) -> tuple[Array, Array]:
    values, scale = scaled(rows.T)
    return values.T, scale


@functools.cache
def _host() -> jax.Device | None:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
        return None


def quantize_decoder(model: Any) -> None:
    """Replaces the decoder's linear layers and the output matrix, in place. Tied embeddings stay as they are."""
    for _, module in list(nnx.iter_modules(model.decoder)):
        for name, child in list(vars(module).items()):
            if type(child) is Linear:
                setattr(module, name, Int8Linear(child))
    if model.unembedding is not None:
        model.unembedding = Int8Linear(model.unembedding)


def qwix() -> Any:
    """The quantisation library, imported when it is needed.

    Raises:
      QwixMissing: it is not installed.
    """
    try:
        import qwix
    except ImportError as error:
        raise QwixMissing(
            "int8 weights need qwix: pip install -e '.[int8]' in the checkout of vo3"
        ) from error
    return qwix
