"""Whole RL steps of the embedded model on real videos, by the trainer's own loop: `python -m benchmarks.rl_steps`.

* The share of a step in which neither rollouts nor the update ran: data, rewards, rows, weights, logs. Seconds in which every rollout waited for a video count too.
* Resident memory of the process over the steps: a line through the second half, in MB per 100 steps.
* What the sampler said of its tokens beside what the trainer says, f32: the largest difference of any token.
* Programs compiled after the first tenth of the steps.

    python -m benchmarks.rl_steps [--steps=200] [--prompts=2] [--group=4] [--workdir=DIR]

Steps in which videos are written or programs compiled, the first tenth, are left out of everything but the log-probabilities.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import threading
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from configs import rl_clueworld
from vo3.train import grpo
from vo3.train.config import override


class Memory:
    """Resident memory of this process by step, read while a run goes on."""

    def __init__(self, log: pathlib.Path):
        self.by_step: dict[int, float] = {}
        self._log, self._end = log, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._end.wait(0.2):
            step = len(self._log.read_bytes().splitlines()) if self._log.exists() else 0
            self.by_step[step] = me.memory_info().rss / 1e6


def slope(by_step: dict[int, float]) -> float:
    """Of a line through the second half of the steps, per 100 steps."""
    late = [(s, v) for s, v in by_step.items() if s > max(by_step) / 2]
    steps, values = (np.asarray(x, np.float64) for x in zip(*late, strict=True))
    return 100 * float(np.polyfit(steps, values, 1)[0])


def main(argv: list[str] | None = None) -> None:
    """Runs, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--workdir", help="kept; else a folder that is removed")
    args = parser.parse_args(argv)
    config = override(
        rl_clueworld.get_config(),
        **{
            "steps": args.steps, "rl.prompts_per_step": args.prompts, "rl.group": args.group, "rl.min_std": 0.0, "rl.clueworld.worlds": 4,
            "rl.clueworld.longest": 180, "rl.rollout.slots": args.prompts, "checkpoint.every": args.steps, "checkpoint.export_hf": False,
            "rl.trajectories_every": 20, "data.rows_per_device": 1,
        },
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(args.workdir or folder)
        began = time.monotonic()
        with Memory(workdir / "log.jsonl") as memory:
            grpo.train(config, workdir, devices=jax.devices()[:1])
        seconds = time.monotonic() - began
        rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    first = max(1, len(rows) // 10)
    warm = rows[first:] or rows
    median = lambda name: statistics.median(row[name] for row in warm)
    compiled = lambda row: row["programs"] + row["rollout_programs"]
    table = Table(
        title=f"{len(rows)} steps of {args.prompts} x {args.group} rollouts in {seconds:.0f} s, f32, {jax.devices()[0].platform}"
    )
    for column in ("measure", "value", "goal"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    table.add_row("seconds a step, median", f"{median('seconds'):.2f}", "")
    table.add_row("  of them rollouts", f"{median('seconds_rollout'):.2f}", "")
    table.add_row("  of them the update", f"{median('seconds_update'):.2f}", "")
    whole = sum(row["host_wait"] * row["seconds"] for row in warm) / sum(r["seconds"] for r in warm)
    table.add_row("share in which neither runs", f"{whole:.3f}", "<= 0.15")
    table.add_row("largest gap of log-probabilities", f"{max(r['gap_max'] for r in rows):.1e}", "<= 1e-4")  # fmt: skip
    table.add_row("programs compiled later", f"{compiled(warm[-1]) - compiled(warm[0]):g}", "0")
    at = lambda share: memory.by_step[min(memory.by_step, key=lambda s: abs(s - share * len(rows)))]
    table.add_row("resident MB at a tenth, half, end", ", ".join(f"{at(x):.0f}" for x in (0.1, 0.5, 1.0)), "")  # fmt: skip
    table.add_row("growth, MB per 100 steps", f"{slope(memory.by_step):+.1f}", "flat")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
