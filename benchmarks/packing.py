"""Padding of training rows: `python -m benchmarks.packing [--trajectories=60000] [--programs=8] [--json]`.

Trajectories of a Seeker-like mix are drawn and measured by `plan_clip` with the SFT recipe, as a real data set would be. Compared
are ways to give them static shapes of at most 40,000 tokens, 256 trajectories a step and one shape a step:

    pad to the maximum     one trajectory a row, every row 40,000 long: one program
    powers of two          one trajectory a row, rows sorted into lengths 2^k: the usual buckets
    pack to the maximum    rows packed, every row 40,000 long: one program
    ours, N programs       rows packed, buckets by dynamic programme, steps of one bucket

The mix, from what is published of the data: the four quadrants in the shares of the RL mix (whose rows are counted by quadrant);
overviews of 2 fps, at most 768 frames and 16,384 tokens; crops by strategy. What is not published is assumed, and named in
`MIX`: durations, sizes, calls a trajectory, text.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

import numpy as np

from vo3.data.buckets import choose_buckets
from vo3.data.lengths import Lengths
from vo3.data.plan import Plan
from vo3.video import CropPolicy, plan_clip

MAX_LENGTH, PER_STEP = 40_000, 256


@dataclasses.dataclass(frozen=True)
class Mix:
    """A mix of trajectories. Shares need not add up to 1.

    Attributes:
      quadrants: rows with a single clue and tool, several clues and tool, no tool (counts of the RL mix).
      seconds: (share, shortest, longest) of the videos, log-uniform inside.
      sizes: (share, height, width) of the videos.
      single_calls, multi_calls: shares of 1, 2, 3, ... calls.
      strategies: shares of coarse, medium, fine.
      window: shortest and longest window of a call, seconds, log-uniform.
      text: least and median tokens of prompt, question and answer together; per_call: median tokens of a call turn with its
        think text and the observation's words. Log-normal, sigma 0.4.
    """

    quadrants: tuple[int, int, int] = (79_848 + 6_764 + 7_000 + 2_365 + 13_287, 13_900, 29_523 + 9_946 + 702)  # fmt: skip
    seconds: tuple[tuple[float, float, float], ...] = (
        (0.35, 10, 60), (0.35, 60, 180), (0.2, 180, 900), (0.1, 900, 4500)
    )  # fmt: skip
    sizes: tuple[tuple[float, int, int], ...] = (
        (0.45, 720, 1280), (0.3, 360, 640), (0.15, 480, 640), (0.1, 1280, 720)
    )  # fmt: skip
    single_calls: tuple[float, ...] = (0.75, 0.2, 0.05)
    multi_calls: tuple[float, ...] = (0.0, 0.6, 0.3, 0.1)
    strategies: tuple[float, float, float] = (0.2, 0.35, 0.45)
    window: tuple[float, float] = (3, 40)
    text: tuple[int, int] = (500, 350)
    per_call: int = 220


MIX = Mix()


def draw(count: int, *, seed: int = 0, mix: Mix = MIX) -> Lengths:
    """Lengths of `count` trajectories of the mix."""
    rng = np.random.default_rng(seed)
    policy = CropPolicy(recipe="sft")
    tokens, patches = np.zeros(count, np.int32), np.zeros(count, np.int32)

    def choose(shares) -> int:
        return int(rng.choice(len(shares), p=np.asarray(shares, float) / np.sum(shares)))

    def words(median: float) -> int:
        return int(median * rng.lognormal(0, 0.4))

    for i in range(count):
        _, low, high = mix.seconds[choose([s[0] for s in mix.seconds])]
        seconds = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        _, height, width = mix.sizes[choose([s[0] for s in mix.sizes])]
        video = {"fps": 25.0, "frames": round(seconds * 25), "height": height, "width": width}
        vision = plan_clip(**video, policy=policy).tokens
        quadrant = choose(mix.quadrants)
        shares = (mix.single_calls, mix.multi_calls, None)[quadrant]
        calls = choose(shares) + 1 if shares else 0
        text = mix.text[0] + words(mix.text[1])
        for _ in range(calls):
            low, high = mix.window[0], min(mix.window[1], 0.8 * seconds)
            length = float(np.exp(rng.uniform(np.log(low), np.log(high))))
            start = rng.uniform(0, seconds - length)
            strategy = ("coarse", "medium", "fine")[choose(mix.strategies)]
            window = (start, start + length)
            vision += plan_clip(**video, window=window, strategy=strategy, policy=policy).tokens
            text += words(mix.per_call)
        tokens[i], patches[i] = vision + text, 4 * vision
    return Lengths(tokens, patches)


@dataclasses.dataclass(frozen=True)
class Result:
    """One way's figures: padding of tokens and patches, programs, rows, tokens of the places of an epoch, seconds to plan."""

    name: str
    padding: float
    patch_padding: float | None
    programs: int
    rows: int
    slots: int
    seconds: float


def unpacked(name: str, lengths: Lengths, buckets: tuple[int, ...]) -> Result:
    """One trajectory a row, in the smallest bucket that holds it."""
    began = time.perf_counter()
    tokens = lengths.tokens[lengths.tokens <= MAX_LENGTH].astype(np.int64)
    places = np.asarray(buckets)[np.searchsorted(buckets, tokens)]
    return Result(
        name, 1 - tokens.sum() / places.sum(), None, len(np.unique(places)), tokens.size,
        int(places.sum()), time.perf_counter() - began,
    )  # fmt: skip


def planned(name: str, lengths: Lengths, *, programs: int) -> Result:
    """The plan, with chosen buckets."""
    began = time.perf_counter()
    buckets = choose_buckets(lengths, programs=programs, max_length=MAX_LENGTH)
    plan = Plan(
        lengths, seed=1, trajectories_per_step=PER_STEP, max_length=MAX_LENGTH, buckets=buckets
    )
    stats = plan.stats()
    return Result(
        name, stats.padding, stats.patch_padding, stats.shapes, stats.rows, stats.token_slots,
        time.perf_counter() - began,
    )  # fmt: skip


def powers_of_two(lengths: Lengths) -> tuple[int, ...]:
    """1024, 2048, ... and the maximum in place of the power above it."""
    lowest = max(10, int(np.floor(np.log2(lengths.tokens.min()))))
    return (*(2**k for k in range(lowest, int(np.log2(MAX_LENGTH)) + 1)), MAX_LENGTH)


def results(lengths: Lengths, *, programs: int = 8) -> list[Result]:
    """Every way on the same trajectories."""
    return [
        unpacked("pad to the maximum", lengths, (MAX_LENGTH,)),
        unpacked("powers of two", lengths, powers_of_two(lengths)),
        planned("pack to the maximum", lengths, programs=1),
        *(planned(f"ours, {n} programs", lengths, programs=n) for n in (2, 4, programs)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trajectories", type=int, default=60_000)
    parser.add_argument("--programs", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    args = parser.parse_args()
    lengths = draw(args.trajectories)
    found = results(lengths, programs=args.programs)
    long = int((lengths.tokens > MAX_LENGTH).sum())
    quantiles = np.percentile(lengths.tokens, (1, 25, 50, 75, 99)).astype(int).tolist()
    if args.json:
        rows = [dataclasses.asdict(r) for r in found]
        print(json.dumps({"quantiles": quantiles, "left_out": long, "results": rows}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"padding of {len(lengths)} trajectories; tokens at 1, 25, 50, 75, 99 %: {quantiles}; "
        f"{long} longer than {MAX_LENGTH} are left out"
    )
    for column in ("way", "token padding", "patch padding", "programs", "rows", "places / ours", "plan s", "goal"):  # fmt: skip
        table.add_column(column, justify="left" if column == "way" else "right")
    ours = found[-1]
    for result in found:
        table.add_row(
            result.name,
            f"{100 * result.padding:.2f} %",
            "" if result.patch_padding is None else f"{100 * result.patch_padding:.2f} %",
            str(result.programs),
            str(result.rows),
            f"{result.slots / ours.slots:.2f}x",
            f"{result.seconds:.1f}",
            "<= 8 %" if result is ours else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
