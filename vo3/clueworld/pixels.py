"""The pixels of a world: `Renderer` draws the frame on screen at any time.

Everything drawn is a function of the world; geometry is that of `vo3.clueworld.world`.
"""

from __future__ import annotations

import functools

import numpy as np

from vo3.clueworld.world import (
    CARD,
    CELL,
    COLORS,
    GLYPH_AT,
    HEIGHT,
    WIDTH,
    Card,
    World,
    WorldConfig,
)

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


def ink(color: str) -> float:
    """The grey level in which digits are drawn on a card."""
    return 10.0 if sum(COLORS[color]) > 380 else 250.0


def corner(cell: tuple[int, int], drawn: World | WorldConfig) -> tuple[int, int]:
    """Left and top of a card in the native frame."""
    edge = (CELL - CARD) // 2
    return WIDTH // 2 + cell[0] * drawn.pitch + edge, cell[1] * drawn.pitch + edge


def card_sprite(world: World, card: Card, scale: int) -> np.ndarray:
    """A card, uint8 [48 / scale, 48 / scale, 3]: a coloured square with a small digit in its corner, as on a playing card.

    The card's blotches are 8 and 2 pixels large, a pixel of the overview 6: there the digit is hard to tell from them (`vo3.clueworld.bounds` measures how hard).
    """
    rng = np.random.default_rng([0xCA6D, world.seed, list(COLORS).index(card.color)])
    sprite = np.full((CARD, CARD, 3), COLORS[card.color], np.float32)
    for size, sigma in ((8, 38), (2, 10)):
        blotches = rng.normal(0, sigma, (CARD // size, CARD // size, 1)).astype(np.float32)
        sprite += np.kron(blotches, np.ones((size, size, 1), np.float32))
    dots = np.kron(_dots(str(card.digit)), np.ones((world.dot, world.dot), bool))
    x, y = GLYPH_AT
    sprite[y : y + dots.shape[0], x : x + dots.shape[1]][dots] = ink(card.color)
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
            left, top = int(x / scale) - radius, int(y / scale) - radius
            _paste(frame, np.array(d.shade, np.uint8), left, top, _disc(radius))
        _draw_clock(frame, int(seconds), scale)
        card = world.card_at(seconds)
        if card is not None:
            sprite = self._cards.get(card.color)
            if sprite is None:
                sprite = self._cards[card.color] = card_sprite(world, card, scale)
            x, y = (at // scale for at in corner(card.cell, world))
            frame[y : y + CARD // scale, x : x + CARD // scale] = sprite
        return frame

    def frames(self, times: np.ndarray) -> np.ndarray:
        """Frames at several times: uint8 [T, height, width, 3]."""
        return np.stack([self.frame(float(t)) for t in times])
