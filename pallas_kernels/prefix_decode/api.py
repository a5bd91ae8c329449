"""`prefix_decode`: checks its arguments and chooses the implementation."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.prefix_decode import reference, tpu, xla
from pallas_kernels.splash.api import Implementation, choose
from pallas_kernels.splash.tpu import unsupported


def prefix_decode(
    q: Float[Array, "G n N H"],
    prefix_k: Float[Array, "G K M H"],
    prefix_v: Float[Array, "G K M H"],
    suffix_k: Float[Array, "G n K R H"],
    suffix_v: Float[Array, "G n K R H"],
    *,
    prefix_length: Int[Array, " G"],
    suffix_length: Int[Array, "G n"],
    scale: float | None = None,
    return_lse: bool = False,
    implementation: Implementation | None = None,
) -> Float[Array, "G n N H"] | tuple[Float[Array, "G n N H"], Float[Array, "G n N"]]:
    """Attention of one new token per rollout over the prefix its group shares and a suffix of its own.

    The prefix is read once per group, not once per rollout; the two parts are merged by log-sum-exp.

    Args:
      q: one query per rollout and head; G groups of n rollouts.
      prefix_k, prefix_v: the group's cache; the first `prefix_length` slots are valid.
      suffix_k, suffix_v: the rollout's own cache; the first `suffix_length` slots are valid, the new token's included.
      prefix_length: int32 [G]; suffix_length: int32 [G, n].
      scale: factor on the scores, default 1 / sqrt(H).
      return_lse: also return the log-sum-exp of the scores.
      implementation: as for `splash_attention`; "splash" names the TPU kernel, which has no gradient.

    Returns:
      out in q's dtype [, lse in float32]. A rollout without a valid key has out 0, lse -inf.

    Raises:
      ValueError: an argument of the wrong shape or dtype, named with what was got and wanted.
      NotImplementedError: the named implementation cannot do this, with the reason.
    """
    _check(q, prefix_k, prefix_v, suffix_k, suffix_v, prefix_length, suffix_length)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    chosen = choose(implementation, unsupported(q.dtype, q.shape[-1]))
    module = {"reference": reference, "xla": xla, "splash": tpu}[chosen]
    out, lse = module.attention(
        q, prefix_k, prefix_v, suffix_k, suffix_v, prefix_length, suffix_length, scale=scale
    )
    return (out, lse) if return_lse else out


def _check(q, prefix_k, prefix_v, suffix_k, suffix_v, prefix_length, suffix_length) -> None:
    if q.ndim != 4 or prefix_k.ndim != 4 or suffix_k.ndim != 5:
        raise ValueError(
            f"q, prefix_k, suffix_k have shapes {q.shape}, {prefix_k.shape}, {suffix_k.shape};"
            " wanted [groups, rollouts, heads, head dim], [groups, kv heads, slots, head dim],"
            " [groups, rollouts, kv heads, slots, head dim]"
        )
    group, rollouts, heads, dim = q.shape
    _, kv_heads, prefix, _ = prefix_k.shape
    if not kv_heads or heads % kv_heads:
        raise ValueError(f"q has {heads} heads, prefix_k has {kv_heads}; wanted a multiple")
    wanted = {
        "prefix_k": (prefix_k, (group, kv_heads, prefix, dim), q.dtype),
        "prefix_v": (prefix_v, (group, kv_heads, prefix, dim), q.dtype),
        "suffix_k": (suffix_k, (group, rollouts, kv_heads, suffix_k.shape[3], dim), q.dtype),
        "suffix_v": (suffix_v, (group, rollouts, kv_heads, suffix_k.shape[3], dim), q.dtype),
        "prefix_length": (prefix_length, (group,), jnp.int32),
        "suffix_length": (suffix_length, (group, rollouts), jnp.int32),
    }
    for name, (x, shape, dtype) in wanted.items():
        if x.shape != shape:
            raise ValueError(f"{name} has shape {x.shape}; wanted {shape}")
        if x.dtype != dtype:
            raise ValueError(f"{name} has dtype {x.dtype}; wanted {jnp.dtype(dtype).name}")
