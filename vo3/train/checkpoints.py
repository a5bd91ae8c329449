"""Checkpoints of a run (Orbax): what they hold, how they are written and found again.

    WORKDIR/config.json           the resolved configuration; see `workdir`
    WORKDIR/frozen/               parameters that are not trained, written once
    WORKDIR/checkpoints/STEP/     state (parameters, optimiser, step, key, running norm) and position (plan, mesh, config)
    WORKDIR/damaged/STEP-N/       a checkpoint that could not be read, and in STEP-N.txt why
    WORKDIR/export/               the finished model as a Hugging Face directory; see `finished`

A checkpoint appears when it is whole: a run that is killed while it saves finds the one before. Arrays are restored against
the shardings of the run that reads them, so the mesh and the number of processes may change.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vo3.models.loading import absolute
from vo3.models.safetensors_io import CheckpointError
from vo3.train import processes
from vo3.train.state import Params, Trainable, TrainState


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands, as plain data.

    Attributes:
      step: optimiser steps done: the next step of the data plan.
      plan: fingerprint of the data plan; "" when the source has none.
      processes: of the run that wrote it, for the record.
      mesh: its devices per axis, for the record.
      cursor: prompts drawn so far, in RL, where a step draws as many as it takes.
    """

    step: int
    plan: str
    processes: int
    mesh: dict[str, int]
    cursor: int = 0


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint gave."""

    state: TrainState
    position: Position


class Checkpoints:
    """Reads and writes the checkpoints of one run. A context manager: leaving it waits for what is being written.

    Attributes:
      position: of the checkpoint that `restore` gave; None before, and where there was none.
    """

    def __init__(self, workdir: epath.PathLike, run: Trainable, *, plan: str = ""):
        self.workdir, self.run, self.plan = epath.Path(workdir), run, plan
        self.position: Position | None = None
        keep = run.config.checkpoint
        self._manager = ocp.CheckpointManager(
            absolute(self.workdir / "checkpoints"),
            item_names=("state", "position"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep.keep,
                enable_async_checkpointing=keep.background,
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            self._manager.close()
        except Exception as error:
            if kind is None:
                raise self._unwritten(self._manager.latest_step() or 0, error) from error
            logging.error("while closing the checkpoints: %s", error)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(self) -> Restored | None:
        """The newest checkpoint that can be read, on this run's mesh; None when there is none.

        Where a newer one cannot be read, it is moved to `WORKDIR/damaged` and named in the log. Nothing is moved before an
        older one has been read: what fails for all of them (memory, access to a bucket) is no damage.

        Raises:
          CheckpointError: there are checkpoints and none can be read; all were set aside; or it belongs to another data plan.
        """
        unread: dict[int, str] = {}
        for step in self.steps():
            restored, reason = self._try(step)
            if processes.agree(restored is not None):
                plan = restored.position.plan
                if self.plan and plan and plan != self.plan:
                    raise CheckpointError(
                        f"the checkpoint of step {step} in {self.workdir} belongs to another data plan: rows, lengths or "
                        "plan settings have changed; use another workdir, or the data it was started with"
                    )
                for other, why in unread.items():
                    self._set_aside(other, why)
                self.position = restored.position
                return restored
            unread[step] = reason or "another process could not read it"
            logging.error(
                "the checkpoint of step %d in %s cannot be read: %s",
                step,
                self.workdir,
                unread[step],
            )
        where = self.workdir / "checkpoints"
        if unread:
            newest = max(unread)
            raise CheckpointError(
                f"none of the checkpoints of steps {list(unread)} in {where} can be read (step {newest}: {unread[newest]}); "
                "nothing was moved. Start again when memory and access suffice; if they are damaged, use another workdir"
            )
        if aside := self._aside():
            raise CheckpointError(
                f"{where} is empty, and {self.workdir / 'damaged'} holds {', '.join(aside)}: the run would begin again at step "
                f"0. Move one back (damaged/STEP-N to checkpoints/STEP), use another workdir, or delete 'damaged' to begin again"
            )
        return None

    def _try(self, step: int) -> tuple[Restored | None, str]:
        """(what the checkpoint holds, ""), or (None, why it cannot be read here)."""
        try:
            kept = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(self.run.state),
                    position=ocp.args.JsonRestore(),
                ),
            )
            return Restored(kept["state"], Position(**kept["position"])), ""
        except Exception as error:  # Orbax raises many kinds for a file that is cut short
            return None, f"{type(error).__name__}: {str(error)[:500]}"

    def save(self, state: TrainState, step: int, *, cursor: int = 0) -> None:
        """Writes the state; returns when the arrays may be changed, and goes on in the background if the config says so.

        Raises:
          CheckpointError: this or the save before could not be written.
        """
        mesh = self.run.mesh
        position = Position(step, self.plan, jax.process_count(), dict(mesh.shape), cursor)
        if mesh.devices.flat[0].platform == "cpu" and self.run.config.checkpoint.background:
            # The next step donates these buffers, which on CPU the writer would still share.
            state = jax.tree.map(jnp.copy, state)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    position=ocp.args.JsonSave(dataclasses.asdict(position)),
                ),
                force=True,
            )
        except Exception as error:
            raise self._unwritten(step, error) from error

    def wait(self) -> None:
        """Until everything is written.

        Raises:
          CheckpointError: it could not be.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(self._manager.latest_step() or 0, error) from error

    def frozen(self, make: Any, *, anew: bool = False) -> Params:
        """The frozen parameters: from `WORKDIR/frozen`, or made by `make()` and written there; with `anew` always made, as where no checkpoint is and what an earlier start wrote may be of another model."""
        shapes = self.run.part(frozen=True)
        if not shapes:
            return {}
        path = absolute(self.workdir / "frozen")
        if processes.first():
            for part in self.workdir.glob(
                "frozen.orbax-checkpoint-tmp*"
            ):  # killed while it was written
                part.rmtree()
        processes.barrier("frozen")
        # Where nothing is renamed (gs://) half a write stands under the final name too.
        whole = path.exists() and ocp.utils.is_checkpoint_finalized(path)
        with ocp.StandardCheckpointer() as checkpointer:
            if not anew and processes.agree(whole):
                return checkpointer.restore(path, shapes)
            params = make()
            try:
                checkpointer.save(path, params, force=True)
                checkpointer.wait_until_finished()
            except Exception as error:
                raise self._unwritten(0, error) from error
        return params

    def _unwritten(self, step: int, error: Exception) -> CheckpointError:
        whole = [s for s in self.steps() if s != step]
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self.workdir} ({type(error).__name__}: "
            f"{str(error)[:300]}); is the disk full? Whole ones: {whole or 'none'}. Make room and start the run again: it goes "
            "on from the newest"
        )

    def _aside(self) -> list[str]:
        """Names of the checkpoints that were set aside."""
        damaged = self.workdir / "damaged"
        return sorted(p.name for p in damaged.iterdir() if p.is_dir()) if damaged.exists() else []

    def _set_aside(self, step: int, why: str) -> None:
        processes.barrier(f"damaged {step}")
        if processes.first():
            damaged = self.workdir / "damaged"
            damaged.mkdir(parents=True, exist_ok=True)
            names = (f"{step}-{n}" for n in itertools.count())
            name = next(n for n in names if not (damaged / n).exists())
            # Written first: on a bucket there is no folder before something lies in it, and nothing is renamed into none.
            (damaged / f"{name}.txt").write_text(f"{why}\n")
            (self.workdir / "checkpoints" / str(step)).rename(damaged / name)
            logging.error("the checkpoint of step %d is set aside as %s", step, damaged / name)
        processes.barrier(f"set aside {step}")
        self._manager.reload()
