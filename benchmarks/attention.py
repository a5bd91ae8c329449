"""The figures of the attention kernels, each beside its peer from the same run, in one table.

    python -m benchmarks.attention                       # all; the compiled sections take some minutes per chip
    python -m benchmarks.attention --only host cpu decode visited
    python -m benchmarks.attention --only bundles memory --chips v5e

Sections: `bundles` (static schedule of forward, dkv, dq and the modelled total at 32k), `windows` (the vision tower's windowed
blocks), `memory` (temporaries at 32k, v5e), `host` (mask and
schedule), `visited` (blocks against a brute-force minimum), `cpu` (xla path, 8k causal), `decode` (prefix_decode on CPU).
`bundles`, `windows` and `memory` are compiled for a TPU through libtpu: static counts and predictions, not runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import attention_cases, attention_masks, bundles
from pallas_kernels import Visibility, prefix_decode, schedule, splash_attention, tuning
from vo3.models.qwen2_5_vl import vision_inputs
from vo3.models.qwen2_5_vl.config import VisionConfig

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# MXU cycles of one product per head and 512 x 512 scores at head dim 128: 4 arrays of 128 x 128 (v5), 2 of 256 x 256 half filled (v6e).
PRODUCT_FLOOR = {"v5e": 512, "v5p": 512, "v6e": 256}
# Query heads of a kv head, and the block size that everything is compared at.
HEADS, BLOCK = 7, 512
CASES = "benchmarks.attention_cases"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. `ratio` is ours over the peer's; `goal` an upper bound on it, None: shown only."""

    measure: str
    ours: str
    peer: str
    ratio: float
    goal: float | None

    def __str__(self) -> str:
        verdict = "" if self.goal is None else "ok" if self.ratio <= self.goal else "MISSED"
        goal = "" if self.goal is None else f"<= {self.goal:.4g}"
        return f"{self.measure:52} {self.ours:>16} {self.peer:>18} {self.ratio:9.4g} {goal:>10} {verdict}"


@dataclasses.dataclass(frozen=True)
class Parts:
    """Bundles per query head of one of our kernels: of a grid step, of a pair, and of a block's first and last pair."""

    step: float
    init: float
    full: float
    partial: float
    finish: float


def parts(chip: str, kernel: str) -> Parts:
    """Our kernel at the variant tuned for the chip."""
    tuned = getattr(tuning.load(chip), kernel)
    kv_heads = max(1, (tuned.step_rows or tuning.load(chip).step_rows) // (HEADS * BLOCK))
    options = {"unroll": int(tuned.unroll), "vmem": tuned.vmem_limit, "step_heads": kv_heads}
    return _parts(chip, kernel, HEADS * kv_heads, options)


def _parts(chip: str, kernel: str, heads: int, options: dict, *, behind: int = 0) -> Parts:
    """Our kernel with these options and so many heads a step.

    What precedes the sections of first, full, partial and last pair, and the `behind` sections after them, starts copies of
    blocks (many, where heads are padded); it counts as cost of a step.
    """
    compiled = bundles.measure(TOPOLOGIES[chip], f"{CASES}:{kernel}", **options)
    found = compiled.kernel("visibility_splash")
    # Not every chip's compiler guards what is behind.
    end = max(4, len(found.sections) - behind)
    init, full, partial, finish = found.sections[end - 4 : end]
    copies = sum(s.bundles for s in (*found.sections[: end - 4], *found.sections[end:]))
    return Parts(
        (found.step + copies) / heads,
        init.bundles / heads,
        full.per_head(heads),
        partial.per_head(heads),
        finish.per_head(heads),
    )


@dataclasses.dataclass(frozen=True)
class Peer:
    """Bundles of JAX's splash per head: per grid step, and body per pair of block_q x block_kv."""

    block_q: int
    block_kv: int
    step: int
    body: int

    @property
    def unit(self) -> float:
        """Body per 512 x 512 scores."""
        return self.body * 512 * 512 / (self.block_q * self.block_kv)

    def total(self, length: int) -> float:
        """All grid steps, and the bodies of the causal ones."""
        rows, columns = length // self.block_q, length // self.block_kv
        ends = (np.arange(rows) + 1) * self.block_q
        active = int(np.ceil(ends / self.block_kv).sum())
        return rows * columns * self.step + active * self.body


def peers(chip: str, case: str, kernel: str) -> list[Peer]:
    """JAX's splash at its candidates for the best block sizes."""
    found = []
    for block_q, block_kv, compute in ((512, 512, 512), (512, 1024, 512)):
        sizes = {"block_q": block_q, "block_kv": block_kv, "block_kv_compute": compute}
        compiled = bundles.measure(TOPOLOGIES[chip], f"{CASES}:{case}", **sizes)
        one = compiled.kernel(kernel)
        body = max(s.bundles for s in one.sections)
        found.append(Peer(block_q, block_kv, one.step, body))
    return found


GOALS = {
    ("forward", "full"): {"v5e": 0.93, "v5p": 0.91, "v6e": 0.64},
    ("forward", "partial"): {"v5e": 1.0, "v5p": 0.95, "v6e": 0.75},
    ("dkv", "full"): {"v5e": 1.0, "v6e": 0.75},
    ("dq", "full"): {"v5e": 1.03, "v6e": 1.0},
    ("total",): {"v5e": 0.80, "v6e": 0.55},
}


def bundle_rows(chips: list[str]) -> Iterator[Row]:
    """Static bundles of the bodies, counted as max(static, MXU floor), and the modelled total."""
    for chip in chips:
        ours = parts(chip, "forward")
        jax_splash = peers(chip, "jax_splash_forward", "splash_mha_fwd")
        yield from _bodies(chip, "forward", 2, ours, min(p.unit for p in jax_splash))
        length = 32768
        rows = length // BLOCK
        floor = 2 * PRODUCT_FLOOR[chip]
        active = rows * (rows + 1) // 2
        total = active * ours.step + rows * (ours.init + ours.finish)
        total += (active - rows) * max(ours.full, floor) + rows * max(ours.partial, floor)
        best = min(p.total(length) for p in jax_splash)
        goal = GOALS["total",].get(chip)
        yield Row(
            f"{chip} modelled bundles, causal, 32k, per head",
            f"{total:.0f}",
            f"{best:.0f}",
            total / best,
            goal,
        )
        backward = bundles.measure(TOPOLOGIES[chip], f"{CASES}:jax_splash_backward")
        for kernel, products, name in (("dkv", 4, "splash_mha_dkv"), ("dq", 3, "splash_mha_dq")):
            body = max(s.bundles for s in backward.kernel(name).sections)
            yield from _bodies(chip, kernel, products, parts(chip, kernel), body)


def _bodies(chip: str, kernel: str, products: int, ours: Parts, peer: float) -> Iterator[Row]:
    floor = products * PRODUCT_FLOOR[chip]
    for which in ("full", "partial"):
        static = getattr(ours, which)
        counted = max(static, floor)
        goal = GOALS.get((kernel, which), {}).get(chip)
        label = f"{chip} {kernel} {which}, bundles (static {static:.0f}, floor {floor})"
        # The peer is held to the floor too where the goal says so: dk and dv.
        against = max(peer, floor) if kernel == "dkv" else peer
        yield Row(label, f"{counted:.0f}", f"{against:.0f}", counted / against, goal)


def memory_rows(chips: list[str]) -> Iterator[Row]:
    """Temporaries of one layer at 32k, v5e."""
    del chips
    for gradient, slack, goal, peer in (
        (0, 4e6, 1.1, "jax_splash_forward"),
        (1, 0, 1.05, "jax_splash_backward"),
    ):
        ours = bundles.measure(
            "v5e:2x2", f"{CASES}:attention", length=32768, gradient=gradient
        ).temp_bytes
        theirs = bundles.measure("v5e:2x2", f"{CASES}:{peer}", length=32768, q_heads=28).temp_bytes
        name = "forward + backward" if gradient else "forward, less 4 MB"
        yield Row(
            f"v5e temporaries at 32k, {name}",
            f"{ours / 1e6:.1f} MB",
            f"{theirs / 1e6:.1f} MB",
            max(ours - slack, 0) / theirs,
            goal,
        )


def windows_rows(chips: list[str]) -> Iterator[Row]:
    """Windowed blocks of the vision tower: the tuned window blocks against blocks of 512, static bundles per head and 128 patches,
    and against dense attention batched over windows, in the cycles that the compiler estimates for its fusions.

    Frames of 252 x 448, whose windows fill blocks evenly, and of 364 x 644, whose windows straddle them.
    """
    config = VisionConfig(32, 1280, 3420, 16, 3584)
    for name, grid in (("252 x 448", (28, 18, 32)), ("364 x 644", (13, 26, 46))):
        vis = vision_inputs([grid], config).windows
        for chip in chips:
            tuned = tuning.load(chip).window_block
            cost = {block: window_cost(chip, vis, block) for block in (128, 256, BLOCK)}
            ours = cost.pop(tuned)
            for block, peer in cost.items():
                label = f"{chip} windows of {name}, blocks of {tuned} or {block}"
                goal = 1.0 if block == BLOCK else None
                yield Row(label, f"{ours:.0f}", f"{peer:.0f}", ours / peer, goal)
            windows = np.unique(vis.enter[vis.enter >= 0]).size
            dense = dense_window_cycles(chip, windows) * 128 / (vis.order.size * 16)
            label = f"{chip} windows of {name}, dense, estimated"
            yield Row(label, f"{ours:.0f}", f"{dense:.0f}", ours / dense, 1.0)
    yield from _windows_on_cpu(config)


def window_cost(chip: str, vis: Visibility, block: int) -> float:
    """Static bundles per head and 128 patches of the forward kernel at square blocks."""
    found = window_parts(chip, block, 8 if block == BLOCK else 16)
    plan = schedule.make_plan(vis, vis, block_q=block, block_kv=block, causal=False)
    pairs = schedule.decode(plan.by_q, plan.q_count)
    total = int(pairs.full.sum()) * found.full + int(pairs.partial.sum()) * found.partial
    total += pairs.full.size * found.step + plan.q_blocks * (found.init + found.finish)
    return total * 128 / vis.order.size


@functools.cache
def dense_window_cycles(chip: str, windows: int) -> int:
    """Estimated cycles of dense attention over so many windows of 64 places, all heads."""
    return bundles.measure(TOPOLOGIES[chip], f"{CASES}:dense_windows", windows=windows).cycles


def _windows_on_cpu(config: VisionConfig) -> Iterator[Row]:
    """The xla path against dense attention batched over windows, on this machine, float32."""
    vis = vision_inputs([(4, 26, 46)], config).windows
    sizes = np.bincount(vis.enter)
    rng = np.random.default_rng(0)
    make = lambda length: [
        jnp.asarray(rng.normal(size=(1, 16, length, 80)), jnp.float32) for _ in range(3)
    ]
    fields = jax.tree.map(jnp.asarray, vis)
    attend = functools.partial(splash_attention, causal=False, implementation="xla")
    ours = jax.jit(lambda q, k, v: attend(q, k, v, fields, fields))
    dense = jax.jit(attention_cases.dense_windows(windows=sizes.size)[0])
    own, padded, valid = make(vis.order.size), make(64 * sizes.size), jnp.asarray(sizes, jnp.int32)
    mine = seconds(lambda: ours(*own))
    theirs = seconds(lambda: dense(*padded, valid))
    label = f"cpu: windows of 364 x 644 frames, {vis.order.size} patches, time"
    yield Row(label, f"{mine * 1e3:.0f} ms", f"{theirs * 1e3:.0f} ms", mine / theirs, None)


@functools.cache
def window_parts(chip: str, block: int, heads: int) -> Parts:
    """Forward at the vision tower's heads, unrolled, so many of them a step."""
    options = {"q_heads": 16, "kv_heads": 16, "head_dim": 80, "causal": 0, "step_heads": heads}
    options |= {"block_q": block, "block_kv": block, "unroll": 1, "vmem": 48 << 20}
    return _parts(chip, "forward", heads, options, behind=1)


def seconds(function: Callable[[], object], repeats: int = 9) -> float:
    """Best wall time of a call after one warm-up: the least disturbed by whatever else runs here."""
    jax.block_until_ready(function())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - start)
    return min(taken)


def host_rows(chips: list[str]) -> Iterator[Row]:
    """From token ids to mask and schedule on the host, and their size. The dense peer is built at 16k; at 40k it is scaled by area."""
    del chips
    tokenizer = attention_masks.qwen_tokenizer()
    dense_s = 0.0
    for length in (16384, 40960):
        row = attention_masks.conversation(length)
        vis, plan = attention_masks.ours(row, tokenizer)
        mine = seconds(functools.partial(attention_masks.ours, row, tokenizer))
        if length == 16384:
            begin = time.perf_counter()
            dense = attention_masks.published(row, vis)
            dense_s = time.perf_counter() - begin
            np.testing.assert_array_equal(dense[0, 0].numpy() == 0, vis.dense(causal=True))
            del dense
        peer, note = (dense_s, "") if length == 16384 else (dense_s * 6.25, " (peer: 16k x 6.25)")
        label = f"host: mask + schedule at {length}{note}"
        yield Row(label, f"{mine * 1e3:.2f} ms", f"{peer * 1e3:.0f} ms", mine / peer, 1e-3)
        fields = sum(x.nbytes for x in jax.tree.leaves(vis))
        label = f"host: bytes a token at {length}, goal 20"
        yield Row(label, f"{fields / length:.1f}", f"{4 * length}", fields / length / 20, 1.0)
        size = plan.by_q.nbytes
        yield Row(f"SMEM for the schedule at {length}", f"{size} B", "128000 B", size / 128e3, 1.0)


def visited_rows(chips: list[str]) -> Iterator[Row]:
    """Blocks of 512 visited, against the blocks that hold a visible pair."""
    del chips
    layouts = {
        "SFT pack of 4 documents, 40k": (
            Visibility.packed([9000, 12000, 7000, 11000], 40960),
            True,
        ),
        "GRPO tree, 16k + 8 x 4k": (Visibility.tree(16384, [4096] * 8, align=512), True),
        "vision windows of 64": (Visibility.windows([64] * 256), False),
        "vision frames of 1564": (Visibility.windows([1564] * 10, 15872), False),
    }
    for name, (vis, causal) in layouts.items():
        plan = schedule.make_plan(vis, vis, block_q=512, block_kv=512, causal=causal)
        pairs = schedule.decode(plan.by_q, plan.q_count)
        visited, least = int((pairs.full | pairs.partial).sum()), 0
        for start in range(0, vis.order.size, 512):
            seen = jax.tree.map(lambda x: x[start : start + 512], vis)  # noqa: B023
            seen = seen.dense(causal=causal, kv=vis).any(axis=0).reshape(-1, 512)
            least += int(seen.any(axis=1).sum())
        yield Row(f"blocks visited: {name}", f"{visited}", f"{least}", visited / least, 1.05)


def naive(q, k, v, mask):
    """Dense attention, kv heads repeated."""
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = jnp.einsum("BNLH,BNSH->BNLS", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    return jnp.einsum("BNLS,BNSH->BNLH", weights, v)


def cpu_rows(chips: list[str]) -> Iterator[Row]:
    """The xla path, 8k causal, forward and backward, against dense attention on this machine."""
    del chips
    length = 8192
    vis = jax.tree.map(jnp.asarray, Visibility.causal(length))
    shapes = ((1, 2, length, 64), (1, 1, length, 64), (1, 1, length, 64))
    args = [
        jnp.asarray(np.random.default_rng(i).normal(size=s), jnp.float32)
        for i, s in enumerate(shapes)
    ]

    def ours(q, k, v, vis):
        return splash_attention(q, k, v, vis, vis, causal=True, implementation="xla").sum()

    def dense(q, k, v, vis):
        return naive(q, k, v, vis.dense(causal=True)[None, None]).sum()

    times, temps = [], []
    for function in (ours, dense):
        compiled = jax.jit(jax.grad(function, argnums=(0, 1, 2))).lower(*args, vis).compile()
        temps.append(compiled.memory_analysis().temp_size_in_bytes)
        times.append(seconds(functools.partial(compiled, *args, vis), 3))
    yield Row(
        "cpu: xla path, 8k causal, fwd + bwd, time",
        f"{times[0] * 1e3:.0f} ms",
        f"{times[1] * 1e3:.0f} ms",
        times[0] / times[1],
        1.0,
    )
    yield Row(
        "cpu: xla path, 8k causal, fwd + bwd, temporaries",
        f"{temps[0] / 1e6:.0f} MB",
        f"{temps[1] / 1e6:.0f} MB",
        temps[0] / temps[1],
        1 / 8,
    )


def decode_rows(chips: list[str]) -> Iterator[Row]:
    """prefix_decode, n = 8, M = 8k, R = 256, against attention over a cache per rollout, on this machine."""
    del chips
    rollouts, prefix, suffix, heads, kv_heads, dim = 8, 8192, 256, 28, 4, 128
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    q = make(1, rollouts, heads, dim)
    shared = make(1, kv_heads, prefix, dim), make(1, kv_heads, prefix, dim)
    own = (
        make(1, rollouts, kv_heads, suffix, dim),
        make(1, rollouts, kv_heads, suffix, dim),
    )
    lengths = {
        "prefix_length": jnp.full(1, prefix, jnp.int32),
        "suffix_length": jnp.full((1, rollouts), suffix, jnp.int32),
    }
    ours = jax.jit(functools.partial(prefix_decode, implementation="xla", **lengths))
    # Without sharing: every rollout has a cache of its own that holds the prefix too.
    whole = [
        jnp.concatenate([jnp.repeat(x, rollouts, axis=0), y[0]], axis=2)
        for x, y in zip(shared, own, strict=True)
    ]
    first = jax.tree.map(lambda x: jnp.asarray(x[-1:]), Visibility.causal(prefix + suffix))
    every = jax.tree.map(jnp.asarray, Visibility.causal(prefix + suffix))
    peer = jax.jit(
        lambda q, k, v: splash_attention(q, k, v, first, every, causal=True, implementation="xla")
    )
    alone = q[0][:, :, None]
    mine = seconds(lambda: ours(q, *shared, *own), 25)
    theirs = seconds(lambda: peer(alone, *whole), 25)
    np.testing.assert_allclose(ours(q, *shared, *own)[0], peer(alone, *whole)[:, :, 0], atol=1e-5)
    yield Row(
        "cpu: prefix_decode, n 8, M 8k, R 256, time",
        f"{mine * 1e3:.1f} ms",
        f"{theirs * 1e3:.1f} ms",
        mine / theirs,
        1 / 4,
    )
    sizes = [sum(x.nbytes for x in xs) for xs in ((*shared, *own), whole)]
    yield Row(
        "cpu: prefix_decode, bytes of keys and values",
        f"{sizes[0] / 1e6:.0f} MB",
        f"{sizes[1] / 1e6:.0f} MB",
        sizes[0] / sizes[1],
        1 / 6,
    )


SECTIONS = {
    "host": host_rows,
    "visited": visited_rows,
    "cpu": cpu_rows,
    "decode": decode_rows,
    "memory": memory_rows,
    "windows": windows_rows,
    "bundles": bundle_rows,
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--chips", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    args = parser.parse_args()
    print(f"{'measure':52} {'ours':>16} {'peer':>18} {'ratio':>9} {'goal':>10}")
    for name in args.only:
        for row in SECTIONS[name](args.chips):
            print(row, flush=True)


if __name__ == "__main__":
    main()
