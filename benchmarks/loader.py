"""Does the trainer wait for data? `python -m benchmarks.loader`.

ClueWorld videos (two minutes of h264 each, made once in a cache folder) and their ground-truth trajectories go through the loader at the
shape of configs/tiny.py: four trajectories a step. Measured are

* how fast the loader is by itself, beside torch's DataLoader with as many workers doing the same work;
* the share of time that a step of a given length waits, with an accelerator that computes meanwhile (a sleep) in place of the step;
* what a step costs the workers in CPU seconds, and so the shortest step that they keep up with on cores of their own;
* memory of all processes, early and late;
* with --trainer, the waiting share that the trainer itself reports at the tiny configuration.

Figures of a busy machine say little: compare rows of one table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from vo3.chat import PromptPack
from vo3.clueworld import tasks, trajectories
from vo3.clueworld.config import model_config
from vo3.clueworld.film import write_video
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.clueworld.views import crop_policy
from vo3.clueworld.world import HELD_OUT, make_world
from vo3.data.clip_cache import ClipCache
from vo3.data.items import Encoding, ItemReader
from vo3.data.lengths import Lengths
from vo3.data.loader import make_loader
from vo3.data.plan import Plan
from vo3.data.work import Work
from vo3.trajectory import Trajectory

MB = 1 << 20
SECONDS = 120
PER_STEP, LENGTH = 4, 1024


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """A source that holds its trajectories."""

    items: tuple[Trajectory, ...]
    fingerprint: str = "benchmark"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Trajectory:
        return self.items[index]


def make_source(folder: pathlib.Path, videos: int) -> Trajectories:
    """Two questions on each of so many videos, which are written where they are missing."""
    pack, policy, items = PromptPack.load("clueworld"), crop_policy(), []
    for i in range(videos):
        world = make_world(HELD_OUT + i, duration=SECONDS)
        path = folder / f"world-{i}.mp4"
        if not path.exists():
            write_video(world, path)
        rng = np.random.default_rng(i)
        for kind in ("digit", "count"):
            question = tasks.KINDS[kind](world, rng)
            task = tasks.make_task(
                world, question, video=str(path), task_id=f"{i}-{kind}", rng=rng, options=True
            )
            items.append(
                trajectories.make_trajectory(world, question, task, pack=pack, policy=policy)
            )
    return Trajectories(tuple(items))


def make_plan(source: Trajectories, tokenizer) -> Plan:
    """A plan of `PER_STEP` trajectories a step in rows of `LENGTH` tokens."""
    from vo3.chat import encode

    tokens = [len(encode(t.turns, tokenizer)) for t in source.items]
    patches = [sum(int(np.prod(o.grid)) for o in t.observations) for t in source.items]
    lengths = Lengths(np.array(tokens, np.int32), np.array(patches, np.int32))
    return Plan(
        lengths, seed=0, trajectories_per_step=PER_STEP, max_length=LENGTH, buckets=(LENGTH,)
    )


class WorkerCpu:
    """CPU seconds of every process that this one started; of one that has ended, as of the last call before."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], float] = {}

    def __call__(self) -> float:
        for child in psutil.Process().children(recursive=True):
            try:
                key, spent = (child.pid, child.create_time()), sum(child.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
            self._seen[key] = max(spent, self._seen.get(key, 0.0))
        return sum(self._seen.values())


def rss() -> float:
    """MB of this process and all it started."""
    me = psutil.Process()
    total = me.memory_info().rss
    for child in me.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / MB


@dataclasses.dataclass(frozen=True)
class Run:
    """Seconds a step took, the share of them it waited, CPU seconds of the workers for it, and memory in MB every tenth step."""

    step: float
    waited: float
    cpu: float
    levels: tuple[float, ...]


def run(plan, source, tokenizer, *, steps: int, workers: int, work_s: float, cache) -> Run:
    """Steps of `work_s` seconds on what the loader gives, after ten to warm up."""
    warm, levels, spent, waited, first, cpu = 10, [], 0.0, 0.0, 0.0, WorkerCpu()
    loader = make_loader(
        plan, source, tokenizer, crop_policy=crop_policy(), vision=model_config().vision,
        rows_per_batch=1, stop_step=steps + warm, workers=workers, clip_cache=cache,
    )  # fmt: skip
    with loader:
        began = time.perf_counter()
        for step in loader:
            before = loader.counts.waited
            for _ in step.micro_batches:
                time.sleep(work_s / len(step.micro_batches))
            now = time.perf_counter()
            used = cpu()  # workers end with their last batch, which is before ours
            if step.plan.index == warm:
                first = used
            if step.plan.index >= warm:
                spent += now - began
                waited += loader.counts.waited - before
                if step.plan.index % 10 == 0:
                    levels.append(rss())
            began = now
    return Run(spent / steps, waited / spent, (used - first) / steps, tuple(levels))


class _Torch:
    """The loader's own work as a torch data set."""

    def __init__(self, work: Work, count: int):
        self.work, self.count = work, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        rows = self.work[index]["rows"]
        return {k: v for k, v in rows.items() if isinstance(v, np.ndarray)}


def run_torch(plan, source, tokenizer, *, steps: int, workers: int) -> float:
    """Seconds a micro-batch takes with torch's DataLoader around the same work."""
    import torch.utils.data

    reader = ItemReader(source, tokenizer, crop_policy=crop_policy(), encoding=Encoding())
    work = Work(
        plan, reader, model_config().vision, rows_per_batch=1, start_step=0, stop_step=None,
        process_index=0, process_count=1, known={},
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(
        _Torch(work, steps + 10), batch_size=None, num_workers=workers, prefetch_factor=2,
        multiprocessing_context="spawn",
    )  # fmt: skip
    for i, _ in enumerate(loader):
        if i == 9:
            began = time.perf_counter()
    return (time.perf_counter() - began) / steps


def run_trainer(source: Trajectories, workers: int, steps: int) -> dict[str, float]:
    """The trainer at configs/tiny.py on these videos: the medians of what it logs, after two steps to warm up."""
    from vo3.train.config import load, override
    from vo3.train.sft import train

    root = pathlib.Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        rows = pathlib.Path(folder) / "rows.jsonl"
        with rows.open("w") as file:
            for item in source.items:
                file.write(json.dumps(_row(item)) + "\n")
        changes = {
            "data.rows": str(rows), "data.workers": workers, "steps": steps, "log.every": 1,
            "checkpoint.every": steps, "checkpoint.export_hf": False, "log.tensorboard": False,
            "optim.warmup": 1.0,
        }  # fmt: skip
        workdir = os.path.join(folder, "workdir")
        train(override(load(str(root / "configs" / "tiny.py")), **changes), workdir)
        text = (pathlib.Path(workdir) / "log.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
    keys = [k for k in lines[-1] if "wait" in k or "seconds" in k]
    return {k: statistics.median(line[k] for line in lines[2:]) for k in keys}


def _row(item: Trajectory) -> dict:
    videos: list = [item.task.video]
    for o in item.observations[1:]:
        videos.append({"url": item.task.video, "crop": [o.start, o.end], "sample": o.strategy})
    said = [{"role": t.role, "content": t.text} for t in item.turns if t.role != "system"]
    return {"id": item.task.id, "system": item.turns[0].text, "messages": said, "videos": videos}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vo3"
    parser.add_argument("--cache", type=pathlib.Path, default=default, help="where videos are kept")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--step-seconds", type=float, default=0.5, help="of the stand-in")
    parser.add_argument("--trainer", action="store_true", help="run the trainer as well")
    args = parser.parse_args()

    console = Console()
    tokenizer = build_tokenizer()
    source = make_source(args.cache / "clueworld", args.videos)
    plan = make_plan(source, tokenizer)
    options = {"steps": args.steps, "workers": args.workers}
    table = Table(
        title=f"loader: {args.workers} workers, {PER_STEP} trajectories a step, medians of {args.steps} steps"
    )
    for column in ("what", "ours", "compared with", "its figure", "ratio", "goal"):
        table.add_column(column, justify="left" if column in ("what", "compared with") else "right")
    with tempfile.TemporaryDirectory() as folder:
        alone = run(plan, source, tokenizer, work_s=0.0, cache=None, **options)
        peer = run_torch(plan, source, tokenizer, **options)
        table.add_row(
            "a step of the loader alone", f"{alone.step * 1e3:.0f} ms", "torch DataLoader, same work",
            f"{peer * 1e3:.0f} ms", f"{alone.step / peer:.2f}x", "<= 1x",
        )  # fmt: skip
        for name, cache in (("decoding", None), ("clip cache", ClipCache(folder))):
            got = run(plan, source, tokenizer, work_s=args.step_seconds, cache=cache, **options)
            table.add_row(
                f"CPU of a step, {name}", f"{got.cpu * 1e3:.0f} ms", "keeps up with steps of",
                f"{got.cpu / args.workers * 1e3:.0f} ms", "", "",
            )  # fmt: skip
            third = max(1, len(got.levels) // 3)
            grown = statistics.median(got.levels[-third:]) - statistics.median(got.levels[:third])
            table.add_row(
                f"data wait, {name}", f"{100 * got.waited:.1f} %", f"a step of {args.step_seconds:g} s", "", "", "<= 5 %"
            )  # fmt: skip
            table.add_row(
                f"memory, {name}", f"{got.levels[-1]:.0f} MB", "early in the run", f"{grown:+.1f} MB", "", "flat"
            )  # fmt: skip
    if args.trainer:
        for key, value in run_trainer(source, args.workers, min(args.steps, 20)).items():
            table.add_row(f"trainer: {key}", f"{value:.3f}", "", "", "", "")
    console.print(table)


if __name__ == "__main__":
    main()
