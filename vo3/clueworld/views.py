"""What a world looks like through VideoCrop: the embedded model's quotas, observations without a file, and what they give away."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from vo3.clueworld.pixels import Renderer
from vo3.clueworld.world import FPS, HEIGHT, WIDTH, Card, World
from vo3.trajectory import Observation, Strategy
from vo3.video import CropPolicy, plan_clip
from vo3.video.resize import resize


def crop_policy() -> CropPolicy:
    """The embedded model's quotas: an overview of 64 frames in 64 tokens, clips of 4 frames in 4, 16 or 36 tokens."""
    return CropPolicy(
        recipe="rl",
        max_frames=64,
        max_crop_frames=4,
        overview_quota=64,
        overview_min=2,
        crop_min=2,
        coarse_quota=4,
        medium_quota=16,
        fine_quota=36,
    )


def observe(
    world: World,
    index: int,
    *,
    policy: CropPolicy,
    window: tuple[float, float] | None = None,
    strategy: Strategy | None = None,
) -> Observation:
    """What VideoCrop would show of this world, from the plan alone, without pixels."""
    plan = plan_clip(
        fps=FPS,
        frames=world.frames,
        height=HEIGHT,
        width=WIDTH,
        window=window,
        strategy=strategy,
        policy=policy,
    )
    start, end = window or (0.0, world.duration)
    return Observation(
        index=index,
        start=float(start),
        end=float(end),
        fps=plan.fps,
        times=tuple(float(i / FPS) for i in plan.indices),
        indices=tuple(int(i) for i in plan.indices),
        height=plan.height,
        width=plan.width,
        grid=(len(plan.indices) // 2, plan.height // 14, plan.width // 14),
        tokens=plan.tokens,
        strategy=strategy,
    )


def cut_overview(overview: Observation, patches: Sequence[int]) -> Observation:
    """Some temporal patches of an overview, in order, as an observation of its own."""
    _, h, w = overview.grid
    frames = [f for p in patches for f in (2 * p, 2 * p + 1)]
    return dataclasses.replace(
        overview,
        times=tuple(overview.times[f] for f in frames),
        indices=tuple(overview.indices[f] for f in frames),
        grid=(len(patches), h, w),
        tokens=len(patches) * h * w // 4,
    )


def render(world: World, shown: Observation, *, scale: int) -> UInt8[np.ndarray, "T h w 3"]:
    """The frames of an observation, drawn at 1 / `scale` of the native size and resized as VideoCrop would."""
    frames = Renderer(world, scale=scale).frames(np.asarray(shown.times))
    return np.stack([resize(frame, shown.height, shown.width) for frame in frames])


@dataclasses.dataclass(frozen=True)
class Sighting:
    """A card as the overview shows it: the clock's readings, in seconds, that bound where it was seen."""

    card: Card
    start: int
    end: int


def sightings(world: World, overview: Observation, *, missing: bool = False) -> list[Sighting]:
    """What can be read off the overview about every card, in order of appearance.

    Two frames share a temporal patch: from the first clock of the first patch with the card to the second clock of the last.

    Args:
      world, overview: what is shown.
      missing: whether cards may be missing from the overview; they are left out.

    Raises:
      ValueError: a card is missing, where it may not.
    """
    times = np.asarray(overview.times)
    found = []
    for card in world.cards:
        frames = np.flatnonzero((times >= card.start) & (times < card.end))
        if len(frames) == 0 and missing:
            continue
        if len(frames) == 0:
            raise ValueError(f"world {world.seed}: the overview misses the {card.color} card")
        first, last = frames[0] // 2, frames[-1] // 2
        found.append(Sighting(card, int(times[2 * first]), int(times[2 * last + 1])))
    return found


def noisy(
    frames: UInt8[np.ndarray, "T h w 3"], rng: np.random.Generator, sigma: float
) -> UInt8[np.ndarray, "T h w 3"]:
    """Pixel noise of a deviation drawn up to `sigma` grey levels and a small shift of brightness, as a codec leaves them."""
    pool = _noise()
    start = rng.integers(len(pool) - frames.size)
    drawn = pool[start : start + frames.size].reshape(frames.shape)
    noise = drawn * np.float32(rng.uniform(0, sigma))
    noise += np.float32(rng.uniform(-8, 8))
    noise += frames
    return np.clip(noise, 0, 255, out=noise).astype(np.uint8)


@functools.cache
def _noise() -> np.ndarray:
    """Four million normal numbers, of which every clip takes a run: drawing them anew would be a tenth of a training batch."""
    return np.random.default_rng(0x2015E).standard_normal(1 << 22, np.float32)
