"""The demo: writes a long video, asks the embedded model about it, and writes the page of what it did.

python -m vo3.clueworld.demo --out out
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import numpy as np
from etils import epath

from vo3 import cli
from vo3.clueworld import tasks
from vo3.clueworld.film import write_video
from vo3.clueworld.world import World, WorldError, make_world
from vo3.trajectory import Task

SEED = 2034  # a held-out world
DURATION = 1800  # seconds


def ask_about(world: World, video: str) -> Task:
    """A question with options that needs two looks: two digits added up or, where that is more than a digit, compared."""
    rng = np.random.default_rng(world.seed)
    question = tasks.KINDS["sum"](world, rng)
    return tasks.make_task(world, question, video=video, task_id="demo", rng=rng, options=True)


def main(argv: list[str] | None = None) -> int:
    """Runs the demo; returns the exit code of `vo3 ask`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="out", help="folder for the video and the page")
    parser.add_argument("--seed", type=int, default=SEED, help="another world")
    args = parser.parse_args(argv)
    out = epath.Path(args.out)
    try:
        world = make_world(args.seed, duration=DURATION)
    except WorldError as error:
        raise SystemExit(f"demo: {error}") from error
    video = out / f"clueworld-{args.seed}.mp4"
    if not video.exists():
        began = time.perf_counter()
        print(f"writing a video of {world.duration // 60} minutes to {video} ...", flush=True)
        write_video(world, video)
        print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    task = ask_about(world, os.fspath(video))
    command = ["ask", task.video, task.question]
    for letter, text in task.options.items():
        command += ["--option", f"{letter}={text}"]
    command += ["--target", task.target.answer]
    for clue in task.target.clues:
        command += ["--clue", f"{clue.start:g}-{clue.end:g}"]
    command += ["--html", os.fspath(out / "demo.html"), "--json", os.fspath(out / "demo.json")]
    shown = " ".join(f"'{word}'" if " " in word else word for word in command)
    print(f"$ vo3 {shown}\n", flush=True)
    return cli.main(command)


if __name__ == "__main__":
    sys.exit(main())
