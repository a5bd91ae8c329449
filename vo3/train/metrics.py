"""Seeing a run: one line a step, a log file, TensorBoard, wandb. Only the first process writes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig
from vo3.train import processes
from vo3.train.work import Work, model_flops, peak_flops


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the log: means over the steps since the line before.

    Attributes:
      step: steps done.
      values: by name, in the order they are shown.
    """

    step: int
    values: dict[str, float]

    def line(self, total: int) -> str:
        """As people read it."""
        v = self.values
        parts = [f"step {self.step}/{total}", f"loss {v['loss']:.4f}"]
        if v.get("tokens_per_second"):
            parts.append(f"{v['tokens_per_second']:,.0f} tokens/s")
        parts += [f"padding {100 * v['padding']:.1f} %"]
        if "mfu" in v:
            parts.append(f"MFU {100 * v['mfu']:.1f} %")
        parts.append(f"data wait {100 * v['data_wait']:.1f} %")
        if v.get("failed"):
            parts.append(f"left out {v['failed']:g}")
        parts.append(f"{clock(v['eta'])} left")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


class Meter:
    """Adds up what happens between two lines of the log."""

    def __init__(self, model: Qwen2_5_VLConfig, *, total: int, vision_trained: bool, mesh: Any):
        self._model, self._total, self._vision = model, total, vision_trained
        self._devices = mesh.size
        self._peak = peak_flops(mesh.devices.flat[0].device_kind)
        self.restart()

    def restart(self) -> None:
        """Begins a new line."""
        self._begin, self._waited, self._steps = time.monotonic(), 0.0, 0
        self._work = Work()

    def add(self, work: Work, waited: float) -> None:
        """One step: what it did, and the seconds it waited for data."""
        self._work += work
        self._waited += waited
        self._steps += 1

    def row(self, step: int, metrics: dict[str, float]) -> Row:
        """The line after `step`, with these values of the last step; then begins a new one."""
        spent = max(time.monotonic() - self._begin, 1e-9)
        work, each = self._work, spent / max(self._steps, 1)
        values = {
            **metrics,
            "seconds": spent,
            "seconds_per_step": each,
            "tokens_per_second": work.tokens / spent,
            "padding": 1 - work.tokens / work.slots if work.slots else 0.0,
            "data_wait": self._waited / spent,
            "trajectories": work.trajectories,
            "failed": work.failed,
            "eta": each * (self._total - step),
        }
        if self._peak and work.tokens:
            flops = model_flops(work, self._model, vision_trained=self._vision)
            values["mfu"] = flops / spent / (self._peak * self._devices)
        self.restart()
        return Row(step, values)


class Log:
    """Writes rows to the terminal, `log.jsonl`, TensorBoard and wandb. A context manager.

    Rows of steps that a restart repeats are dropped from `log.jsonl` first, so that it holds every step once.
    """

    def __init__(self, workdir: epath.PathLike, config: Any, *, start: int = 0):
        self._total, self._config = config.steps, config
        self._workdir = epath.Path(workdir)
        self._board = self._wandb = None
        self._writes = processes.first()
        if not self._writes:
            return
        file = self._workdir / "log.jsonl"
        text = file.read_text() if file.exists() else ""
        lines = text.splitlines()
        self._lines = [line for line in lines if _step(line) is not None and _step(line) <= start]
        kept = "".join(f"{line}\n" for line in self._lines)
        if kept != text:
            # Aside: a run that is killed here must not lose the steps that are done.
            part = self._workdir / "log.jsonl.part"
            part.write_text(kept)
            part.replace(file)
        # A file on a bucket cannot be appended to; it is small and written again.
        self._remote = "://" in os.fspath(file)
        if config.log.tensorboard:
            self._board = Board(self._workdir / "tensorboard", start=start)
        if config.log.wandb:
            self._wandb = _start_wandb(config, self._workdir)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._writes:
            return
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, row: Row) -> None:
        """One row, everywhere."""
        if not self._writes:
            return
        line = json.dumps({"step": row.step, **{k: _rounded(v) for k, v in row.values.items()}})
        self._lines.append(line)
        file = self._workdir / "log.jsonl"
        if self._remote:
            file.write_text("".join(f"{x}\n" for x in self._lines))
        else:
            with file.open("a") as log:
                log.write(line + "\n")
        _show(row.line(self._total))
        if self._board is not None:
            self._board.scalars(row)
        if self._wandb is not None:
            self._wandb.log(row.values, step=row.step)

    def sample(self, step: int, text: str, picture: np.ndarray | None) -> None:
        """A sample of a batch: files under `samples/`, and in TensorBoard."""
        if not self._writes:
            return
        folder = self._workdir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"step-{step:06d}.txt").write_text(text)
        if picture is not None:
            from PIL import Image

            with (folder / f"step-{step:06d}.png").open("wb") as file:
                Image.fromarray(picture).save(file, format="PNG")
        if self._board is not None:
            self._board.sample(step, text, picture)


class Board:
    """TensorBoard event files, without TensorFlow."""

    def __init__(self, directory: epath.Path, *, start: int = 0):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "log.tensorboard needs the package tensorboardX; pip install -e '.[train]' in the checkout of vo3, or --config.log.tensorboard=False"
            ) from error
        self._target = directory
        self._remote = "://" in os.fspath(directory)
        local = tempfile.mkdtemp(prefix="vo3-board-") if self._remote else os.fspath(directory)
        # What was written of steps that are now done again is hidden by the purge.
        self._writer = SummaryWriter(local, purge_step=start + 1 if start else None, flush_secs=30)
        self._local = pathlib.Path(local)

    def scalars(self, row: Row) -> None:
        """Every value of a row."""
        for name, value in row.values.items():
            self._writer.add_scalar(f"train/{name}", value, row.step)
        self._flush()

    def sample(self, step: int, text: str, picture: np.ndarray | None) -> None:
        """A sample's text and picture."""
        self._writer.add_text("sample", f"    {text}".replace("\n", "\n    "), step)
        if picture is not None:
            self._writer.add_image("sample", picture, step, dataformats="HWC")
        self._flush()

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
        self._mirror()

    def _flush(self) -> None:
        self._writer.flush()
        self._mirror()

    def _mirror(self) -> None:
        if self._remote:
            _mirror(self._local, self._target)


def _mirror(local: pathlib.Path, target: epath.Path) -> None:
    """Copies a folder to a bucket, for writers that know local files only."""
    for file in local.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(local).as_posix()
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())


def _start_wandb(config: Any, workdir: epath.Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError(
            "log.wandb needs the package wandb; pip install wandb, or --config.log.wandb=''"
        ) from error
    # One id per workdir: a run that goes on, goes on in the same curve. Of the whole path, for the last part of it may be that of
    # other runs ("stage1"), whose curves would be one.
    path = os.fspath(workdir)
    path = path if "://" in path else os.path.abspath(path)
    return wandb.init(
        project=config.log.wandb,
        name=epath.Path(workdir).name,
        id=hashlib.blake2b(path.encode(), digest_size=8).hexdigest(),
        resume="allow",
        config=config.to_dict(),
    )


def _show(line: str) -> None:
    """On a terminal with rich, elsewhere as a plain line of the log."""
    if sys.stderr.isatty():
        from rich.console import Console

        Console(stderr=True, soft_wrap=True, highlight=True).print(line)
    else:
        logging.info("%s", line)


def _step(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (
        ValueError,
        KeyError,
        TypeError,
    ):  # the line that was being written when the run was killed
        return None


def _rounded(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


class Profile:
    """A profile of `log.profile_steps` steps from `log.profile_start` on, for `tensorboard` or `xprof`."""

    def __init__(self, workdir: epath.PathLike, config: Any):
        self._first = config.log.profile_start
        self._last = self._first + config.log.profile_steps - 1
        self._target = epath.Path(workdir) / "profile"
        self._remote = "://" in os.fspath(self._target)
        self._on = False

    def before(self, step: int) -> None:
        """Call before a step (counted from 1)."""
        if self._first and step == self._first:
            self._local = pathlib.Path(
                tempfile.mkdtemp(prefix="vo3-profile-") if self._remote else self._target
            )
            jax.profiler.start_trace(os.fspath(self._local))
            self._on = True

    def after(self, step: int) -> None:
        """Call after a step, or when the run ends."""
        if self._on and step >= self._last:
            jax.profiler.stop_trace()
            if self._remote:
                _mirror(self._local, self._target)
                shutil.rmtree(self._local)
            self._on = False
