"""Named attention problems that the benchmarks and the compilation tests share: each returns (fn, abstract arguments)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import pallas_kernels
from pallas_kernels import schedule
from pallas_kernels.splash import backward as splash_backward
from pallas_kernels.splash import common
from pallas_kernels.splash import forward as splash_forward
from pallas_kernels.visibility import Visibility

# The decoder of Qwen2.5-VL-7B: 28 query heads, 4 kv heads, head dim 128. Its vision tower: 16 heads, head dim 80.
Q_HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128


def _abstract(length, q_heads, kv_heads, head_dim, dtype=jnp.bfloat16):
    q = jax.ShapeDtypeStruct((1, q_heads, length, head_dim), dtype)
    k = jax.ShapeDtypeStruct((1, kv_heads, length, head_dim), dtype)
    vis = Visibility(*[jax.ShapeDtypeStruct((1, length), jnp.int32)] * 5)
    return q, k, k, vis


def forward(
    *,
    block_q=512,
    block_kv=512,
    length=4096,
    q_heads=Q_HEADS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    causal=1,
    unroll=0,
    step_heads=1,
    vmem=None,
):
    """Our forward kernel with its schedule."""
    static = common.Static(head_dim**-0.5, step_heads, bool(unroll), vmem, False)
    q, k, v, vis = _abstract(length, q_heads, kv_heads, head_dim)

    def fn(q, k, v, vis):
        plan = schedule.make_plan(vis, vis, block_q=block_q, block_kv=block_kv, causal=bool(causal))
        grouped = q.reshape(1, kv_heads, q_heads // kv_heads, length, head_dim)
        fields = common.pack_q(vis, 1, 0), common.pack_kv(vis, 1, 0)
        return splash_forward.forward(grouped, k, v, *fields, plan, static)

    return fn, (q, k, v, vis)


def dkv(**options):
    """Our dk and dv kernel with its schedule."""
    return _backward(splash_backward.dkv, **options)


def dq(**options):
    """Our dq kernel with its schedule."""
    return _backward(splash_backward.dq, **options)


def _backward(
    kernel,
    *,
    block_q=512,
    block_kv=512,
    length=4096,
    q_heads=Q_HEADS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    causal=1,
    unroll=0,
    step_heads=1,
    vmem=None,
):
    static = common.Static(head_dim**-0.5, step_heads, bool(unroll), vmem, False)
    q, k, v, vis = _abstract(length, q_heads, kv_heads, head_dim)
    q = jax.ShapeDtypeStruct((1, kv_heads, q_heads // kv_heads, length, head_dim), q.dtype)
    row = jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32)

    def fn(q, k, v, d_out, lse, delta, vis):
        plan = schedule.make_plan(vis, vis, block_q=block_q, block_kv=block_kv, causal=bool(causal))
        fields = common.pack_q(vis, 1, 0), common.pack_kv(vis, 1, 0)
        return kernel(q, k, v, d_out, lse, delta, *fields, plan, static)

    return fn, (q, k, v, q, row, row, vis)


def dense_windows(*, windows=1024, size=64, q_heads=16, head_dim=80):
    """The alternative for windowed blocks: dense attention batched over windows, each padded to `size` places already.

    That favours it: in a tower whose windows are not all full, the padding costs every other layer too, or a gather here.
    """
    x = jax.ShapeDtypeStruct((1, q_heads, windows * size, head_dim), jnp.bfloat16)
    valid = jax.ShapeDtypeStruct((windows,), jnp.int32)

    def fn(q, k, v, valid):
        q, k, v = (x.reshape(q_heads, windows, size, head_dim) for x in (q, k, v))
        scores = jnp.einsum("NWLH,NWSH->NWLS", q, k, preferred_element_type=jnp.float32)
        seen = jnp.arange(size, dtype=jnp.int32)[None] < valid[:, None]
        scores = jnp.where(seen[None, :, None], scores * head_dim**-0.5, -1e30)
        weights = jax.nn.softmax(scores, axis=-1).astype(jnp.bfloat16)
        out = jnp.einsum("NWLS,NWSH->NWLH", weights, v)
        return out.reshape(1, q_heads, windows * size, head_dim)

    return fn, (x, x, x, valid)


def _jax_splash(block_q, block_kv, block_kv_compute, length, q_heads, backward):
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernel,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as mask,
    )

    sizes = {
        "block_q": block_q,
        "block_kv": block_kv,
        "block_kv_compute": block_kv_compute or block_kv,
    }
    if backward:
        sizes |= {
            "block_q_dkv": block_q,
            "block_kv_dkv": block_kv,
            "block_kv_dkv_compute": block_kv_compute or block_kv,
            "block_q_dq": block_q,
            "block_kv_dq": block_kv,
        }
    attend = kernel.make_splash_mha_single_device(
        mask.MultiHeadMask([mask.CausalMask((length, length))] * q_heads),
        block_sizes=kernel.BlockSizes(**sizes),
    )
    x = jax.ShapeDtypeStruct((q_heads, length, HEAD_DIM), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((length,), jnp.int32)
    run = lambda q, k, v, s: attend(q, k, v, kernel.SegmentIds(s, s))
    return run, (x, x, x, segments)


def jax_splash_forward(*, block_q=512, block_kv=512, block_kv_compute=None, length=4096, q_heads=8):
    """JAX's splash attention, causal mask and segment ids."""
    return _jax_splash(block_q, block_kv, block_kv_compute, length, q_heads, False)


def jax_splash_backward(
    *, block_q=512, block_kv=512, block_kv_compute=None, length=4096, q_heads=8
):
    """The gradients of JAX's splash attention: kernels dq and dkv (and forward)."""
    run, args = _jax_splash(block_q, block_kv, block_kv_compute, length, q_heads, True)

    def loss(q, k, v, s):
        return run(q, k, v, s).astype(jnp.float32).sum()

    return jax.grad(loss, argnums=(0, 1, 2)), args


def attention(
    *,
    length=4096,
    q_heads=Q_HEADS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    causal=1,
    gradient=1,
    rows=1,
    dtype="bfloat16",
    reach=None,
    device="v5e",
):
    """`splash_attention` as a model calls it, with a plan made before, or its gradients, traced for `device`."""
    q, k, v, vis = _abstract(length, q_heads, kv_heads, head_dim, jnp.dtype(dtype))
    q, k, v = (jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for x in (q, k, v))
    vis = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, length), x.dtype), vis)

    def run(q, k, v, vis):
        with pallas_kernels.target(device):
            plan = pallas_kernels.attention_plan(
                vis,
                vis,
                causal=bool(causal),
                q_heads=q_heads,
                kv_heads=kv_heads,
                dtype=q.dtype,
                reach=reach,
            )
            return pallas_kernels.splash_attention(
                q, k, v, vis, vis, causal=bool(causal), plan=plan
            )

    def gradients(q, k, v, vis, d_out):
        out, pull = jax.vjp(lambda *x: run(*x, vis), q, k, v)
        return out, pull(d_out)

    return (gradients, (q, k, v, vis, q)) if gradient else (run, (q, k, v, vis))


def prefix_decode(*, groups=2, rollouts=8, prefix=16384, suffix=4096, device="v5e"):
    """One new token per rollout of the decoder over a shared prefix, traced for `device`."""
    cache = jax.ShapeDtypeStruct((groups, KV_HEADS, prefix, HEAD_DIM), jnp.bfloat16)
    own = jax.ShapeDtypeStruct((groups, rollouts, KV_HEADS, suffix, HEAD_DIM), jnp.bfloat16)
    q = jax.ShapeDtypeStruct((groups, rollouts, Q_HEADS, HEAD_DIM), jnp.bfloat16)
    lengths = (
        jax.ShapeDtypeStruct((groups,), jnp.int32),
        jax.ShapeDtypeStruct((groups, rollouts), jnp.int32),
    )

    def run(q, prefix_k, prefix_v, suffix_k, suffix_v, prefix_length, suffix_length):
        with pallas_kernels.target(device):
            return pallas_kernels.prefix_decode(
                q,
                prefix_k,
                prefix_v,
                suffix_k,
                suffix_v,
                prefix_length=prefix_length,
                suffix_length=suffix_length,
            )

    return run, (q, cache, cache, own, own, *lengths)
