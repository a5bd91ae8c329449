"""Pictures of docs/clueworld.md: what the agent sees of a world, and the curves of training.

    python -m vo3.clueworld.pictures --out=docs [--seed=2027] [--log=vo3/clueworld/assets/sft/training_log.jsonl] [--rl-log=vo3/clueworld/assets/rl_log.jsonl]

Writes clueworld-seen.png (an overview in rows of 16 frames, the frames of the called window framed in white; below, the clip), and from the logs alone clueworld-curves.svg of fine-tuning
and clueworld-rl.svg of RL.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from vo3.clueworld.views import crop_policy, observe, render, sightings
from vo3.clueworld.world import World, make_world
from vo3.models.loading import NAMES
from vo3.train import rl_curves
from vo3.viewer.markup import Markup, tag

COLUMNS, GAP, GREY = 16, 4, 40
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 300, 44, 12, 28, 30
# Of the vision stage, by head; then of the decoder's tokens.
LINES = {
    "clock": "#3b7dd8",
    "color": "#d8813b",
    "fine_digit": "#2f9e63",
    "leak": "#b04ac0",
    "accuracy": "#c2374a",
}
NAMED = {
    "clock": "clock, coarse",
    "color": "colour, coarse",
    "fine_digit": "digit, fine",
    "leak": "digit, coarse",
    "accuracy": "tokens with loss",
}


def seen(world: World) -> UInt8[np.ndarray, "h w 3"]:
    """The overview of a world, and the fine clip of the window in which it shows its middle card."""
    policy = crop_policy()
    overview = observe(world, 0, policy=policy)
    sight = sightings(world, overview)[len(world.cards) // 2]
    clip = observe(world, 1, policy=policy, window=(sight.start, sight.end), strategy="fine")
    small, large = render(world, overview, scale=1), render(world, clip, scale=1)
    inside = [sight.start <= int(t) <= sight.end for t in overview.times]
    rows = [
        _row(small[i : i + COLUMNS], inside[i : i + COLUMNS]) for i in range(0, len(small), COLUMNS)
    ]
    below = _row(large, [False] * len(large))
    width = max(rows[0].shape[1], below.shape[1])
    return np.concatenate([_padded(part, width) for part in (*rows, below)])


def _row(frames: UInt8[np.ndarray, "T h w 3"], marked: Sequence[bool]) -> np.ndarray:
    parts = []
    for frame, mark in zip(frames, marked, strict=True):
        h, w, _ = frame.shape
        part = np.full((h + 2 * GAP, w + 2 * GAP, 3), GREY, np.uint8)
        if mark:
            part[GAP - 2 : h + GAP + 2, GAP - 2 : w + GAP + 2] = 255
        part[GAP : h + GAP, GAP : w + GAP] = frame
        parts.append(part)
    return np.concatenate(parts, axis=1)


def _padded(part: np.ndarray, width: int) -> np.ndarray:
    return np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=GREY)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a log.

    Attributes:
      name: of it.
      rows: its lines, by step.
      start: steps of the stages before it.
    """

    name: str
    rows: tuple[dict, ...]
    start: int


def stages(log: str) -> list[Stage]:
    """The stages of a training log, JSON lines, in the order in which they ran.

    Raises:
      ValueError: an empty log, or a line without stage and step.
    """
    found: dict[str, list[dict]] = {}
    for number, line in enumerate(log.splitlines(), 1):
        row = json.loads(line)
        if "stage" not in row or "step" not in row:
            raise ValueError(
                f"line {number} of the log has no stage or step; see vo3.clueworld.recipe"
            )
        found.setdefault(row["stage"], []).append(row)
    if not found:
        raise ValueError("the log is empty")
    made, start = [], 0
    for name, rows in found.items():
        made.append(Stage(name, tuple(rows), start))
        start += rows[-1]["step"]
    return made


def curves(some: Sequence[Stage]) -> Markup:
    """Accuracies over the steps of all stages, as SVG."""
    end = some[-1].start + some[-1].rows[-1]["step"]
    x = lambda step: LEFT + (WIDTH - LEFT - RIGHT) * step / max(end, 1)
    y = lambda share: TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)
    text = lambda words, at, height, **more: tag(
        "text", words, x=f"{at:.1f}", y=f"{height:.1f}", fill="#888", font_size="11",
        font_family="sans-serif", **more,
    )  # fmt: skip
    line = lambda d, color, width: tag("path", d=d, stroke=color, stroke_width=width, fill="none")
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(line(f"M{LEFT} {y(share):.1f}H{WIDTH - RIGHT}", "#8884", "1"))
        parts.append(text(f"{share:.0%}", LEFT - 6, y(share) + 4, text_anchor="end"))
    free = 0.0  # where the last name ends; one that would stand in it goes above
    for stage in some:
        above = 12 if x(stage.start) < free else 0
        free = x(stage.start) + 6 + 6.5 * len(stage.name)
        parts.append(line(f"M{x(stage.start):.1f} {TOP - 10}V{HEIGHT - BOTTOM}", "#8888", "1"))
        parts.append(text(stage.name, x(stage.start) + 4, TOP - 4 - above))
        for name, color in LINES.items():
            points = [
                f"{x(stage.start + row['step']):.1f} {y(row[name]):.1f}"
                for row in stage.rows
                if name in row
            ]
            if points:
                parts.append(line("M" + "L".join(points), color, "1.8"))
    parts.append(text(f"{end} steps", WIDTH - RIGHT, HEIGHT - 8, text_anchor="end"))
    for i, (name, color) in enumerate(LINES.items()):
        at = LEFT + 130 * i
        parts.append(line(f"M{at} {HEIGHT - 12}h16", color, "2.5"))
        parts.append(text(NAMED[name], at + 21, HEIGHT - 8))
    return tag(
        "svg", parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
        aria_label="accuracy over the steps of each stage of training",
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Draws them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="folder of the pictures")
    parser.add_argument("--seed", type=int, default=2027, help="of the world")
    parser.add_argument("--log", default=str(NAMES["clueworld-sft"] / "training_log.jsonl"))
    parser.add_argument("--rl-log", default=str(NAMES["clueworld"] / "rl_log.jsonl"))
    args = parser.parse_args(argv)
    try:
        write(epath.Path(args.out), args.seed, args.log, args.rl_log)
    except (OSError, ValueError) as error:
        raise SystemExit(f"pictures: {error}") from error
    print(f"wrote clueworld-seen.png, clueworld-curves.svg and clueworld-rl.svg to {args.out}")


def write(out: epath.Path, seed: int, log: str, rl_log: str) -> None:
    """Writes the picture of a world, and the curves of two logs.

    Raises:
      OSError: a log cannot be read.
      ValueError: it is none, or the seed is below zero.
    """
    world = make_world(seed)
    drawn = curves(stages(epath.Path(log).read_text()))
    rl = rl_curves.curves(rl_curves.read(epath.Path(rl_log).read_text(), rl_log))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "clueworld-seen.png").open("wb") as file:
        Image.fromarray(seen(world)).save(file, format="png", optimize=True)
    (out / "clueworld-curves.svg").write_text(f"{drawn}\n")
    (out / "clueworld-rl.svg").write_text(f"{rl}\n")


if __name__ == "__main__":
    main()
