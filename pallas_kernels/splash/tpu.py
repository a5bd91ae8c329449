"""The Pallas TPU implementation: pads to blocks, packs the fields, joins the kernels in a custom_vjp."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import schedule, tuning
from pallas_kernels.schedule import Plan
from pallas_kernels.splash import backward, common
from pallas_kernels.splash import forward as forward_kernel
from pallas_kernels.splash.common import LANES, Static
from pallas_kernels.tuning import KernelTuning, Tuning
from pallas_kernels.visibility import Visibility

# What tests interpret: any values do, the variants compute the same.
_INTERPRET = Tuning(
    128, 128, 128, 4096, KernelTuning(False), KernelTuning(False), KernelTuning(False)
)
HEAD_DIMS = (64, 80, 128, 256)


def device_tuning() -> Tuning:
    """The tuning of the device kernels are for.

    Raises:
      NotImplementedError: there is no TPU here and no `target`.
    """
    device = tuning.current_device()
    if device is None:
        raise NotImplementedError(
            f"the Pallas kernel runs on TPU and this is {jax.default_backend()}: use implementation='xla', or, to"
            " compile for a TPU or to interpret the kernel, pallas_kernels.target('v5e' | 'interpret')"
        )
    return _INTERPRET if device == tuning.INTERPRET else tuning.load(device)


def unsupported(dtype: jnp.dtype, head_dim: int) -> str | None:
    """Why the kernels cannot do inputs of this kind, or None."""
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"q has dtype {dtype}; the TPU kernel does bfloat16 and float32"
    if head_dim not in HEAD_DIMS:
        return f"head dim is {head_dim}; the TPU kernel does {HEAD_DIMS}"
    return None


def block_sizes(
    q_heads: int, kv_heads: int, length: int, keys: int, itemsize: int, reach: int | None = None
) -> tuple[int, int]:
    """Tuned (block_q, block_kv), smaller for short rows, short reach, and where the heads of a step would not fit VMEM."""
    tuned = device_tuning()
    block_q, block_kv, groups = tuned.block_q, tuned.block_kv, q_heads // kv_heads
    if reach is not None and reach <= tuned.window_block:
        block_q = block_kv = tuned.window_block
    while block_q > LANES and groups * block_q * itemsize // 2 > tuned.step_rows:
        block_q //= 2
    fit = lambda block, size: min(block, -(-size // LANES) * LANES)
    return fit(block_q, length), fit(block_kv, keys)


def attention(
    q: Float[Array, "B N L H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    q_vis: Visibility,
    kv_vis: Visibility,
    *,
    causal: bool,
    scale: float,
    plan: Plan | None = None,
    blocks: tuple[int, int] | None = None,
) -> tuple[Float[Array, "B N L H"], Float[Array, "B N L"]]:
    """As `reference.attention`; lse in float32.

    Raises:
      ValueError: block sizes the hardware cannot take, or a plan of another mask.
      NotImplementedError: dtype, head dim or size outside what the kernels do.
    """
    rows, heads, length, dim = q.shape
    kv_heads, keys = k.shape[1:3]
    tuned = device_tuning()
    reason = unsupported(q.dtype, dim)
    if reason:
        raise NotImplementedError(reason)
    if blocks is None:
        blocks = block_sizes(heads, kv_heads, length, keys, q.dtype.itemsize)
    if plan is not None:
        blocks = plan.block_q, plan.block_kv
    for name, block in zip(("q", "kv"), blocks, strict=True):
        if block % LANES:
            raise ValueError(f"block_sizes.{name} is {block}; wanted a multiple of {LANES}")
    if plan is None:
        plan = schedule.make_plan(
            q_vis, kv_vis, block_q=blocks[0], block_kv=blocks[1], causal=causal
        )
    _check_plan(plan, rows, length, keys, causal)
    more_q, more_kv = -length % blocks[0], -keys % blocks[1]
    groups = heads // kv_heads
    queries = q.reshape(rows, kv_heads, groups, length, dim)
    fields = (
        common.pack_q(q_vis, plan.rows, more_q),
        common.pack_kv(kv_vis, plan.rows, more_kv),
    )
    interpret = tuning.current_device() == tuning.INTERPRET
    out, lse = _attend(
        _Statics.of(tuned, groups, kv_heads, blocks[0], q.dtype.itemsize, scale, interpret),
        _pad(queries, 3, more_q),
        _pad(k, 2, more_kv),
        _pad(v, 2, more_kv),
        *fields,
        jax.tree.map(jnp.asarray, plan),
    )
    return out[..., :length, :].reshape(q.shape), lse[..., :length].reshape(q.shape[:3])


def _check_plan(plan: Plan, rows: int, length: int, keys: int, causal: bool) -> None:
    got = (plan.q_blocks, plan.kv_blocks, plan.causal)
    want = (-(-length // plan.block_q), -(-keys // plan.block_kv), causal)
    if got != want or plan.rows not in (1, rows):
        raise ValueError(
            f"plan is of {plan.rows} rows and (q blocks, kv blocks, causal) {got}; wanted 1 or {rows} rows and {want}"
        )


def _pad(x, axis: int, extra: int):
    """Zeros behind `axis`; no copy where nothing is missing."""
    if not extra:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, extra)
    return jnp.pad(x, widths)


class _Statics(tuple):
    """(forward, dkv, dq) Static of each kernel; hashable, as custom_vjp wants."""

    @classmethod
    def of(cls, tuned: Tuning, groups, kv_heads, block_q, itemsize, scale, interpret) -> _Statics:
        def static(kernel: KernelTuning) -> Static:
            # As many kv heads per step as VMEM holds: the mask and the cost of a step are shared by all their query heads.
            most = kernel.step_rows or tuned.step_rows
            step = max(
                c
                for c in range(1, kv_heads + 1)
                if kv_heads % c == 0 and (c == 1 or c * groups * block_q * itemsize // 2 <= most)
            )
            return Static(scale, step, kernel.unroll, kernel.vmem_limit, interpret)

        return cls(map(static, (tuned.forward, tuned.dkv, tuned.dq)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(statics, q, k, v, q_fields, kv_fields, plan):
    return forward_kernel.forward(q, k, v, q_fields, kv_fields, plan, statics[0])


def _attend_forward(statics, q, k, v, q_fields, kv_fields, plan):
    out, lse = _attend(statics, q, k, v, q_fields, kv_fields, plan)
    return (out, lse), (q, k, v, q_fields, kv_fields, plan, out, lse)


def _attend_backward(statics, saved, cotangents):
    q, k, v, q_fields, kv_fields, plan, out, lse = saved
    d_out, d_lse = cotangents
    shift, delta = backward.row_terms(out, lse, d_out, d_lse)
    args = (q, k, v, d_out, shift, delta, q_fields, kv_fields, plan)
    dk, dv = backward.dkv(*args, statics[1])
    dq = backward.dq(*args, statics[2])
    return dq, dk, dv, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)
