"""The synthetic world: a long video in which a few coloured cards show up briefly, each with a digit on it.

What a coarse view shows: a burnt-in clock (seconds), the background, drifting distractors, and that a card of some colour is there. The digit on the card is plain in a fine clip and hard to read in a
coarse frame (`vo3.clueworld.bounds` measures how hard). Nothing can be answered but from pixels.

Geometry, in native pixels (336 x 168): the clock panel is the upper left quarter; cards stand on a 3 x 3 grid of 56 px cells in the right half.
An overview frame of the embedded model is 56 x 28 (a sixth), a fine clip 168 x 84 (half). `vo3.clueworld.pixels` draws them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

WIDTH, HEIGHT, FPS = 336, 168, 4.0
MIN_DURATION, MAX_DURATION = 120, 3600  # seconds
CELL = 56  # one 28 px token of a fine clip
# World seeds below are never trained on: they belong to tests, demos and evaluation.
HELD_OUT = 100_000
VISIBLE_SHARE = (0.02, 0.03)  # of the duration, per card
CARD = 48  # pixels of a card's side
GLYPH_AT = (6, 6)  # left and top of the digit on its card

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 20),
    "yellow": (245, 221, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (140, 50, 180),
    "pink": (250, 130, 190),
    "white": (245, 245, 245),
}
CLOCK_MOST = 9999  # seconds that the clock's four digits show


class WorldError(ValueError):
    """A world that cannot be drawn; the message names the field and the remedy."""


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """What worlds are drawn like.

    Attributes:
      shortest, longest: seconds; durations are log-uniform between them. The clock shows four digits.
      colors: names out of `COLORS` that cards may have.
      fewest, most: cards of a world.
      visible: share of the duration in which a card shows, (least, most).
      overview: frames of the overview that shall not miss a card: each shows for longer than a part in so many.
      gap: share of the duration between cards, at least.
      dot: pixels of a dot of the digits; a digit is 5 x 7 dots.
      pitch: pixels between the places of cards, across and along; as many as fit stand in the right half.

    Raises:
      WorldError: it cannot be drawn.
    """

    shortest: int = MIN_DURATION
    longest: int = MAX_DURATION
    colors: tuple[str, ...] = tuple(COLORS)
    fewest: int = 3
    most: int = 5
    visible: tuple[float, float] = VISIBLE_SHARE
    overview: int = 64
    gap: float = 0.04
    dot: int = 2
    pitch: int = CELL

    def __post_init__(self) -> None:
        for fault in self._faults():
            raise WorldError(f"WorldConfig.{fault}")

    def _faults(self) -> Iterator[str]:
        if self.shortest < 1:
            yield f"shortest is {self.shortest} s; a world lasts at least 1 s"
        if not self.shortest <= self.longest <= CLOCK_MOST:
            yield f"longest is {self.longest} s; it lies between shortest, {self.shortest} s, and what the clock shows, {CLOCK_MOST} s"
        unknown = [c for c in self.colors if c not in COLORS]
        if unknown or len(set(self.colors)) < len(self.colors):
            yield f"colors is {self.colors}; different ones out of {', '.join(COLORS)}"
        if not 1 <= self.fewest <= self.most:
            yield f"fewest is {self.fewest}; it lies between 1 and most, {self.most}"
        if self.most > len(self.colors):
            yield f"most is {self.most}; the cards of a world differ in colour and there are {len(self.colors)} colors"
        if not 0 < self.visible[0] <= self.visible[1] < 1:
            yield f"visible is {self.visible}; two shares above 0 and below 1, the smaller first"
        if self.overview < 2:
            yield f"overview is {self.overview}; an overview has at least 2 frames"
        if not 0 <= self.gap < 1:
            yield f"gap is {self.gap}; a share, at least 0 and below 1"
        if self.dot < 1:
            yield f"dot is {self.dot}; a dot is at least 1 pixel"
        if not CELL <= self.pitch <= HEIGHT:
            yield f"pitch is {self.pitch}; it lies between {CELL}, a card with its edge, and {HEIGHT}, the frame's height"
        width, height = GLYPH_AT[0] + 5 * self.dot, GLYPH_AT[1] + 7 * self.dot
        if max(width, height) > CARD:
            yield f"dot is {self.dot}: digits reach to {width} x {height} pixels of cards of {CARD} x {CARD}; at most {(CARD - GLYPH_AT[1]) // 7}"
        durations = np.arange(self.shortest, self.longest + 1)
        for seconds in durations[~self.fits(durations)][:1]:
            yield (
                f"most is {self.most}: so many cards, each shown for up to {self.visible[1]:.1%} and apart by {self.gap:.1%}, "
                f"do not fit into {seconds} s; lower most, visible or gap, or lengthen the video"
            )

    def lengths(self, shares: np.ndarray | float, duration: int | np.ndarray) -> np.ndarray:
        """Whole seconds for which cards show that take these shares of the duration.

        A card starts on a whole second, so that the clock's seconds are inside its interval wherever it is seen,
        and lasts longer than the distance of two overview frames, so that the overview cannot miss it.
        """
        shown = np.ceil(shares * duration)
        return np.maximum(shown, np.floor(duration / self.overview) + 1).astype(int)

    def fits(self, duration: int | np.ndarray) -> np.ndarray:
        """Whether any draw of cards has room in so many seconds."""
        shown = self.most * self.lengths(self.visible[1], duration)
        return duration - shown - self.pause(duration) * (self.most + 1) > 0

    def pause(self, duration: int | np.ndarray) -> np.ndarray:
        """Whole seconds between cards, at least: one overview patch without a card in between."""
        return np.maximum(1, np.floor(self.gap * np.asarray(duration)).astype(int))


@dataclasses.dataclass(frozen=True)
class Card:
    """A card: its colour and digit, the seconds [start, end) in which it shows, and its cell (column, row) of 3 x 3."""

    color: str
    digit: int
    start: int
    end: int
    cell: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Distractor:
    """A grey disc that drifts on a sine path: centre, amplitude and radius in native pixels, period in seconds."""

    center: tuple[float, float]
    amplitude: tuple[float, float]
    period: float
    phase: float
    radius: int
    shade: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class World:
    """Everything that decides the pixels of one video; a pure function of its seed.

    Attributes:
      seed: of the world.
      duration: seconds.
      cards: in order of appearance; colours differ, intervals do not touch.
      cuts: seconds at which the background changes, the first is 0.
      distractors: discs that are always there.
      dot: pixels of a dot of the digits.
      pitch: pixels between the places of cards.
    """

    seed: int
    duration: int
    cards: tuple[Card, ...]
    cuts: tuple[int, ...]
    distractors: tuple[Distractor, ...]
    dot: int = dataclasses.field(default=2, repr=False)
    pitch: int = dataclasses.field(default=CELL, repr=False)

    @property
    def frames(self) -> int:
        """Frames of the whole video at `FPS`."""
        return int(self.duration * FPS)

    def card_at(self, seconds: float) -> Card | None:
        """The card that shows at that time, if any."""
        return next((c for c in self.cards if c.start <= seconds < c.end), None)


def make_world(
    seed: int, *, duration: int | None = None, config: WorldConfig | None = None
) -> World:
    """The world of a seed.

    Args:
      seed: decides everything, with the config.
      duration: seconds; None: log-uniform between the config's (2 to 60 minutes).
      config: None: that of the embedded model.

    Raises:
      WorldError: the seed is negative, the duration has no room for the cards, or the clock not enough digits for it.
    """
    if seed < 0:
        raise WorldError(f"seed is {seed}; seeds of worlds are 0 or above")
    config = config or WorldConfig()
    rng = np.random.default_rng([0xC10E, seed])
    low, high = np.log(config.shortest), np.log(config.longest)
    drawn = int(np.exp(rng.uniform(low, high)))
    duration = drawn if duration is None else int(duration)
    if duration < config.shortest:
        raise WorldError(
            f"duration is {duration} s, a world lasts at least {config.shortest} s; see WorldConfig.shortest"
        )
    if duration > CLOCK_MOST:
        raise WorldError(
            f"duration is {duration} s; the clock shows four digits, at most {CLOCK_MOST} s: shorten it"
        )
    if not config.fits(duration):
        raise WorldError(
            f"duration is {duration} s, without room for WorldConfig.most = {config.most} cards"
        )
    cuts = np.unique(np.r_[0, rng.integers(1, duration, rng.integers(3, 10))])
    return World(
        seed=seed,
        duration=duration,
        cards=_make_cards(rng, duration, config),
        cuts=tuple(int(c) for c in cuts),
        distractors=tuple(_make_distractor(rng) for _ in range(rng.integers(2, 5))),
        dot=config.dot,
        pitch=config.pitch,
    )


def training_world(rng: np.random.Generator, config: WorldConfig) -> World:
    """A world to train on: its seed is none of those held out."""
    return make_world(HELD_OUT + int(rng.integers(2**40)), config=config)


def _make_cards(rng: np.random.Generator, duration: int, config: WorldConfig) -> tuple[Card, ...]:
    count = int(rng.integers(config.fewest, config.most + 1))
    shares = rng.uniform(*config.visible, count)
    lengths = config.lengths(shares, duration)
    spare = duration - int(lengths.sum())
    gap = config.pause(duration)
    cuts = np.sort(rng.integers(0, spare - gap * (count + 1), count))
    starts = cuts + gap * np.arange(1, count + 1) + np.r_[0, np.cumsum(lengths[:-1])]
    colors = rng.permutation(list(config.colors))[:count]
    cells = rng.integers(0, HEIGHT // config.pitch, (count, 2))
    return tuple(
        Card(
            str(color), int(rng.integers(0, 10)), int(start), int(start + length), (int(x), int(y))
        )
        for color, start, length, (x, y) in zip(colors, starts, lengths, cells, strict=True)
    )


def _make_distractor(rng: np.random.Generator) -> Distractor:
    base = rng.integers(50, 190)
    tint = rng.integers(-18, 19, 3)
    return Distractor(
        center=(float(rng.uniform(0, WIDTH)), float(rng.uniform(0, HEIGHT))),
        amplitude=(float(rng.uniform(10, 120)), float(rng.uniform(5, 60))),
        period=float(rng.uniform(15, 120)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        radius=int(rng.integers(6, 22)),
        shade=tuple(int(v) for v in np.clip(base + tint, 0, 255)),
    )
