"""How far the sampler's log-probabilities are from the trainer's, beside what f32 leaves open: `python -m benchmarks.gap`.

The embedded model answers training prompts at temperature 1 on real videos. Each sampled token has these log-probabilities, all of the same function in f32:

* sampler: as the group engine drew it, token by token over a cache;
* trainer: as the update computes it, the whole group as one tree row;
* reordered: as the trainer, of a network whose hidden units stand in another order, its matrices permuted to match. In exact arithmetic nothing changes; in f32 every sum is
  taken in another order.

What trainer and reordered differ by is rounding and nothing else, so the sampler cannot be held to less.

    python -m benchmarks.gap [--prompts=48] [--group=8] [--orders=3] [--model=clueworld]
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

import vo3.models
from configs import rl_clueworld
from vo3.train import group_rows, group_trees, policy_step, rl_config
from vo3.train.collect import Collector
from vo3.train.config import override
from vo3.train.grpo import Setting, make_roller
from vo3.train.prompts import make_prompts, opener

# Tokens by how likely they were, -log p.
BINS = (0.0, 0.01, 0.1, 1.0, np.inf)


# Axis of each parameter that runs over the residual stream of its tower, and over the hidden units of its MLPs. "vision.merger.fc1.kernel" reads four tokens at once.
RESIDUAL = {
    "scale": -1, "q.kernel": -2, "k.kernel": -2, "v.kernel": -2, "qkv.kernel": -2, "gate.kernel": -2, "up.kernel": -2, "o.kernel": -1,
    "proj.kernel": -1, "proj.bias": -1, "down.kernel": -1, "down.bias": -1, "table": -1, "patch_embed.kernel": -1,
    "fc2.kernel": -1, "fc2.bias": -1,
}  # fmt: skip
HIDDEN = {"gate.kernel": -1, "gate.bias": -1, "up.kernel": -1, "up.bias": -1, "down.kernel": -2}


def reordered(model: nnx.Module, seed: int) -> nnx.Module:
    """The same function: the hidden units of both towers in another order, drawn by `seed`."""
    rng = np.random.default_rng(seed)
    text, vision = model.config.text, model.config.vision
    sizes = {
        "text": (text.hidden_size, text.intermediate_size),
        "vision": (vision.hidden_size, vision.intermediate_size),
    }
    orders = {name: [rng.permutation(n) for n in size] for name, size in sizes.items()}

    def moved(path: tuple[str, ...], value: nnx.Param) -> nnx.Param:
        name, x = ".".join(path), np.asarray(value[...])
        # The merger's output is what the decoder reads.
        tower = "vision" if path[0] == "vision" and "fc2" not in path else "text"
        for axes, order in zip((RESIDUAL, HIDDEN), orders[tower], strict=True):
            axis = next((axes[end] for end in axes if name.endswith(f".{end}")), None)
            x = x if axis is None else np.take(x, order, axis)
        if name == "vision.merger.fc1.kernel":
            order = orders["vision"][0]
            x = x.reshape(-1, len(order), x.shape[-1])[:, order].reshape(x.shape)
        return value.replace(jax.numpy.asarray(x))

    graph, state = nnx.split(model)
    flat = {path: moved(path, value) for path, value in nnx.to_flat_state(state)}
    return nnx.merge(graph, nnx.from_flat_state(flat))


def sampled_rows(config, folder: str) -> tuple[nnx.Module, list[group_rows.PolicyBatch]]:
    """The model, and a tree row a group of its rollouts."""
    setting = Setting.of(config)
    model = vo3.models.load(config.model)
    roller = make_roller(config, setting, opener(setting.crop_policy, config.data.time_limit))
    roller.update(model)
    collected = Collector(config, make_prompts(config, folder), roller).step(0, 0)
    rows = []
    for group in collected.groups:
        mine = [r for r in group.rollouts if r.lost is None]
        tree = group_trees.group_tree(
            [r.rollout for r in mine],
            [1.0] * len(mine),
            [r.trained for r in mine],
            setting.tokenizer,
            model.config,
            sequences=len(mine),
        )
        shapes, align = rl_config.shapes(config), config.rl.align
        shape = shapes[group_rows.choose([tree], shapes, align=align)]
        for row in group_rows.pack([tree], shape, align=align):
            options = {"align": align, "aggregation": config.rl.aggregation}
            rows.append(group_rows.build_rows([row], shape, model.config, **options))
    return model, rows


def scores(model: nnx.Module, rows: list[group_rows.PolicyBatch]) -> np.ndarray:
    """The trainer's log-probabilities of the sampled tokens, one row after the other."""
    graph, state = nnx.split(model)
    program = jax.jit(lambda s, b: policy_step.scores_of(nnx.merge(graph, s), b).logprob)
    return np.concatenate([np.asarray(program(state, row))[row.scored.leaf >= 0] for row in rows])


def main(argv: list[str] | None = None) -> None:
    """Runs, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--model", default="clueworld")
    args = parser.parse_args(argv)
    config = override(
        rl_clueworld.get_config(),
        **{
            "model": args.model, "rl.prompts_per_step": args.prompts, "rl.group": args.group, "rl.min_std": 0.0,
            "rl.clueworld.worlds": 12, "rl.clueworld.longest": 300,
        },
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        model, rows = sampled_rows(config, folder)
    sampler = np.concatenate([row.scored.sampler[row.scored.leaf >= 0] for row in rows])
    trainer = scores(model, rows)
    others = [scores(reordered(model, seed), rows) for seed in range(args.orders)]
    pairs = {"sampler, trainer": [sampler - trainer]}
    pairs["trainer, reordered"] = [trainer - other for other in others]
    pairs["sampler, reordered"] = [sampler - other for other in others]
    table = Table(
        title=f"{len(sampler):,} tokens of {args.prompts} x {args.group} rollouts, f32, {jax.devices()[0].platform}"
    )
    for column in ("log-probabilities of", "mean", "99.9 %", "largest"):
        table.add_column(column, justify="left" if column.startswith("log") else "right")
    for low, high in itertools.pairwise(BINS):
        table.add_column(f"-log p {low:g} to {high:g}", justify="right")
    inside = [(low <= -trainer) & (-trainer < high) for low, high in itertools.pairwise(BINS)]
    for name, gaps in pairs.items():
        gaps = np.abs(gaps)
        figures = [gaps.mean(), np.quantile(gaps, 0.999), gaps.max()]
        figures += [gaps[:, some].max(initial=0) for some in inside]
        table.add_row(name, *(f"{x:.1e}" for x in figures))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
