"""The Pallas TPU kernel of one-token attention: one pass over the valid blocks of a cache, used for prefix and suffix.

A grid step reads one block of keys and values of all kv heads; for the prefix, the rows of the matmul are the queries of all
rollouts of the group, so that a prefix byte is read once per group. Blocks behind `length` are neither fetched nor computed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import tuning
from pallas_kernels.prefix_decode import xla
from pallas_kernels.splash import common
from pallas_kernels.splash.common import LANES, LOG2E, NEG
from pallas_kernels.splash.tpu import unsupported

ROWS = 16  # sublanes of a bfloat16 tile


def attention(
    q: Float[Array, "G n N H"],
    prefix_k: Float[Array, "G K M H"],
    prefix_v: Float[Array, "G K M H"],
    suffix_k: Float[Array, "G n K R H"],
    suffix_v: Float[Array, "G n K R H"],
    prefix_length: Int[Array, " G"],
    suffix_length: Int[Array, "G n"],
    *,
    scale: float,
    block: int = 512,
) -> tuple[Float[Array, "G n N H"], Float[Array, "G n N"]]:
    """As `reference.attention`.

    Raises:
      NotImplementedError: no TPU here and no `target`, or a dtype the kernel does not do.
    """
    device = tuning.current_device()
    if device is None:
        raise NotImplementedError(
            f"the Pallas kernel runs on TPU and this is {jax.default_backend()}: use implementation='xla', or"
            " pallas_kernels.target('v5e' | 'interpret')"
        )
    reason = unsupported(q.dtype, q.shape[-1])
    if reason:
        raise NotImplementedError(reason)
    attend = functools.partial(_attend, block=block, interpret=device == tuning.INTERPRET)
    return xla.shared(
        q, prefix_k, prefix_v, suffix_k, suffix_v, prefix_length, suffix_length, scale, attend
    )


def _kernel(lengths, q_ref, k_ref, v_ref, out_ref, lse_ref, top_ref, total_ref, acc_ref, *, scale):
    row, step = pl.program_id(0), pl.program_id(1)
    kv_heads, block, dim = k_ref.shape
    left = lengths[row] - step * block

    @pl.when(step == 0)
    def _():
        top_ref[...] = jnp.full(top_ref.shape, NEG, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        acc_ref[...] = jnp.zeros(acc_ref.shape, jnp.float32)

    @pl.when(left > 0)
    def _():
        for c in range(kv_heads):
            scores = common.dot(q_ref[c], k_ref[c], 1, 1) * jnp.float32(scale * LOG2E)
            index = lax.broadcasted_iota(jnp.int32, scores.shape, 1)
            scores = jnp.where(index < left, scores, jnp.float32(NEG))
            top = top_ref[c]
            new_top = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
            shrink = jnp.exp2(top - new_top)
            weights = jnp.exp2(scores - common.widen(new_top, block))
            part = jnp.sum(weights, axis=1, keepdims=True)
            total_ref[c] = total_ref[c] * shrink + part
            top_ref[c] = new_top
            v = v_ref[c]
            # A cache slot behind `length` may hold anything, NaN too, and 0 * NaN is NaN.
            slot = lax.broadcasted_iota(jnp.int32, v.shape, 0)
            v = jnp.where(slot < left, v, jnp.zeros_like(v))
            update = common.dot(weights.astype(v.dtype), v, 1, 0)
            acc_ref[c] = acc_ref[c] * common.widen(shrink, dim) + update

    @pl.when(step == pl.num_programs(1) - 1)
    def _():
        for c in range(kv_heads):
            top, total = top_ref[c], total_ref[c]
            blind = (top <= NEG / 2) & (total == total)
            total = jnp.where(blind, 1, total)
            out_ref[c] = acc_ref[c] * common.widen(jnp.where(blind, 0, 1 / total), dim)
            lse_ref[c] = jnp.where(blind, -jnp.inf, top * (1 / LOG2E) + jnp.log(total))


def _attend(q, k, v, length, scale, *, block, interpret):
    """(out, lse) in float32 of queries [Z, K, X, H] over the first `length` keys of [Z, K, S, H]."""
    rows, kv_heads, queries, dim = q.shape
    more = -queries % ROWS
    q = jnp.pad(q, ((0, 0), (0, 0), (0, more), (0, 0)))
    block = min(block, -(-k.shape[2] // LANES) * LANES)
    extra = -k.shape[2] % block
    if extra:
        k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0))) for x in (k, v))
    width = queries + more

    def cache_block(z, s, lengths):
        # Behind the last valid block the same block is named again: nothing is fetched.
        last = lax.div(jnp.maximum(lengths[z] - 1, 0), np.int32(block))
        return z, 0, jnp.minimum(s, last), 0

    whole = lambda z, s, lengths: (z, 0, 0, 0)
    cache = pl.BlockSpec((None, kv_heads, block, dim), cache_block)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows, k.shape[2] // block),
            in_specs=[pl.BlockSpec((None, kv_heads, width, dim), whole), cache, cache],
            out_specs=[
                pl.BlockSpec((None, kv_heads, width, dim), whole),
                pl.BlockSpec((None, kv_heads, width, LANES), whole),
            ],
            scratch_shapes=[
                pltpu.VMEM((kv_heads, width, LANES), jnp.float32),
                pltpu.VMEM((kv_heads, width, LANES), jnp.float32),
                pltpu.VMEM((kv_heads, width, dim), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, jnp.float32),
            jax.ShapeDtypeStruct((*q.shape[:3], LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * q.size * k.shape[2],
            transcendentals=q.size // dim * k.shape[2],
            bytes_accessed=k.nbytes + v.nbytes,
        ),
        interpret=interpret,
        name="visibility_prefix_decode",
    )(length.astype(jnp.int32), q, k, v)
    return out[:, :, :queries], lse[:, :, :queries, 0]
