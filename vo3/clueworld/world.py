"""The synthetic world: a long video in which a few coloured cards show up briefly, each with a digit on it.

What a coarse view shows: a burnt-in clock (seconds), the background, drifting distractors, and that a card of some colour is there.
What only a fine clip shows: the digit on the card. Nothing can be answered but from pixels.

Geometry, in native pixels (336 x 168): the clock panel is the upper left quarter; cards stand on a 3 x 3 grid of 56 px cells in the right half.
An overview frame of the embedded model is 56 x 28 (a sixth), a fine clip 168 x 84 (half).
"""

from __future__ import annotations

import dataclasses
import functools
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

# Five columns, seven rows, one row a line.
_FONT = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
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
        for seconds in (self.shortest, self.longest):
            if not self.fits(seconds):
                yield (
                    f"most is {self.most}: so many cards, each shown for up to {self.visible[1]:.1%} and apart by {self.gap:.1%}, "
                    f"do not fit into {seconds} s; lower most, visible or gap, or lengthen the video"
                )

    def lengths(self, shares: np.ndarray, duration: int) -> np.ndarray:
        """Whole seconds for which cards show.

        A card starts on a whole second, so that the clock's seconds are inside its interval wherever it is seen,
        and lasts longer than the distance of two overview frames, so that the overview cannot miss it.
        """
        shown = np.ceil(shares * duration)
        return np.maximum(shown, np.floor(duration / self.overview) + 1).astype(int)

    def fits(self, duration: int) -> bool:
        """Whether any draw of cards has room in so many seconds."""
        lengths = self.lengths(np.full(self.most, self.visible[1]), duration)
        return duration - int(lengths.sum()) - self.pause(duration) * (self.most + 1) > 0

    def pause(self, duration: int) -> int:
        """Seconds between cards, at least: one overview patch without a card in between."""
        return max(1, int(self.gap * duration))


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

    def card(self, color: str) -> Card | None:
        """The card of that colour, if the video has one."""
        return next((c for c in self.cards if c.color == color), None)


def make_world(
    seed: int, *, duration: int | None = None, config: WorldConfig | None = None
) -> World:
    """The world of a seed.

    Args:
      seed: decides everything, with the config.
      duration: seconds; None: log-uniform between the config's (2 to 60 minutes).
      config: None: that of the embedded model.

    Raises:
      WorldError: the duration has no room for the cards, or the clock not enough digits for it.
    """
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


@functools.lru_cache(maxsize=32)
def _dots(digit: str) -> np.ndarray:
    return np.array([[c == "1" for c in row] for row in _FONT[digit].split()])


@functools.lru_cache(maxsize=64)
def _disc(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius


def _paste(frame: np.ndarray, sprite: np.ndarray, x: int, y: int, mask: np.ndarray) -> None:
    """Draws `sprite` where `mask`, clipped to the frame."""
    h, w = mask.shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, frame.shape[1]), min(y + h, frame.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    inside = mask[y0 - y : y1 - y, x0 - x : x1 - x]
    part = sprite if sprite.ndim == 1 else sprite[y0 - y : y1 - y, x0 - x : x1 - x][inside]
    frame[y0:y1, x0:x1][inside] = part


def _background(world: World, scene: int, scale: int) -> np.ndarray:
    """A smooth texture with fine grain: uint8 [168 / scale, 336 / scale, 3]."""
    rng = np.random.default_rng([0xBAC6, world.seed, scene])
    tint = rng.uniform(50, 150, 3)
    coarse = (tint + rng.normal(0, 22, (5, 9, 1)) + rng.normal(0, 6, (5, 9, 3))).astype(np.float32)
    height, width = HEIGHT // scale, WIDTH // scale
    rows = (_between(height, 5) @ coarse.reshape(5, 27)).reshape(height, 9, 3)
    field = _between(width, 9) @ rows
    y, x = rng.integers(0, 128, 2)
    field += _grain()[y : y + height, x : x + width, None] / np.float32(scale)
    return np.clip(field, 0, 255, out=field).astype(np.uint8)


@functools.cache
def _between(size: int, points: int) -> np.ndarray:
    """Weights of linear interpolation at `size` places between so many points: f32 [size, points]."""
    at = np.linspace(0, points - 1.001, size, dtype=np.float32)
    low = at.astype(int)
    weights = np.zeros((size, points), np.float32)
    weights[np.arange(size), low] = 1 - (at - low)
    weights[np.arange(size), low + 1] = at - low
    return weights


@functools.cache
def _grain() -> np.ndarray:
    """Fine noise, f32 [168 + 128, 336 + 128], from which every background takes a part."""
    shape = (HEIGHT + 128, WIDTH + 128)
    return np.random.default_rng(0x6A1).normal(0, 6, shape).astype(np.float32)


def _card_sprite(world: World, card: Card, scale: int) -> np.ndarray:
    """A card, uint8 [48 / scale, 48 / scale, 3]: a coloured square with a small digit in its corner, as on a playing card.

    The blotches are as large as a pixel of the overview, so that a coarse view cannot tell digits by their ink;
    `tests/vo3/clueworld` measures that it does not.
    """
    rng = np.random.default_rng([0xCA6D, world.seed, list(COLORS).index(card.color)])
    sprite = np.full((CARD, CARD, 3), COLORS[card.color], np.float32)
    for size, sigma in ((8, 38), (2, 10)):
        blotches = rng.normal(0, sigma, (CARD // size, CARD // size, 1)).astype(np.float32)
        sprite += np.kron(blotches, np.ones((size, size, 1), np.float32))
    ink = np.kron(_dots(str(card.digit)), np.ones((world.dot, world.dot), bool))
    x, y = GLYPH_AT
    inked = sprite[y : y + ink.shape[0], x : x + ink.shape[1]]
    inked[ink] = 10.0 if sum(COLORS[card.color]) > 380 else 250.0
    sprite = np.clip(sprite, 0, 255)
    if scale > 1:
        n = CARD // scale
        sprite = sprite.reshape(n, scale, n, scale, 3).mean((1, 3))
    return np.round(sprite).astype(np.uint8)


@functools.lru_cache(maxsize=32)
def _clock_dots(character: str, size: int) -> np.ndarray:
    return np.kron(_dots(character), np.ones((size, size), bool))


def _draw_clock(frame: np.ndarray, seconds: int, scale: int) -> None:
    """Four digits from the left, two in each 14 px patch of an overview frame; a dot is 6 native pixels."""
    frame[: 60 // scale, : 168 // scale] = 12
    for column, character in zip((6, 42, 90, 126), f"{seconds:<4d}", strict=True):
        if character == " ":
            continue
        dots = _clock_dots(character, 6 // scale)
        _paste(frame, np.array([240, 240, 240], np.uint8), column // scale, 12 // scale, dots)


class Renderer:
    """Draws frames of one world at `scale` 1 (native) or 2 (half size, for training); keeps the last background."""

    def __init__(self, world: World, *, scale: int = 1):
        if scale not in (1, 2):
            raise ValueError(f"scale is {scale}, wanted 1 or 2")
        self.world, self.scale = world, scale
        self._cards: dict[str, np.ndarray] = {}
        self._scene, self._back = -1, np.zeros(0, np.uint8)

    def frame(self, seconds: float) -> np.ndarray:
        """The frame on screen at a time: uint8 [168 / scale, 336 / scale, 3]."""
        world, scale = self.world, self.scale
        scene = int(np.searchsorted(world.cuts, seconds, side="right"))
        if scene != self._scene:
            self._scene, self._back = scene, _background(world, scene, scale)
        frame = self._back.copy()
        for d in world.distractors:
            angle = 2 * np.pi * seconds / d.period + d.phase
            x = d.center[0] + d.amplitude[0] * np.sin(angle)
            y = d.center[1] + d.amplitude[1] * np.cos(angle)
            radius = max(1, d.radius // scale)
            corner = int(x / scale) - radius, int(y / scale) - radius
            _paste(frame, np.array(d.shade, np.uint8), *corner, _disc(radius))
        _draw_clock(frame, int(seconds), scale)
        card = world.card_at(seconds)
        if card is not None:
            sprite = self._cards.get(card.color)
            if sprite is None:
                sprite = self._cards[card.color] = _card_sprite(world, card, scale)
            x = (WIDTH // 2 + card.cell[0] * world.pitch + 4) // scale
            y = (card.cell[1] * world.pitch + 4) // scale
            frame[y : y + CARD // scale, x : x + CARD // scale] = sprite
        return frame

    def frames(self, times: np.ndarray) -> np.ndarray:
        """Frames at several times: uint8 [T, height, width, 3]."""
        return np.stack([self.frame(float(t)) for t in times])
