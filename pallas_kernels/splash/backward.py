"""Backward TPU kernels: dk and dv over the list by key block, dq over the list by query block.

Both recompute the probabilities from the saved log-sum-exp (FlashAttention-2, Dao 2023, algorithm 2). dk and dv sum over the
query heads of a kv head inside the kernel, so nothing is reduced afterwards. The dk/dv kernel holds scores transposed (keys
by queries): log-sum-exp, delta and the query fields are then lane rows, as they come; the dq kernel replicates
them over lanes once per query block.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import schedule
from pallas_kernels.schedule import Plan
from pallas_kernels.splash import common
from pallas_kernels.splash.common import LANES, LOG2E, Static


def _dkv_kernel(
    words,
    q_ref,
    k_ref,
    v_ref,
    do_ref,
    lse_ref,
    delta_ref,
    q_fields,
    kv_fields,
    dk_ref,
    dv_ref,
    k_scaled,
    fields,
    bias_ref,
    dk_acc,
    dv_acc,
    *,
    causal,
    static,
):
    kv_heads, groups, block_q, _ = q_ref.shape
    heads = kv_heads * groups
    word = words[pl.program_id(2)]

    def flag(bit):
        return (word & bit) != 0

    @pl.when(flag(schedule.FIRST))
    def _():
        factor = jnp.float32(static.scale * LOG2E)
        k_scaled[...] = (k_ref[...].astype(jnp.float32) * factor).astype(k_ref.dtype)
        dk_acc[...] = jnp.zeros(dk_acc.shape, jnp.float32)
        dv_acc[...] = jnp.zeros(dv_acc.shape, jnp.float32)
        for row in range(fields.shape[0]):
            fields[row] = common.replicate(kv_fields[row : row + 1, :])

    def attend(masked: bool):
        def start(n):
            c, g = common.split(n, groups)
            scores = common.dot(k_scaled[c], q_ref[c, g], 1, 1)
            scores = scores + bias_ref[...] if masked else scores
            return scores, common.dot(v_ref[c], do_ref[c, g], 1, 1)

        def finish(n, started):
            scores, dp = started
            c, g = common.split(n, groups)
            weights = jnp.exp2(scores - lse_ref[c, pl.ds(g, 1), :])
            do = do_ref[c, g]
            dv_acc[c] += common.dot(weights.astype(do.dtype), do, 1, 0)
            ds = weights * (dp - delta_ref[c, pl.ds(g, 1), :])
            q = q_ref[c, g]
            dk_acc[c] += common.dot(ds.astype(q.dtype), q, 1, 0)

        common.for_heads(heads, static.unroll, start, finish)

    @pl.when(flag(schedule.FULL_PAIR))
    def _():
        attend(masked=False)

    @pl.when(flag(schedule.PARTIAL_PAIR))
    def _():
        mask = common.block_mask(
            lambda i: q_fields[i : i + 1, :],
            lambda i: common.widen(fields[i], block_q),
            causal=causal,
        )
        bias_ref[...] = common.bias(mask)
        attend(masked=True)

    @pl.when(flag(schedule.LAST))
    def _():
        poison = common.poison(word)
        factor = jnp.float32(static.scale) + poison
        dk_ref[...] = (dk_acc[...] * factor).astype(dk_ref.dtype)
        dv_ref[...] = (dv_acc[...] + poison).astype(dv_ref.dtype)


def _dq_kernel(
    words,
    q_ref,
    k_ref,
    v_ref,
    do_ref,
    lse_ref,
    delta_ref,
    q_fields,
    kv_fields,
    dq_ref,
    q_scaled,
    fields,
    bias_ref,
    lse_lanes,
    delta_lanes,
    dq_acc,
    *,
    causal,
    static,
):
    kv_heads, groups, _, _ = q_ref.shape
    block_kv = k_ref.shape[1]
    heads = kv_heads * groups
    word = words[pl.program_id(2)]

    def flag(bit):
        return (word & bit) != 0

    @pl.when(flag(schedule.FIRST))
    def _():
        factor = jnp.float32(static.scale * LOG2E)
        scaled = q_ref[...].astype(jnp.float32) * factor
        q_scaled[...] = scaled.astype(q_ref.dtype).reshape(q_scaled.shape)
        dq_acc[...] = jnp.zeros(dq_acc.shape, jnp.float32)
        for row in range(fields.shape[0]):
            fields[row] = common.replicate(q_fields[row : row + 1, :])
        for n in range(heads):
            c, g = common.split(n, groups)
            lse_lanes[n] = common.replicate(lse_ref[c, g : g + 1, :])
            delta_lanes[n] = common.replicate(delta_ref[c, g : g + 1, :])

    def attend(masked: bool):
        def start(n):
            c, g = common.split(n, groups)
            scores = common.dot(q_scaled[n], k_ref[c], 1, 1)
            scores = scores + bias_ref[...] if masked else scores
            return scores, common.dot(do_ref[c, g], v_ref[c], 1, 1)

        def finish(n, started):
            scores, dp = started
            c, _ = common.split(n, groups)
            weights = jnp.exp2(scores - common.widen(lse_lanes[n], block_kv))
            ds = weights * (dp - common.widen(delta_lanes[n], block_kv))
            k = k_ref[c]
            dq_acc[n] += common.dot(ds.astype(k.dtype), k, 1, 0)

        common.for_heads(heads, static.unroll, start, finish)

    @pl.when(flag(schedule.FULL_PAIR))
    def _():
        attend(masked=False)

    @pl.when(flag(schedule.PARTIAL_PAIR))
    def _():
        mask = common.block_mask(
            lambda i: common.widen(fields[i], block_kv),
            lambda i: kv_fields[i : i + 1, :],
            causal=causal,
        )
        bias_ref[...] = common.bias(mask)
        attend(masked=True)

    @pl.when(flag(schedule.LAST))
    def _():
        factor = jnp.float32(static.scale) + common.poison(word)
        dq = (dq_acc[...] * factor).astype(dq_ref.dtype)
        dq_ref[...] = dq.reshape(dq_ref.shape)


def row_terms(
    out: Float[Array, "B K G L H"],
    lse: Float[Array, "B K G L"],
    d_out: Float[Array, "B K G L H"],
    d_lse: Float[Array, "B K G L"] | None,
) -> tuple[Float[Array, "B K G L"], Float[Array, "B K G L"]]:
    """(log-sum-exp in the exp2 domain, delta): d score = p * (d_out . v - delta), delta = sum(d_out * out) - d_lse.

    Rows that see nothing get a log-sum-exp so large that every p is 0.
    """
    blind = jnp.isneginf(lse)
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
    if d_lse is not None:
        delta = delta - jnp.where(blind, 0, d_lse)
    return jnp.where(blind, -common.NEG, lse * jnp.float32(LOG2E)), delta


def dkv(
    q: Float[Array, "B K G L H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    d_out: Float[Array, "B K G L H"],
    lse: Float[Array, "B K G L"],
    delta: Float[Array, "B K G L"],
    q_fields: Int[Array, "b 8 L"],
    kv_fields: Int[Array, "b 8 S"],
    plan: Plan,
    static: Static,
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """dk and dv in the dtypes of k and v; `lse` and `delta` as `row_terms` gives them."""
    step, _, groups, dim, grid = _sizes(q, plan, static, by_kv=True)
    q_spec, row_spec, kv_spec = (
        grid.q(step, groups, dim),
        grid.q_rows(step, groups),
        grid.kv(step, dim),
    )
    return pl.pallas_call(
        functools.partial(_dkv_kernel, causal=plan.causal, static=static),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(grid.batch(q.shape[0]), q.shape[1] // step, plan.kv_count),
            in_specs=[
                q_spec,
                kv_spec,
                kv_spec,
                q_spec,
                row_spec,
                row_spec,
                grid.fields(of_q=True),
                grid.fields(of_q=False),
            ],
            out_specs=[kv_spec, kv_spec],
            scratch_shapes=[
                pltpu.VMEM((step, plan.block_kv, dim), k.dtype),
                pltpu.VMEM((4, plan.block_kv, LANES), jnp.int32),
                pltpu.VMEM((plan.block_kv, plan.block_q), jnp.float32),
                pltpu.VMEM((step, plan.block_kv, dim), jnp.float32),
                pltpu.VMEM((step, plan.block_kv, dim), jnp.float32),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
        compiler_params=common.compiler_params(static),
        cost_estimate=common.cost(q, k, plan, matmuls=4),
        interpret=static.interpret,
        name="visibility_splash_dkv",
    )(plan.by_kv, q, k, v, d_out, lse, delta, q_fields, kv_fields)


def dq(
    q: Float[Array, "B K G L H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    d_out: Float[Array, "B K G L H"],
    lse: Float[Array, "B K G L"],
    delta: Float[Array, "B K G L"],
    q_fields: Int[Array, "b 8 L"],
    kv_fields: Int[Array, "b 8 S"],
    plan: Plan,
    static: Static,
) -> Float[Array, "B K G L H"]:
    """dq in q's dtype; `lse` and `delta` as `row_terms` gives them."""
    step, heads, groups, dim, grid = _sizes(q, plan, static, by_kv=False)
    q_spec, row_spec, kv_spec = (
        grid.q(step, groups, dim),
        grid.q_rows(step, groups),
        grid.kv(step, dim),
    )
    return pl.pallas_call(
        functools.partial(_dq_kernel, causal=plan.causal, static=static),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(grid.batch(q.shape[0]), q.shape[1] // step, plan.q_count),
            in_specs=[
                q_spec,
                kv_spec,
                kv_spec,
                q_spec,
                row_spec,
                row_spec,
                grid.fields(of_q=True),
                grid.fields(of_q=False),
            ],
            out_specs=q_spec,
            scratch_shapes=[
                pltpu.VMEM((heads, plan.block_q, dim), q.dtype),
                pltpu.VMEM((3, plan.block_q, LANES), jnp.int32),
                pltpu.VMEM((plan.block_q, plan.block_kv), jnp.float32),
                pltpu.VMEM((heads, plan.block_q, LANES), jnp.float32),
                pltpu.VMEM((heads, plan.block_q, LANES), jnp.float32),
                pltpu.VMEM((heads, plan.block_q, dim), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=common.compiler_params(static),
        cost_estimate=common.cost(q, k, plan, matmuls=3),
        interpret=static.interpret,
        name="visibility_splash_dq",
    )(plan.by_q, q, k, v, d_out, lse, delta, q_fields, kv_fields)


def _sizes(q, plan: Plan, static: Static, *, by_kv: bool):
    groups, dim = q.shape[2], q.shape[4]
    step = static.kv_heads
    return step, step * groups, groups, dim, common.Grid(plan, by_kv=by_kv)
