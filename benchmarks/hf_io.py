"""Host memory and time of reading and writing checkpoints: `python -m benchmarks.hf_io`.

A random model of a few hundred megabytes in shards of 64 MB. Every figure comes from a process of its own, is the growth of its
peak resident memory over what it held before (code and thread pools do not count), and stands beside transformers + torch on the
same directory. On CPU the parameters themselves lie in host memory, so reading cannot take less than their size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from rich.console import Console
from rich.table import Table

SHARD = 64_000_000
MB = 1e6


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an operation took.

    Attributes:
      peak: bytes that the resident memory grew by, at most.
      seconds: wall time.
    """

    peak: int
    seconds: float


def make(folder: pathlib.Path, layers: int) -> int:
    """Writes the checkpoint; bytes of its parameters."""
    import jax
    from flax import nnx

    from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig

    config = Qwen2_5_VLConfig.tiny(
        16_384,
        text={
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": layers,
            "mrope_section": (16, 24, 24),
        },
        vision={"out_hidden_size": 512},
    )
    model = Qwen2_5_VL(config, rngs=nnx.Rngs(0))
    model.save_hf(folder, max_shard_bytes=SHARD)
    return sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))


def _status(name: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def _measured(work: Callable[[], object]) -> Cost:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, began = _status("VmRSS"), time.perf_counter()
    kept = work()
    cost = Cost(_status("VmHWM") - before, time.perf_counter() - began)
    del kept
    return cost


def _ours(small: str, folder: str, out: str) -> tuple[Cost, Cost]:
    import jax

    import vo3.models

    def load(path: str):
        model = vo3.models.load(path)
        jax.block_until_ready(jax.tree.leaves(model))
        kept.append(model)

    kept: list = []
    load(small)
    kept.pop().save_hf(f"{out}-small")
    jax.clear_caches()
    read = _measured(lambda: load(folder))
    return read, _measured(lambda: kept[0].save_hf(out, max_shard_bytes=SHARD))


def _theirs(small: str, folder: str, out: str) -> tuple[Cost, Cost]:
    import torch

    from benchmarks.video import _torchvision_operators

    _torchvision_operators()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind = transformers.Qwen2_5_VLForConditionalGeneration

    def load(path: str):
        kept.append(kind.from_pretrained(path, dtype=torch.float32))
        # Mapped files are read when they are first used.
        for parameter in kept[-1].parameters():
            parameter.sum()

    kept: list = []
    load(small)
    kept.pop().save_pretrained(f"{out}-small")
    read = _measured(lambda: load(folder))
    return read, _measured(lambda: kept[0].save_pretrained(out, max_shard_size=SHARD))


def _child(side: str, small: str, folder: str, out: str) -> None:
    costs = {"ours": _ours, "theirs": _theirs}[side](small, folder, out)
    print(json.dumps([dataclasses.asdict(cost) for cost in costs]))


def measure(side: str, *folders: pathlib.Path) -> list[Cost]:
    """[reading, writing] in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.hf_io", "--child", side, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr[-2000:]}")
    return [Cost(**cost) for cost in json.loads(done.stdout.splitlines()[-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=24, help="16 MB each")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(*args.child)
        return
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        make(root / "small", 1)
        total = make(root / "large", args.layers)
        ours, theirs = (
            measure(side, root / "small", root / "large", root / f"out-{side}")
            for side in ("ours", "theirs")
        )
    table = Table(
        title=f"parameters of {total / MB:.0f} MB in shards of {SHARD / MB:.0f} MB, float32, CPU"
    )
    for column in ("measure", "ours", "transformers + torch", "goal"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    goals = (f"<= {(total + SHARD) / MB:.0f} MB", f"<= {SHARD / MB:.0f} MB")
    for what, goal, mine, other in zip(("reading", "writing"), goals, ours, theirs, strict=True):
        table.add_row(
            f"{what}, peak memory", f"{mine.peak / MB:.0f} MB", f"{other.peak / MB:.0f} MB", goal
        )
        table.add_row(f"{what}, time", f"{mine.seconds:.2f} s", f"{other.seconds:.2f} s", "")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
