"""The policy update on a group as one tree row, beside the same update on padded rows: `python -m benchmarks.grpo`.

A group of 8 rollouts that share a prompt of 4,096 tokens and add 512 each. One side computes [prefix | leaf 1 | ... | leaf 8] as a row,
the other what a trainer without trees does: 8 rows of 4,608 tokens, the prompt in each. Model, weights, loss, precision (f32) and threads are the
same; loss and gradients are checked to be equal before anything is timed. The runs alternate, so that other load falls on both; medians stand
in the table, compilation is not counted.

    python -m benchmarks.grpo [--prefix=4096] [--leaf=512] [--leaves=8] [--repeats=3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig
from vo3.train import group_rows, group_trees, rl_config, sharding
from vo3.train.config import override
from vo3.train.policy_loss import PolicyLoss
from vo3.train.policy_step import PolicyPrograms
from vo3.train.state import initial_params, trainable

ALIGN = 128


def group(prefix: int, leaf: int, leaves: int, config: Qwen2_5_VLConfig) -> group_trees.Tree:
    """Random tokens; every leaf's second half was sampled."""
    rng = np.random.default_rng(0)

    def part(size: int, start: int) -> group_trees.Part:
        places = np.arange(start, start + size, dtype=np.int32)
        return group_trees.Part(
            ids=rng.integers(0, 200, size).astype(np.int32),
            positions=np.broadcast_to(places, (3, size)),
            feature_index=np.full(size, -1, np.int32),
            grids=(),
            patches=np.zeros((0, config.vision.patch_dim), np.uint8),
        )

    loss = np.arange(leaf) >= leaf // 2
    return group_trees.Tree(
        "bench",
        part(prefix, 0),
        tuple(
            group_trees.Leaf(part(leaf, prefix), loss, np.zeros(leaf, np.float32), float(a), i)
            for i, a in enumerate(rng.normal(size=leaves))
        ),
        leaves,
    )


def main(argv: list[str] | None = None) -> None:
    """Checks, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prefix", type=int, default=4096)
    parser.add_argument("--leaf", type=int, default=512)
    parser.add_argument("--leaves", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    model = Qwen2_5_VLConfig.tiny(text={"initializer_range": 0.1})
    config = override(
        rl_config.defaults(),
        **{"model": "clueworld", "init_from": "random", "dtype": "float32", "remat": "none", "steps": 2, "mesh.fsdp": 1},
    )  # fmt: skip
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    run = trainable(config, mesh, model=model)
    programs = PolicyPrograms(run, PolicyLoss())
    params, frozen = run.split(initial_params(run))
    state = run.new_state(params)
    tree = group(args.prefix, args.leaf, args.leaves, model)
    apart = [[part] for part in group_trees.apart(tree)]
    batches = {}
    for name, rows in (("tree row", [[tree]]), (f"{args.leaves} padded rows", apart)):
        needs = [piece.needs(ALIGN) for row in rows for piece in row]
        tokens = -(-max(n.tokens for n in needs) // ALIGN) * ALIGN
        shape = group_trees.Shape(tokens, 4, max(n.scored for n in needs))
        batch = group_rows.build_rows(
            rows, shape, model, align=ALIGN, aggregation="seq-mean-token-mean"
        )
        batches[name] = sharding.place(batch, mesh)

    def update(name: str):
        partial = programs.add(programs.zero(), state, frozen, batches[name], None)
        return jax.block_until_ready(partial)

    found = {name: update(name) for name in batches}  # compiles, too
    one, other = found.values()
    scale = np.sqrt(sum(float((x**2).sum()) for x in other.gradient.values()))
    apart_by = max(
        float(np.linalg.norm(np.asarray(one.gradient[n] - other.gradient[n]))) / scale
        for n in one.gradient
    )
    loss = abs(float(one.sums.loss - other.sums.loss))
    if apart_by > 1e-5 or loss > 1e-4:
        raise SystemExit(
            f"not the same: gradients differ by {apart_by:.1e}, the loss by {loss:.1e}"
        )
    seconds: dict[str, list[float]] = {name: [] for name in batches}
    for _ in range(args.repeats):
        for name in batches:
            begin = time.perf_counter()
            update(name)
            seconds[name].append(time.perf_counter() - begin)
    title = f"policy update, prefix {args.prefix:,}, {args.leaves} leaves of {args.leaf}, f32, {jax.devices()[0].platform}"
    table = Table(title=title)
    for column in ("", "tokens", "seconds", "times the tree row"):
        table.add_column(column, justify="left" if not column else "right")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians["tree row"]
    for name, median in medians.items():
        live = int((np.asarray(batches[name].rows.visibility.enter) >= 0).sum())
        table.add_row(name, f"{live:,}", f"{median:.2f}", f"{median / base:.2f}")
    console = Console()
    console.print(table)
    console.print(f"largest gradient difference, of the whole gradient's norm: {apart_by:.1e}")


if __name__ == "__main__":
    main()
