"""Stage 0 of the embedded model: the vision tower alone, with throw-away linear heads on merged tokens.

    python -m vo3.clueworld.pretrain --workdir=DIR

The heads read the clock and the card's colour from each token of an overview frame; from the tokens of a clip's frame colour and digit where they stand, and the digit at every one of them.
A further head, behind a stopped gradient, tries the digit from overview tokens: it shows how much of the fine evidence a coarse view gives away. A baseline (`--view`) has one kind of frame, whose
tokens learn all of it.
"""

from __future__ import annotations

import argparse
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx

from vo3.clueworld.patches import (
    BLANK,
    GROUPS,
    LONGER,
    NONE,
    STEPS,
    VisionBatch,
    VisionStream,
)
from vo3.clueworld.scales import AGENT, VIEWS, get_scale
from vo3.models.qwen2_5_vl.vision import VisionTower, vision_inputs
from vo3.train.optim import make_optimizer, schedule
from vo3.train.pixels import patchify_traced
from vo3.train.prefetch import prefetch

_SPARSE = ("fine_color", "fine_digit", "digit")


class Probe(nnx.Module):
    """The tower and its linear probes; only the tower is kept."""

    def __init__(self, *, rngs: nnx.Rngs, scale: str = "clueworld"):
        config = get_scale(scale).model()
        self.tower = VisionTower(
            config.vision,
            rngs=rngs,
            dtype=jnp.float32,
            param_dtype=jnp.float32,
            unroll=config.scan_unroll,
        )
        head = functools.partial(nnx.Linear, config.vision.out_hidden_size, rngs=rngs)
        self.clock, self.color, self.leak = head(4 * GROUPS), head(2 * 9), head(2 * 11)
        self.fine_color, self.fine_digit, self.digit = head(2 * 9), head(2 * 11), head(2 * 11)


def losses(probe: Probe, batch: VisionBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum of the cross-entropies, and the accuracy of each head where there is something to read."""
    config = probe.tower.config

    def tokens(frames):
        patches = patchify_traced(frames, config)[:, 0]
        one = vision_inputs([(1, frames.shape[2] // 14, frames.shape[3] // 14)], config)
        rows = jax.tree.map(lambda f: jnp.broadcast_to(f, (len(patches), *f.shape)), one)
        return probe.tower(patches, rows)

    coarse = tokens(batch.coarse)
    fine = coarse if batch.fine is None else tokens(batch.fine)
    (n, m), (k, p) = coarse.shape[:2], fine.shape[:2]
    # All tokens of an overview frame learn to hold its clock and its card, so that the decoder finds the one by the other in one step of attention.
    clock = jnp.broadcast_to(batch.clock[:, None], (n, m, 4))
    color = jnp.broadcast_to(batch.color[:, None], (n, m, 2))
    # Asked at its own token alone the decoder finds no digit in `read`; asked at every token alone the tower of smaller frames hardly learns it.
    digit = jnp.broadcast_to(batch.fine_digit.min(1)[:, None], (k, p, 2))
    # The second token of an overview frame is the half where cards stand; of larger frames it is another place.
    leak = {
        "leak": (
            probe.leak(jax.lax.stop_gradient(coarse[:, 1])).reshape(n, 2, 11),
            batch.coarse_digit,
            batch.coarse_digit != BLANK,
        )
    }
    scores = {
        "clock": (probe.clock(coarse).reshape(n, m, 4, GROUPS), clock, clock >= 0),
        "color": (probe.color(coarse).reshape(n, m, 2, 9), color, color >= 0),
        **(leak if m == 2 else {}),
        "fine_color": (
            probe.fine_color(fine).reshape(k, p, 2, 9),
            batch.fine_color,
            batch.fine_color != NONE,
        ),
        "fine_digit": (
            probe.fine_digit(fine).reshape(k, p, 2, 11),
            batch.fine_digit,
            batch.fine_digit != BLANK,
        ),
        "digit": (probe.digit(fine).reshape(k, p, 2, 11), digit, digit != BLANK),
    }
    total, accuracy = jnp.float32(0), {}
    for name, (logits, labels, there) in scores.items():
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        # Most tokens hold no card; without a weight the head would learn to say so.
        weight = jnp.where(there, 1.0, 0.1 if name in _SPARSE else 1.0)
        total += jnp.sum(loss * weight) / jnp.sum(weight)
        hit = (logits.argmax(-1) == labels) & there
        accuracy[name] = hit.sum() / jnp.maximum(there.sum(), 1)
    return total, accuracy


def main(argv: list[str] | None = None) -> None:
    """Trains and writes `vision.npz` (the tower's leaves, in tree order) and `vision_log.jsonl`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument(
        "--steps", type=int, help=f"{STEPS}; {LONGER} where digits do not lie alike"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--view", choices=VIEWS, default=AGENT, help="a one-turn baseline")
    args = parser.parse_args(argv)
    steps = args.steps
    if args.seed < 0 or (steps is not None and steps < 1):
        raise SystemExit(
            f"pretrain: --seed {args.seed} and --steps {steps}: seeds are 0 or above, steps 1 or more"
        )
    if steps is None:
        steps = STEPS if get_scale("clueworld").alike(args.view) else LONGER
    train_vision(
        epath.Path(args.workdir), steps=steps, seed=args.seed, rate=args.rate, view=args.view
    )


def train_vision(
    workdir: epath.Path,
    *,
    steps: int,
    seed: int,
    rate: float = 0.02,
    worlds: int = 32,
    scale: str = "clueworld",
    view: str = AGENT,
) -> epath.Path:
    """Trains; returns the path of `vision.npz`, which appears when it is complete."""
    workdir.mkdir(parents=True, exist_ok=True)
    probe = Probe(rngs=nnx.Rngs(seed), scale=scale)
    graph, params = nnx.split(probe, nnx.Param)
    at = functools.partial(schedule, "cosine", steps=steps, warmup=min(50, steps // 4))
    optimizer = make_optimizer("muon", at(rate), adam_rate=at(3e-3))
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        def loss(p):
            return losses(nnx.merge(graph, p), batch)

        (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value, accuracy

    begin = time.time()
    make = functools.partial(VisionStream, seed, worlds, scale=scale, view=view, steps=steps)
    with (workdir / "vision_log.jsonl").open("w") as log:
        for i, batch in enumerate(prefetch(make, start=0, stop=steps)):
            params, state, value, accuracy = step(params, state, batch)
            if i % 50 == 0 or i == steps - 1:
                row = {"step": i, "seconds": round(time.time() - begin, 1), "loss": float(value)}
                row |= {k: round(float(v), 4) for k, v in accuracy.items()}
                log.write(json.dumps(row) + "\n")
                print(row, flush=True)
    tower = nnx.state(nnx.merge(graph, params).tower, nnx.Param)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tower)]
    part = workdir / ".vision.npz"
    with part.open("wb") as file:
        np.savez(file, *leaves)
    return part.replace(workdir / "vision.npz")


if __name__ == "__main__":
    main()
