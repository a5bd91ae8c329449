"""Forward TPU kernel: out and log-sum-exp over the active block pairs of a Plan.

One grid step does all query heads of `kv_heads` kv heads on one pair of blocks: the mask is turned into a bias once and the cost of
a step is divided by the heads. The number of pairs is a run-time value (dynamic grid). Scores live in the exp2 domain; the
running sum is kept per lane and summed over lanes once per query block.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import schedule
from pallas_kernels.schedule import Plan
from pallas_kernels.splash import common
from pallas_kernels.splash.common import LANES, LOG2E, NEG, Static

# Query blocks up to this finish all heads together: every other pair of theirs is a last one.
SMALL_BLOCK = 256


def _kernel(
    words, q_ref, k_ref, v_ref, q_fields, kv_fields, out_ref, lse_ref, *scratch, causal, static
):
    q_scaled, fields, bias_ref, top_ref, total_ref, acc_ref = scratch
    kv_heads, groups, _, dim = q_ref.shape
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
        top_ref[...] = jnp.full(top_ref.shape, NEG, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        acc_ref[...] = jnp.zeros(acc_ref.shape, jnp.float32)
        for row in range(fields.shape[0]):
            fields[row] = common.replicate(q_fields[row : row + 1, :])

    def attend(masked: bool):
        def start(n):
            scores = common.dot(q_scaled[n], k_ref[common.split(n, groups)[0]], 1, 1)
            # Here, not in `finish`: added as the scores leave the MXU they are stored once, not twice.
            return scores + bias_ref[...] if masked else scores

        def finish(n, scores):
            top = top_ref[n]
            new_top = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
            shrink = jnp.exp2(top - new_top)
            weights = jnp.exp2(scores - common.widen(new_top, block_kv))
            part = weights[:, :LANES]
            for lane in range(LANES, block_kv, LANES):
                part += weights[:, lane : lane + LANES]
            total_ref[n] = total_ref[n] * shrink + part
            top_ref[n] = new_top
            v = v_ref[common.split(n, groups)[0]]
            update = common.dot(weights.astype(v.dtype), v, 1, 0)
            acc_ref[n] = acc_ref[n] * common.widen(shrink, dim) + update

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
        poison = common.poison(word)

        def unseen(top, total):
            """Rows that hold garbage of masked blocks. A row of NaN may pass through `max` unseen; it goes on."""
            return (top <= NEG / 2) & (total == total)

        def normalise(n):
            """Writes a head's output; its running maximum and sum, the same in every lane."""
            top = top_ref[n]
            total = jnp.sum(total_ref[n], axis=1, keepdims=True)
            total = jnp.broadcast_to(total, top.shape)
            blind = unseen(top, total)
            inverse = jnp.where(blind, 0, 1 / jnp.where(blind, 1, total)) + poison
            c, g = common.split(n, groups)
            out_ref[c, g] = (acc_ref[n] * common.widen(inverse, dim)).astype(out_ref.dtype)
            return top, total

        def log_sum(top, total):
            blind = unseen(top, total)
            lse = top * (1 / LOG2E) + jnp.log(jnp.where(blind, 1, total))
            return (jnp.where(blind, -jnp.inf, lse) + poison).T

        if static.unroll and q_ref.shape[2] <= SMALL_BLOCK and heads <= LANES:
            # Lane n takes head n: one logarithm and one transposition for all heads.
            tops, totals = normalise(0)
            lane = lax.broadcasted_iota(jnp.int32, tops.shape, 1)
            for n in range(1, heads):
                top, total = normalise(n)
                tops = jnp.where(lane == n, top, tops)
                totals = jnp.where(lane == n, total, totals)
            lse = log_sum(tops, totals)
            for n in range(heads):
                c, g = common.split(n, groups)
                lse_ref[c, pl.ds(g, 1), :] = lse[n : n + 1, :]
        else:

            def finish(n, _):
                c, g = common.split(n, groups)
                lse_ref[c, pl.ds(g, 1), :] = log_sum(*normalise(n))[:1, :]

            lax.fori_loop(0, heads, finish, None)


def forward(
    q: Float[Array, "B K G L H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    q_fields: Int[Array, "b 8 L"],
    kv_fields: Int[Array, "b 8 S"],
    plan: Plan,
    static: Static,
) -> tuple[Float[Array, "B K G L H"], Float[Array, "B K G L"]]:
    """Attention output in q's dtype and float32 log-sum-exp; lengths are whole blocks of the plan.

    Source: online softmax of FlashAttention-2 (Dao 2023); the layout of running values follows JAX's splash attention.
    """
    rows, kv_heads, groups, length, dim = q.shape
    grid = common.Grid(plan, by_kv=False)
    step = static.kv_heads
    heads = step * groups
    block_q, block_kv = plan.block_q, plan.block_kv
    return pl.pallas_call(
        functools.partial(_kernel, causal=plan.causal, static=static),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(grid.batch(rows), kv_heads // step, plan.q_count),
            in_specs=[
                grid.q(step, groups, dim),
                grid.kv(step, dim),
                grid.kv(step, dim),
                grid.fields(of_q=True),
                grid.fields(of_q=False),
            ],
            out_specs=[grid.q(step, groups, dim), grid.q_rows(step, groups)],
            scratch_shapes=[
                pltpu.VMEM((heads, block_q, dim), q.dtype),
                pltpu.VMEM((3, block_q, LANES), jnp.int32),
                pltpu.VMEM((block_q, block_kv), jnp.float32),
                pltpu.VMEM((heads, block_q, LANES), jnp.float32),
                pltpu.VMEM((heads, block_q, LANES), jnp.float32),
                pltpu.VMEM((heads, block_q, dim), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((rows, kv_heads, groups, length), jnp.float32),
        ],
        compiler_params=common.compiler_params(static),
        cost_estimate=common.cost(q, k, plan, matmuls=2),
        interpret=static.interpret,
        name="visibility_splash_forward",
    )(plan.by_q, q, k, v, q_fields, kv_fields)
