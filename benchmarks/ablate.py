"""Runs a grid of small trainings over seeds and prints what each answers. `python -m benchmarks.ablate --config=configs/ablate.py --workdir=out/ablate`.

Every cell of the grid trains a model of the micro-world from nothing by the trainer's own loop, then asks it questions on held-out worlds, real mp4 files, through the agent's
own loop. A cell with a section `rl` goes on with RL from its last stage, by the RL trainer's own loop (`configs/ablate_rl.py`). Stages that cells share are trained once. What is done is
kept in the workdir: a second run goes on where the first stopped, RL within its own steps, and prints the same table.

The table has one row a cell: for every quadrant the share of right answers with its 95 % interval and, but for the first cell, the difference from the first, question by question and seed
by seed, with its own. Intervals cover worlds and seeds at once (bootstrap, `vo3.clueworld.resample`). Tokens, calls and IoU are of the questions on a single
clue that need a call; without any call the IoU is 0. Time is the wall clock of the cell's stages, whoever trained them, or of its RL alone where it has RL.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import app, flags
from etils import epath
from flax import nnx
from jaxtyping import Bool
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from vo3.agent import VideoAgent
from vo3.chat import PromptPack
from vo3.clueworld import tasks
from vo3.clueworld.evaluate import evaluate, questions
from vo3.clueworld.figures import Share, is_right
from vo3.clueworld.gains import iou
from vo3.clueworld.pretrain import train_vision
from vo3.clueworld.resample import interval, world_of
from vo3.clueworld.scales import AGENT, frozen, get_scale
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.models.qwen2_5_vl import Qwen2_5_VL
from vo3.train import config as config_lib
from vo3.train import grpo
from vo3.train.sft import latest_params, train
from vo3.trajectory import Trajectory

STAGES = ("read", "whole")  # after the vision tower
DONE = "done.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A point of the grid.

    Attributes:
      changes: keys of the base cell with their values here, sorted.
      config: the whole cell.
    """

    changes: tuple[tuple[str, Any], ...]
    config: ml_collections.ConfigDict

    @property
    def name(self) -> str:
        """The changes, for people."""
        return ", ".join(f"{key.split('.')[-1]} {value}" for key, value in self.changes) or "base"


def cells(config: ml_collections.ConfigDict) -> list[Cell]:
    """The grid's cells: a union of products, each cell once.

    Raises:
      ConfigError: a key that the cell has not, or values that are no sequence.
    """
    found: dict[str, Cell] = {}
    for product in config.grid:
        for values in product.values():
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise config_lib.ConfigError(f"grid {dict(product)}: values are given as a tuple")
        for values in itertools.product(*product.values()):
            changes = dict(zip(product, values, strict=True))
            cell = config_lib.override(config.cell, **changes)
            found.setdefault(config_lib.to_text(cell), Cell(tuple(sorted(changes.items())), cell))
    return list(found.values())


def key_of(*parts: Any) -> str:
    """A short fingerprint of settings."""
    text = json.dumps([p.to_dict() if hasattr(p, "to_dict") else p for p in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Stages:
    """Trains the stages of cells, each once, in folders named by what they depend on.

    Args:
      workdir: of the ablation.
    """

    def __init__(self, workdir: epath.Path):
        self.workdir = workdir / "stages"

    def run(self, cell: ml_collections.ConfigDict, seed: int) -> tuple[epath.Path, float]:
        """(workdir of the last stage, seconds of all stages)."""
        where = (cell.scale, cell.view, seed)
        # A baseline with its tower kept is another than one of before, whose tower trained along; so is an agent whose tower is asked for its digit at every token.
        marks = frozen(cell.view) or ("digit",)
        folder = self.workdir / f"vision-{key_of(where, cell.vision, *marks)}"
        seconds = self._timed(folder, functools.partial(self._vision, folder, cell, seed))
        before = folder
        for stage in STAGES:
            last = stage == STAGES[-1]
            tdam = cell.tdam if last else None
            folder = self.workdir / f"{stage}-{key_of(before.name, cell[stage], tdam)}"
            seconds += self._timed(
                folder, functools.partial(self._train, folder, before, cell, stage, seed, tdam)
            )
            before = folder
        if "rl" in cell and cell.rl.steps:
            folder = self.workdir / f"rl-{key_of(before.name, cell.rl)}"
            seconds = self._timed(folder, functools.partial(self._rl, folder, before, cell, seed))
        return folder, seconds

    def _rl(
        self, folder: epath.Path, before: epath.Path, cell: ml_collections.ConfigDict, seed: int
    ) -> None:
        scale = get_scale(cell.scale)
        changes = {"seed": seed, "init_from": str(before), "rl.clueworld.scale": cell.scale}
        changes |= {"data.videos": str(self.workdir.parent / f"videos-rl-{scale.name}")}
        changes |= {"compilation_cache": str(self.workdir.parent / "compiled")}
        setting = grpo.Setting(
            build_tokenizer(), PromptPack.load("clueworld"), scale.view(cell.view)
        )
        result = grpo.train(
            config_lib.override(cell.rl, **changes),
            folder,
            parts=grpo.Parts(model=scale.model(), setting=setting),
            devices=jax.local_devices()[:1],
        )
        _go_on(result, folder)

    def _timed(self, folder: epath.Path, work: Any) -> float:
        """Seconds that the work took, now or when it was done; a stage that was killed counts from its newest start."""
        if not (folder / DONE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            begin = time.monotonic()
            work()
            (folder / DONE).write_text(json.dumps({"seconds": time.monotonic() - begin}))
        return json.loads((folder / DONE).read_text())["seconds"]

    def _vision(self, folder: epath.Path, cell: ml_collections.ConfigDict, seed: int) -> None:
        train_vision(
            folder,
            steps=cell.vision.steps,
            seed=seed,
            worlds=cell.vision.worlds,
            scale=cell.scale,
            view=cell.view,
        )

    def _train(
        self,
        folder: epath.Path,
        before: epath.Path,
        cell: ml_collections.ConfigDict,
        stage: str,
        seed: int,
        tdam: ml_collections.ConfigDict | None,
    ) -> None:
        first = stage == STAGES[0]
        short = ml_collections.ConfigDict(cell[stage].to_dict())
        short.seed = seed
        short.frozen = frozen(cell.view)
        short.save_every = short.steps
        short.init_vision = str(before / "vision.npz") if first else ""
        short.init_from = "" if first else str(before)
        short.data.update(
            # Streams of fine-tuning share no world with each other. The vision tower's has the plain seed and draws worlds in the same
            # way: it shares them with the stream of that number. None meets the evaluation's.
            {"seed": 10 * seed + STAGES.index(stage), "scale": cell.scale, "view": cell.view}
        )
        if tdam is not None:
            short.tdam = {"policy": tdam.policy, "mask_ratio": float(tdam.mask_ratio)}
        result = train(
            short, folder, devices=jax.local_devices()[:1], model=get_scale(cell.scale).model()
        )
        _go_on(result, folder)


def _go_on(result: Any, folder: epath.Path) -> None:
    """Ends where training was asked to: a stage that is not finished is not done, and the next start goes on with it."""
    if not result.finished:
        raise SystemExit(f"asked to end after {result.step} steps of {folder}")


class Asker:
    """Asks trained models; agents of one view share their compiled programs."""

    def __init__(self, workdir: epath.Path, worlds: int, quadrants: Sequence[str]):
        self.workdir, self.worlds, self.quadrants = workdir, worlds, tuple(quadrants)
        self._agents: dict[tuple[str, str], VideoAgent] = {}

    def ask(self, cell: ml_collections.ConfigDict, trained: epath.Path) -> list[Trajectory]:
        """The model's trajectories on the held-out worlds."""
        scale = get_scale(cell.scale)
        agent = self._agent(scale, cell.view, trained)
        return evaluate(
            agent,
            trained / f"questions-{'-'.join(self.quadrants)}",
            self.worlds,
            one_look=cell.view != AGENT,
            config=scale.world,
            ask=functools.partial(questions, options=0.0, quadrants=self.quadrants),
            videos=self.workdir / f"videos-{scale.name}",
        )

    def _agent(self, scale: Any, view: str, trained: epath.Path) -> VideoAgent:
        model = Qwen2_5_VL(scale.model(), rngs=nnx.Rngs(0))
        nnx.update(model, latest_params(model, trained))
        if (scale.name, view) not in self._agents:
            self._agents[scale.name, view] = VideoAgent(
                model,
                tokenizer=build_tokenizer(),
                prompt_pack="clueworld",
                crop_policy=scale.view(view),
                max_new_tokens=96,
            )
        agent = self._agents[scale.name, view]
        agent.engine.update(model)
        return agent


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What a cell's models answer in a quadrant.

    Attributes:
      right: whether each seed's model answers each question rightly.
      worlds: that the questions are about.
    """

    right: Bool[np.ndarray, "seeds questions"]
    worlds: tuple[str, ...]

    @property
    def shares(self) -> tuple[Share, ...]:
        """Of each seed."""
        return tuple(Share(int(row.sum()), len(row)) for row in self.right)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the mean, over worlds and seeds."""
        low, high = interval(self.right.astype(float), self.worlds)
        return max(low, 0.0), min(high, 1.0)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.right.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    def beside(self, first: Result) -> str:
        """With the difference from another cell on the same questions and seeds: what these have in common falls out."""
        low, high = self.difference(first)
        mean = self.right.mean() - first.right.mean()
        return f"{self}; {100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"

    def difference(self, first: Result) -> tuple[float, float]:
        """95 % of the mean difference, over worlds and seeds."""
        return interval(self.right.astype(float) - first.right, self.worlds)


def result(seeds: Sequence[Sequence[Trajectory]], quadrant: str) -> Result:
    """The answers of a quadrant, of the trajectories of every seed.

    Raises:
      ValueError: seeds were not asked the same.
    """
    some = [[t for t in rows if t.task.target.data_source == quadrant] for rows in seeds]
    names = [t.task.id for t in some[0]]
    if any([t.task.id for t in rows] != names for rows in some):
        raise ValueError(f"{quadrant}: the seeds were not asked the same questions in order")
    right = np.array([[is_right(t) for t in rows] for rows in some])
    return Result(right, tuple(world_of(name) for name in names))


def run(
    config: ml_collections.ConfigDict, workdir: epath.Path
) -> Iterator[tuple[Cell, dict[str, Result], dict[str, float]]]:
    """Every cell with its results by quadrant and its means over seeds ("minutes", "tokens", "calls", "iou"), as it ends."""
    stages, asker = Stages(workdir), Asker(workdir, config.worlds, config.quadrants)
    for cell in cells(config):
        rows, seconds = [], []
        for seed in config.seeds:
            folder, took = stages.run(cell.config, seed)
            rows.append(asker.ask(cell.config, folder))
            seconds.append(took)
        results = {q: result(rows, q) for q in config.quadrants}
        every = [t for some in rows for t in some]
        single = [t for t in every if t.task.target.data_source == tasks.SINGLE_TOOL]
        figures = {
            "minutes": float(np.mean(seconds)) / 60,
            "tokens": _mean([sum(o.tokens for o in t.observations) for t in single]),
            "calls": _mean([len(t.calls) for t in single]),
            "iou": _mean([iou(t) for t in single]),
        }
        yield cell, results, figures


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def show(config: ml_collections.ConfigDict, workdir: epath.Path, console: Console) -> None:
    """Runs, prints and writes the table."""
    table = Table(title=f"right answers; seeds {tuple(config.seeds)}, {config.worlds} worlds")
    for name in ("cell", *config.quadrants, "tokens", "calls", "IoU", "minutes"):
        table.add_column(name)
    written: list[dict] = []
    first: dict[str, Result] = {}
    for cell, results, figures in run(config, workdir):
        numbers = (f"{figures['tokens']:.0f}", f"{figures['calls']:.2f}", f"{figures['iou']:.2f}")
        told = [results[q].beside(first[q]) if first else str(results[q]) for q in config.quadrants]
        first = first or results
        row = (*told, *numbers, f"{figures['minutes']:.1f}")
        console.print(cell.name, *row, sep="  ")
        table.add_row(cell.name, *row)
        written.append(
            {
                "cell": dict(cell.changes),
                **figures,
                "right": {
                    q: [(s.right, s.total) for s in some.shares] for q, some in results.items()
                },
                "interval": {q: some.interval for q, some in results.items()},
                "difference": {q: some.difference(first[q]) for q, some in results.items()},
            }
        )
        (workdir / "table.json").write_text(json.dumps(written, indent=1) + "\n")
    console.print(table)


def main(_: list[str]) -> None:
    """Entry point."""
    try:
        config, workdir = flags.FLAGS.config, epath.Path(flags.FLAGS.workdir).absolute()
        show(config, workdir, Console(width=200))
    except config_lib.ConfigError as error:
        raise SystemExit(f"benchmarks.ablate: {error}") from error


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The ablation.")
    flags.DEFINE_string("workdir", None, "Stages, videos, trajectories and the table go here.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
