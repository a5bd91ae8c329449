"""What the vision tower alone is trained on: temporal patches of worlds, with what stands in them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Int, UInt8

from vo3.clueworld.legibility import glyph
from vo3.clueworld.scales import AGENT, get_scale
from vo3.clueworld.views import noisy, observe, render
from vo3.clueworld.world import COLORS, HEIGHT, WIDTH, World, WorldConfig, training_world

BLANK, NONE = 10, len(COLORS)
GROUPS = 111  # two digits: 0-99; one digit: 100-109; nothing: 110

# Where digits do not lie alike in their tokens (up to nine ways in frames of 112 x 56) a tower that begins with small ones reads none within 750 steps. So that
# no baseline owes its result to the places of cards, such a tower is trained thrice as long, with larger digits at first: (share of the steps, pixels of a dot).
STEPS, LONGER = 400, 1200
_DOTS = ((0.3, 5), (0.45, 4), (0.6, 3))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionBatch:
    """Single temporal patches (two frames) with what stands in them.

    Attributes:
      coarse: overview frames.
      clock: left and right half of each of the two clocks, see `GROUPS`.
      color: colour of the card in each of the two frames, 8 is none.
      coarse_digit: digit of that card, 10 is none.
      fine: clip frames; None for a baseline, which reads cards off its only frames.
      fine_color, fine_digit: per token and frame of these; none and 10 off the card.
    """

    coarse: UInt8[np.ndarray, "N 2 h w 3"]
    clock: Int[np.ndarray, "N 4"]
    color: Int[np.ndarray, "N 2"]
    coarse_digit: Int[np.ndarray, "N 2"]
    fine: UInt8[np.ndarray, "K 2 H W 3"] | None
    fine_color: Int[np.ndarray, "K P 2"]
    fine_digit: Int[np.ndarray, "K P 2"]


class VisionStream:
    """`batch(step)`: patches from `worlds` worlds, four overview patches and one clip patch each.

    A baseline, a `view` other than the agent's, has no clips: its five patches are all uniform frames, and all are labelled as both. Over `steps` its digits shrink to
    their size where they do not lie alike in their tokens.
    """

    def __init__(
        self,
        seed: int = 0,
        worlds: int = 32,
        noise: float = 5.0,
        *,
        scale: str = "clueworld",
        view: str = AGENT,
        steps: int = STEPS,
    ):
        self.seed, self.worlds, self.noise, self.steps = seed, worlds, noise, steps
        self.scale, self.agent = get_scale(scale), view == AGENT
        self.policy = self.scale.view(view)
        self.dots = () if self.scale.alike(view) else _DOTS

    def batch(self, step: int) -> VisionBatch:
        """The patches of a step."""
        parts = [
            self._world(np.random.default_rng([self.seed, step, i]), self._config(step))
            for i in range(self.worlds)
        ]
        return jax.tree.map(lambda *values: np.concatenate(values), *parts)

    def _config(self, step: int) -> WorldConfig:
        larger = (dot for share, dot in self.dots if step < share * self.steps)
        config = self.scale.world
        return dataclasses.replace(config, dot=next(larger, config.dot))

    def _world(self, rng: np.random.Generator, config: WorldConfig) -> VisionBatch:
        world = training_world(rng, config)
        overview = observe(world, 0, policy=self.policy)
        times = np.asarray(overview.times).reshape(-1, 2)
        shown = [i for i, pair in enumerate(times) if any(world.card_at(t) for t in pair)]
        if not shown:  # uniform frames of a baseline may miss every card
            return self._world(rng, config)
        picks = [int(rng.choice(shown)) for _ in range(3)] + [int(rng.integers(len(times)))]
        half = 2 if overview.height <= 28 else 1
        pairs = [times[i] for i in picks]
        coarse = [self._draw(world, overview, pair, half, rng) for pair in pairs]
        card = world.cards[rng.integers(len(world.cards))]
        pair = np.sort(rng.uniform(card.start - 1, card.end + 1, 2))
        pair = np.clip(np.floor(pair * 4) / 4, 0, world.duration - 1)
        if self.agent:
            window = (card.start, card.end)
            clip = observe(world, 1, policy=self.policy, window=window, strategy="fine")
            fine, read = self._draw(world, clip, pair, 1, rng)[None], [pair]
        else:
            clip, fine = overview, None
            coarse.append(self._draw(world, overview, pair, half, rng))
            pairs.append(pair)
            read = pairs
        cards = [[world.card_at(float(t)) for t in two] for two in pairs]
        labels = [_token_labels(world, two, clip.height, clip.width) for two in read]
        return VisionBatch(
            coarse=np.stack(coarse),
            clock=np.array([[_clock_groups(t) for t in two] for two in pairs]).reshape(-1, 4),
            color=np.array([[_color(c) for c in two] for two in cards]),
            coarse_digit=np.array([[c.digit if c else BLANK for c in two] for two in cards]),
            fine=fine,
            fine_color=np.stack([color for color, _ in labels]),
            fine_digit=np.stack([digit for _, digit in labels]),
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
