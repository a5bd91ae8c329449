"""How legible a digit is at a resolution, measured without a model, and how it lies on the patches of that resolution.

The reader knows where the card is and what colour it has, and compares the pixels around the digit with what each digit looks like at this place and size on average:
the nearest template, with distances weighted by the covariance of what else there is (blotches, grain). How near the others are says how probable they are: what it half reads still
tells options and comparisons apart.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt8

from vo3.clueworld.pixels import Renderer, card_sprite, corner, ink
from vo3.clueworld.views import noisy
from vo3.clueworld.world import (
    CARD,
    COLORS,
    GLYPH_AT,
    HEIGHT,
    WIDTH,
    Card,
    World,
    WorldConfig,
    make_world,
)  # fmt: skip
from vo3.video.resize import resize

MARGIN = 2  # pixels of the native frame around a digit that the reader sees too
NOISE = 5.0  # grey levels, as in training


@dataclasses.dataclass(frozen=True)
class Box:
    """Pixels [left, right) x [top, bottom)."""

    left: float
    top: float
    right: float
    bottom: float


def cells(config: WorldConfig) -> list[tuple[int, int]]:
    """The places of cards, (column, row)."""
    side = range(HEIGHT // config.pitch)
    return [(x, y) for x in side for y in side]


def glyph(cell: tuple[int, int], drawn: World | WorldConfig) -> Box:
    """Where the digit of a card stands in the native frame."""
    left, top = (at + off for at, off in zip(corner(cell, drawn), GLYPH_AT, strict=True))
    return Box(left, top, left + 5 * drawn.dot, top + 7 * drawn.dot)


def cut_cells(height: int, width: int, config: WorldConfig, *, side: int) -> dict[str, float]:
    """Share of the places whose digit is cut by a border between squares of `side` pixels, in frames of this size.

    Returns:
      "columns": cut by a vertical border; "rows": by a horizontal one; "any": by either.
    """
    x, y = width / WIDTH, height / HEIGHT
    cut = lambda low, high: np.floor(low / side) != np.floor((high - 1e-6) / side)
    boxes = [glyph(cell, config) for cell in cells(config)]
    columns = np.array([cut(b.left * x, b.right * x) for b in boxes])
    rows = np.array([cut(b.top * y, b.bottom * y) for b in boxes])
    return {
        "columns": float(columns.mean()),
        "rows": float(rows.mean()),
        "any": float((columns | rows).mean()),
    }


class Reader:
    """Reads digits in frames of one size.

    Args:
      height, width: of the frames.
      config: of the worlds.
      frames: frames with a card in every place that the templates are made from.
      seed: of these.

    Raises:
      ValueError: a digit stands in none of them in some place.
    """

    def __init__(
        self, height: int, width: int, config: WorldConfig, *, frames: int = 400, seed: int = 0
    ):
        self.size, self.config = (height, width), config
        rng = np.random.default_rng([0x1E6, seed])
        samples: dict[tuple[int, int], list] = {cell: [] for cell in cells(config)}
        for _ in range(frames):
            frame, cards = self._sheet(rng)
            shown = resize(noisy(frame[None], rng, NOISE)[0], height, width)
            for card in cards:
                samples[card.cell].append((self._features(shown, card), card.digit))
        self._readers = {cell: _Nearest(*zip(*some, strict=True)) for cell, some in samples.items()}

    def read(self, frame: UInt8[np.ndarray, "h w 3"], card: Card) -> Float[np.ndarray, "10"]:
        """How probable it is that the frame shows each digit on `card`, whose own digit is not looked at."""
        return self._readers[card.cell](self._features(frame, card))

    def _sheet(self, rng: np.random.Generator) -> tuple[np.ndarray, list[Card]]:
        """A frame with a card in every cell."""
        frame = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
        cards = []
        for x, y in cells(self.config):
            card = Card(str(rng.choice(self.config.colors)), int(rng.integers(10)), 0, 1, (x, y))
            world = World(int(rng.integers(2**31)), 1, (card,), (0,), (), self.config.dot)
            left, top = corner((x, y), self.config)
            frame[top : top + CARD, left : left + CARD] = card_sprite(world, card, 1)
            cards.append(card)
        return frame, cards

    def _features(self, frame: np.ndarray, card: Card) -> Float[np.ndarray, "N"]:
        """Contrast to the card's colour around its digit, positive towards the ink."""
        box, (h, w) = glyph(card.cell, self.config), self.size
        x0, x1 = (box.left - MARGIN) * w / WIDTH, (box.right + MARGIN) * w / WIDTH
        y0, y1 = (box.top - MARGIN) * h / HEIGHT, (box.bottom + MARGIN) * h / HEIGHT
        part = frame[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))].astype(np.float64)
        base = float(np.mean(COLORS[card.color]))
        return ((part.mean(-1) - base) / (ink(card.color) - base)).ravel()


class _Nearest:
    """Classes of one covariance, equally frequent: how probable each is by the distance of its mean."""

    def __init__(self, features: tuple[np.ndarray, ...], labels: tuple[int, ...]):
        x, y = np.stack(features), np.asarray(labels)
        if missing := set(range(10)).difference(labels):
            raise ValueError(
                f"no template of {min(missing)}: {len(labels)} frames have none in some place; make them from more"
            )
        self.means = np.stack([x[y == digit].mean(0) for digit in range(10)])
        rest = x - self.means[y]
        covariance = rest.T @ rest / len(x)
        ridge = 1e-3 * np.trace(covariance) / len(covariance)
        self.weight = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))

    def __call__(self, features: np.ndarray) -> Float[np.ndarray, "10"]:
        away = features - self.means
        distance = np.einsum("dn,nm,dm->d", away, self.weight, away)
        near = np.exp((distance.min() - distance) / 2)
        return near / near.sum()


@dataclasses.dataclass(frozen=True)
class Readings:
    """What a reader makes of cards.

    Attributes:
      digits: on the cards.
      probable: how probable the reader holds each digit.
    """

    digits: Int[np.ndarray, "cards"]
    probable: Float[np.ndarray, "cards 10"]

    @property
    def right(self) -> int:
        """Cards whose digit is the most probable one."""
        return int((self.probable.argmax(1) == self.digits).sum())

    @property
    def total(self) -> int:
        """Cards."""
        return len(self.digits)

    def of(self, digit: int) -> Float[np.ndarray, "some 10"]:
        """The readings of the cards with this digit.

        Raises:
          ValueError: there is none.
        """
        some = self.probable[self.digits == digit]
        if not len(some):
            raise ValueError(f"none of {self.total} cards shows {digit}; read more worlds")
        return some


def readings(reader: Reader, *, worlds: int, first_seed: int, seed: int = 0) -> Readings:
    """What the reader makes of the cards of some worlds, of one frame a card."""
    rng = np.random.default_rng([0x4EAD, seed])
    digits, probable = [], []
    for number in range(first_seed, first_seed + worlds):
        world = make_world(number, config=reader.config)
        renderer = Renderer(world)
        for card in world.cards:
            frame = renderer.frame(float(rng.uniform(card.start, card.end)))
            shown = resize(noisy(frame[None], rng, NOISE)[0], *reader.size)
            digits.append(card.digit)
            probable.append(reader.read(shown, card))
    return Readings(np.asarray(digits), np.asarray(probable))
