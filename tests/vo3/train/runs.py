"""A short run of the tiny model that tests start in a process of its own, kill and start again.

python runs.py WORKDIR [--steps=6] [--stop-after=N] [--slow=SECONDS] [--devices=N]
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

import jax
import numpy as np
from tiny_rows import MODEL, PATCHES, TOKENS, config, document, rows

from vo3.train import command, processes, sft, sharding
from vo3.train.feed import ListFeed

_DOCS = [document(seed) for seed in range(12)]
# Six steps of two unequal micro-batches of four rows.
BATCHES = [
    [
        rows([[d] for d in _DOCS[i : i + 4]], length=2 * TOKENS, patches=2 * PATCHES),
        rows(
            [_DOCS[i + 4 : i + 6], [_DOCS[i + 6]], [], []], length=2 * TOKENS, patches=2 * PATCHES
        ),
    ]
    for i in range(5)
] + [[rows([[d] for d in _DOCS[:4]], length=2 * TOKENS, patches=2 * PATCHES)]]


def run_config(**changes):
    """Its configuration; the mask is drawn and the vision tower frozen, so that both are resumed too."""
    base = {
        "steps": 6,
        "frozen": (r"^vision\.(?!merger\.)",),
        "checkpoint.every": 2,
        "tdam.policy": "turn",
        "tdam.mask_ratio": 0.5,
        "optim.rate": 1e-3,
    }
    return config(**{**base, **changes})


class SlowFeed(ListFeed):
    """Waits before every micro-batch, so that there is time to kill."""

    wait = 0.0

    def micro_batches(self, start, stop):
        for item in super().micro_batches(start, stop):
            time.sleep(self.wait)
            yield item


def main(workdir: str, *arguments: str) -> None:
    """Runs; the first process writes final.npz when all steps are done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--stop-after", type=int)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--slow", type=float, default=0.0)
    args = parser.parse_args(arguments)
    processes.start()
    command.quiet()
    devices = jax.devices()[: args.devices]
    changes = run_config(**{"mesh.fsdp": len(devices)})
    group, groups = sharding.row_groups(sharding.make_mesh(changes, devices))
    feed = SlowFeed(BATCHES, group=group, groups=groups)
    feed.wait, feed.plan = args.slow, "aa"
    stop = args.stop_after or (args.steps if args.steps < 6 else None)
    result = sft.train(changes, workdir, feed=feed, model=MODEL, stop_after=stop, devices=devices)
    if result.finished and jax.process_count() == 1:
        np.savez(pathlib.Path(workdir) / "final.npz", **jax.device_get(result.params))


if __name__ == "__main__":
    main(sys.argv[1], *sys.argv[2:])
