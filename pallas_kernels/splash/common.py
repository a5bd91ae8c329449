"""What the forward and backward TPU kernels share: packed fields, the mask of a block, index maps, limits."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

from pallas_kernels.schedule import LOST, MAJOR_SHIFT, MAX_MINOR, MINOR_SHIFT, Plan
from pallas_kernels.visibility import Visibility, pad

# Finite stand-in for minus infinity: NEG - NEG is 0, not NaN. Scores are in the exp2 domain, |score| << -NEG.
NEG = -1e30
LOG2E = math.log2(math.e)
LANES = 128
# Fields are packed so that the kernel spends four operations and a compare on interval and kinds together:
#   ((enter_q + MIN - enter_k) | (hide_q << 23 & kind_k << 23)) < leave_k - enter_k + MIN        (signed)
# is 0 <= enter_q - enter_k < leave_k - enter_k and (hide_q & kind_k) == 0: adding MIN makes the signed compare an unsigned
# one, and a kind bit lifts the left side above every interval shorter than 2^23.
MIN = np.int32(-(2**31))
KIND_SHIFT = np.int32(23)
MAX_WALK = 1 << 23
FIELDS = 8  # rows of the packed fields: one (8, 128) tile


@dataclasses.dataclass(frozen=True)
class Static:
    """What a kernel is compiled for.

    Attributes:
      scale: factor on the scores.
      kv_heads: kv heads per grid step; a step does all query heads of them.
      unroll: emit the heads of a step one after the other instead of a loop, so that the scheduler overlaps them.
      vmem_limit: bytes of VMEM the kernel may use, or None for the compiler's default.
      interpret: run on CPU, slowly.
    """

    scale: float
    kv_heads: int
    unroll: bool
    vmem_limit: int | None
    interpret: bool


def pack_q(vis: Visibility, rows: int, extra: int) -> Int[Array, "rows 8 L"]:
    """Query fields [b, L] as one int32 tile row: order, enter + MIN, hide << 23."""
    vis = pad(vis, extra)
    return _stack((vis.order, vis.enter + MIN, vis.hide << KIND_SHIFT), rows)


def pack_kv(vis: Visibility, rows: int, extra: int) -> Int[Array, "rows 8 S"]:
    """Key fields [b, S] as one int32 tile row: order, enter, leave - enter + MIN, kind << 23."""
    vis = pad(vis, extra)
    return _stack((vis.order, vis.enter, vis.leave - vis.enter + MIN, vis.kind << KIND_SHIFT), rows)


def _stack(fields, rows):
    packed = jnp.stack(fields, axis=1)
    packed = jnp.pad(packed, ((0, 0), (0, FIELDS - packed.shape[1]), (0, 0)))
    return jnp.broadcast_to(packed, (rows, *packed.shape[1:]))


def block_mask(q, k, *, causal: bool):
    """The mask of one block from packed fields: `q` and `k` give field i as arrays that broadcast against each other."""
    seen = ((q(1) - k(1)) | (q(2) & k(3))) < k(2)
    return seen & (k(0) <= q(0)) if causal else seen


def bias(mask):
    """0 where seen, NEG where not: added to the scores of every head."""
    return jnp.where(mask, jnp.float32(0), jnp.float32(NEG))


def replicate(row):
    """A lane row [1, X] as [X, 128] with every lane equal: the layout in which a per-row value meets a block."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def widen(x, width: int):
    """[X, 128] with equal lanes as [X, width]."""
    if width <= LANES:
        return x[:, :width]
    return jnp.concatenate([x] * -(-width // LANES), axis=1)[:, :width]


def major(word):
    """Major block index of a pair word; a logical shift, the index may sit in the sign bit."""
    return lax.shift_right_logical(word, np.int32(MAJOR_SHIFT))


def minor(word):
    """Minor block index of a pair word."""
    return lax.shift_right_logical(word, np.int32(MINOR_SHIFT)) & np.int32(MAX_MINOR - 1)


def poison(word):
    """NaN where the word says that the list lost pairs, else 0: added to what a kernel writes."""
    lost = (word & np.int32(LOST)) == np.int32(LOST)
    return jnp.where(lost, jnp.float32(jnp.nan), jnp.float32(0))


@dataclasses.dataclass(frozen=True)
class Grid:
    """Block specs over the grid (batch, kv head group, pair) of a list with words (major, minor).

    A plan of one row serves every batch row (grid axis 0); a plan of B rows counts blocks through the batch.
    """

    plan: Plan
    by_kv: bool

    def batch(self, rows: int) -> int:
        """Extent of grid axis 0."""
        return rows if self.plan.rows == 1 else 1

    def _locate(self, b, word, of_q: bool):
        """(row in the batch, row in the fields, block in the row) of the pair's query or key block."""
        index = major(word) if of_q != self.by_kv else minor(word)
        if self.plan.rows == 1:
            return b, np.int32(0), index
        # lax.div, not //: its sign handling asks for the current device and fails when compiling for another.
        row = lax.div(index, np.int32(self.plan.q_blocks if of_q else self.plan.kv_blocks))
        blocks = np.int32(self.plan.q_blocks if of_q else self.plan.kv_blocks)
        return row, row, index - row * blocks

    def q(self, heads: int, groups: int, dim: int) -> pl.BlockSpec:
        """[B, K, G, L, dim] arrays."""

        def index(b, h, p, words):
            row, _, i = self._locate(b, words[p], True)
            return row, h, 0, i, 0

        return pl.BlockSpec((None, heads, groups, self.plan.block_q, dim), index)

    def q_rows(self, heads: int, groups: int) -> pl.BlockSpec:
        """[B, K, G, L] arrays."""

        def index(b, h, p, words):
            row, _, i = self._locate(b, words[p], True)
            return row, h, 0, i

        return pl.BlockSpec((None, heads, groups, self.plan.block_q), index)

    def kv(self, heads: int, dim: int) -> pl.BlockSpec:
        """[B, K, S, dim] arrays."""

        def index(b, h, p, words):
            row, _, j = self._locate(b, words[p], False)
            return row, h, j, 0

        return pl.BlockSpec((None, heads, self.plan.block_kv, dim), index)

    def fields(self, of_q: bool) -> pl.BlockSpec:
        """Packed fields [rows, 8, L or S]."""

        def index(b, h, p, words):
            del h
            _, row, i = self._locate(b, words[p], of_q)
            return row, 0, i

        return pl.BlockSpec(
            (None, FIELDS, self.plan.block_q if of_q else self.plan.block_kv), index
        )


def for_heads(heads: int, unroll: bool, start, finish) -> None:
    """Runs `finish(n, start(n))` for every head n; unrolled, head n + 1 is started before head n is finished.

    `start` does the first matmul: the MXU then has work while the vector units do the softmax.
    """
    if unroll:
        ahead = start(0)
        for n in range(heads):
            current, ahead = ahead, start(n + 1) if n + 1 < heads else None
            finish(n, current)
    else:

        def body(n, _):
            finish(n, start(n))

        lax.fori_loop(0, heads, body, None)


def split(n, groups: int):
    """(kv head, query head of it) of head n of a step; without a division where n is known."""
    if isinstance(n, int):
        return divmod(n, groups)
    c = lax.div(n, jnp.int32(groups))
    return c, n - c * groups


def compiler_params(static: Static) -> pltpu.CompilerParams:
    """Batch and head axes may be shared out between cores; the pairs are in order."""
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"),
        vmem_limit_bytes=static.vmem_limit,
    )


def cost(q, k, plan: Plan, *, matmuls: int) -> pl.CostEstimate:
    """Work of a kernel with `matmuls` products per score; causal masks visit about half of the pairs."""
    rows, kv_heads, groups, _, dim = q.shape
    pairs = rows * plan.q_blocks * plan.kv_blocks // (1 + plan.causal)
    scores = pairs * kv_heads * groups * plan.block_q * plan.block_kv
    kv_bytes = 2 * plan.block_kv * dim * kv_heads * k.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * matmuls * dim * scores,
        transcendentals=scores,
        bytes_accessed=matmuls * q.nbytes + pairs * kv_bytes,
    )


def precision(dtype) -> jax.lax.Precision | None:
    """float32 inputs are multiplied in float32, not in bfloat16 passes."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def dot(x, y, x_axis: int, y_axis: int):
    """x times y over the named axes, accumulated in float32."""
    return lax.dot_general(
        x,
        y,
        (((x_axis,), (y_axis,)), ((), ())),
        preferred_element_type=jnp.float32,
        precision=precision(x.dtype),
    )
