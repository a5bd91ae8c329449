"""Stage 0 of the embedded model: the vision tower alone, with throw-away linear heads on merged tokens.

    python -m vo3.clueworld.pretrain --workdir=DIR [--steps=400]

The heads read the clock and the card's colour from each token of an overview frame, and colour and digit from clip tokens. A further head, behind a stopped gradient, tries the digit
from overview tokens: it shows how much of the fine evidence a coarse view gives away.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from jaxtyping import Int, UInt8

from vo3.clueworld.legibility import glyph
from vo3.clueworld.scales import AGENT, VIEWS, get_scale
from vo3.clueworld.views import noisy, observe, render
from vo3.clueworld.world import COLORS, HEIGHT, HELD_OUT, WIDTH, World, make_world
from vo3.models.qwen2_5_vl.vision import VisionTower, vision_inputs
from vo3.train.optim import make_optimizer, schedule
from vo3.train.pixels import patchify_traced
from vo3.train.prefetch import prefetch

BLANK, NONE = 10, len(COLORS)
GROUPS = 111  # two digits: 0-99; one digit: 100-109; nothing: 110


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionBatch:
    """Single temporal patches (two frames) with what stands in them.

    Attributes:
      coarse: overview frames.
      clock: left and right half of each of the two clocks, see `GROUPS`.
      color: colour of the card in each of the two frames, 8 is none.
      coarse_digit: digit of that card, 10 is none.
      fine: clip frames.
      fine_color, fine_digit: per token of the clip and frame; none and 10 off the card.
    """

    coarse: UInt8[np.ndarray, "N 2 h w 3"]
    clock: Int[np.ndarray, "N 4"]
    color: Int[np.ndarray, "N 2"]
    coarse_digit: Int[np.ndarray, "N 2"]
    fine: UInt8[np.ndarray, "K 2 H W 3"]
    fine_color: Int[np.ndarray, "K P 2"]
    fine_digit: Int[np.ndarray, "K P 2"]


class VisionStream:
    """`batch(step)`: patches from `worlds` worlds, four overview patches and one clip patch each.

    A baseline, a `view` other than the agent's, has no clips: its uniform frames stand for both.
    """

    def __init__(
        self,
        seed: int = 0,
        worlds: int = 32,
        noise: float = 5.0,
        *,
        scale: str = "clueworld",
        view: str = AGENT,
    ):
        self.seed, self.worlds, self.noise = seed, worlds, noise
        self.scale, self.agent = get_scale(scale), view == AGENT
        self.policy = self.scale.view(view)

    def batch(self, step: int) -> VisionBatch:
        """The patches of a step."""
        parts = [
            self._world(np.random.default_rng([self.seed, step, i])) for i in range(self.worlds)
        ]
        stack = [np.concatenate([p[f] for p in parts]) for f in range(7)]
        return VisionBatch(*stack)

    def _world(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        world = make_world(HELD_OUT + int(rng.integers(2**40)), config=self.scale.world)
        overview = observe(world, 0, policy=self.policy)
        times = np.asarray(overview.times).reshape(-1, 2)
        shown = [i for i, pair in enumerate(times) if any(world.card_at(t) for t in pair)]
        if not shown:  # uniform frames of a baseline may miss every card
            return self._world(rng)
        picks = [int(rng.choice(shown)) for _ in range(3)] + [int(rng.integers(len(times)))]
        half = 2 if overview.height <= 28 else 1
        coarse = np.stack([self._draw(world, overview, times[i], half, rng) for i in picks])
        cards = [[world.card_at(t) for t in times[i]] for i in picks]
        clock = [[_clock_groups(t) for t in times[i]] for i in picks]
        card = world.cards[rng.integers(len(world.cards))]
        clip = overview
        if self.agent:
            window = (card.start, card.end)
            clip = observe(world, 1, policy=self.policy, window=window, strategy="fine")
        pair = np.sort(rng.uniform(card.start - 1, card.end + 1, 2))
        pair = np.clip(np.floor(pair * 4) / 4, 0, world.duration - 1)
        fine = self._draw(world, clip, pair, 1, rng)[None]
        color, digit = _token_labels(world, pair, clip.height, clip.width)
        return (
            coarse,
            np.array(clock).reshape(-1, 4),
            np.array([[_color(c) for c in two] for two in cards]),
            np.array([[c.digit if c else BLANK for c in two] for two in cards]),
            fine,
            color[None],
            digit[None],
        )

    def _draw(self, world: World, shown, times: np.ndarray, scale: int, rng) -> np.ndarray:
        frames = render(world, dataclasses.replace(shown, times=tuple(times)), scale=scale)
        return noisy(frames, rng, self.noise)


def _color(card) -> int:
    return list(COLORS).index(card.color) if card else NONE


def _clock_groups(seconds: float) -> list[int]:
    shown = f"{int(seconds):<4d}"
    halves = shown[:2].strip(), shown[2:].strip()
    return [GROUPS - 1 if not h else int(h) if len(h) == 2 else 100 + int(h) for h in halves]


def _token_labels(
    world: World, pair: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Colour and digit per token (3 rows x 6 columns in a clip) and frame: at the token that holds the digit's centre."""
    columns = width // 28
    tokens = height // 28 * columns
    color, digit = np.full((tokens, 2), NONE), np.full((tokens, 2), BLANK)
    for f, t in enumerate(pair):
        card = world.card_at(float(t))
        if card is not None:
            box = glyph(card.cell, world)
            x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
            token = int(y * height / HEIGHT) // 28 * columns + int(x * width / WIDTH) // 28
            color[token, f], digit[token, f] = _color(card), card.digit
    return color, digit


class Probe(nnx.Module):
    """The tower and its throw-away heads."""

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
        self.fine_color, self.fine_digit = head(2 * 9), head(2 * 11)


def losses(probe: Probe, batch: VisionBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum of the cross-entropies, and the accuracy of each head where there is something to read."""
    config = probe.tower.config

    def tokens(frames):
        patches = patchify_traced(frames, config)[:, 0]
        one = vision_inputs([(1, frames.shape[2] // 14, frames.shape[3] // 14)], config)
        rows = jax.tree.map(lambda f: jnp.broadcast_to(f, (len(patches), *f.shape)), one)
        return probe.tower(patches, rows)

    coarse, fine = tokens(batch.coarse), tokens(batch.fine)
    (n, m), (k, p) = coarse.shape[:2], fine.shape[:2]
    # All tokens of an overview frame learn to hold its clock and its card, so that the decoder finds the one by the other in one step of attention.
    clock = jnp.broadcast_to(batch.clock[:, None], (n, m, 4))
    color = jnp.broadcast_to(batch.color[:, None], (n, m, 2))
    scores = {
        "clock": (probe.clock(coarse).reshape(n, m, 4, GROUPS), clock, clock >= 0),
        "color": (probe.color(coarse).reshape(n, m, 2, 9), color, color >= 0),
        "leak": (
            probe.leak(jax.lax.stop_gradient(coarse[:, 1])).reshape(n, 2, 11),
            batch.coarse_digit,
            batch.coarse_digit != BLANK,
        ),
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
    }
    total, accuracy = jnp.float32(0), {}
    for name, (logits, labels, there) in scores.items():
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        # Most clip tokens hold no card; without a weight the head would learn to say so.
        weight = jnp.where(there, 1.0, 0.1 if name.startswith("fine") else 1.0)
        total += jnp.sum(loss * weight) / jnp.sum(weight)
        hit = (logits.argmax(-1) == labels) & there
        accuracy[name] = hit.sum() / jnp.maximum(there.sum(), 1)
    return total, accuracy


def main(argv: list[str] | None = None) -> None:
    """Trains and writes `vision.npz` (the tower's leaves, in tree order) and `vision_log.jsonl`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--view", choices=VIEWS, default=AGENT, help="a one-turn baseline")
    args = parser.parse_args(argv)
    train_vision(
        epath.Path(args.workdir), steps=args.steps, seed=args.seed, rate=args.rate, view=args.view
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
    make = functools.partial(VisionStream, seed, worlds, scale=scale, view=view)
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
    return part.rename(workdir / "vision.npz")


if __name__ == "__main__":
    main()
