"""Low-rank adapters (LoRA, Hu et al. 2021): y = x W + (alpha / rank) x A B, with W frozen.

Our own few lines, because qwix (0.1.8, flax 0.12.8) makes its adapters while the model is called: inside our scan over stacked
layers that changes the scanned tree, and the call ends in an IndexError. Here a linear layer is replaced before the scan, and
its adapters carry the layer axis as its kernel does.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vo3.models.qwen2_5_vl import Qwen2_5_VL
from vo3.models.qwen2_5_vl.layers import Linear

# Adapters by the last part of their path.
ADAPTERS = re.compile(r"\.lora_[ab]$")


class LoraLinear(Linear):
    """A `Linear` and its adapters, over the same kernel and bias.

    Attributes:
      lora_a: [layers, in, rank], normal with variance 1 / in.
      lora_b: [layers, rank, out], zeros: training starts from the model as it is.
      scale: alpha / rank.
    """

    def __init__(
        self, linear: Linear, *, rank: int, alpha: float, rngs: nnx.Rngs, param_dtype: Any
    ):
        self.kernel, self.bias, self.dtype = linear.kernel, linear.bias, linear.dtype
        *stack, fan_in, fan_out = linear.kernel[...].shape
        first = jax.random.normal(rngs.params(), (*stack, fan_in, rank), jnp.float32) * fan_in**-0.5
        self.lora_a = nnx.Param(first.astype(param_dtype))
        self.lora_b = nnx.Param(jnp.zeros((*stack, rank, fan_out), param_dtype))
        self.scale = alpha / rank

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """The product, in `dtype`."""
        y = super().__call__(x)
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        low = (rows @ self.lora_a[...].astype(self.dtype)) @ self.lora_b[...].astype(self.dtype)
        return y + (low * jnp.asarray(self.scale, self.dtype)).reshape(y.shape)


def add_adapters(
    model: Qwen2_5_VL, *, rank: int, alpha: float, targets: str, rngs: nnx.Rngs, param_dtype: Any
) -> None:
    """Replaces the linear layers whose kernel's dotted path matches `targets`, in place.

    Raises:
      ValueError: nothing matches.
    """
    pattern, found = re.compile(targets), 0
    # Listed first: the walk must not see what it replaces.
    for path, module in list(nnx.iter_modules(model)):
        for name, child in list(vars(module).items()):
            dotted = ".".join(map(str, (*path, name)))
            if type(child) is Linear and pattern.search(f"{dotted}.kernel"):
                options = {"rank": rank, "alpha": alpha, "rngs": rngs, "param_dtype": param_dtype}
                setattr(module, name, LoraLinear(child, **options))
                found += 1
    if not found:
        raise ValueError(f"lora.targets={targets!r} matches no kernel of a linear layer")


def merge_adapters(params: dict[str, Any], *, rank: int, alpha: float) -> dict[str, Any]:
    """Parameters by path with every adapter added to its kernel and left out.

    Such a kernel comes in the adapters' dtype where that is wider: what a short run adds is mostly less than half a step of bfloat16.
    """
    merged = {name: value for name, value in params.items() if not ADAPTERS.search(name)}
    for name in [n for n in params if n.endswith(".lora_a")]:
        base = name.removesuffix("lora_a")
        kernel = merged[f"{base}kernel"]
        a, b = (params[f"{base}lora_{x}"].astype(jnp.float32) for x in "ab")
        change = (a @ b) * jnp.float32(alpha / rank)
        wider = jnp.promote_types(kernel.dtype, params[f"{base}lora_a"].dtype)
        merged[f"{base}kernel"] = (kernel.astype(jnp.float32) + change).astype(wider)
    return merged
