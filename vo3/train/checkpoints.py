"""Checkpoints of a run (Orbax): what they hold, how they are written and found again, export to Hugging Face.

    WORKDIR/config.json           the resolved configuration; see `workdir`
    WORKDIR/frozen/               parameters that are not trained, written once
    WORKDIR/checkpoints/STEP/     state (parameters, optimiser, step, key, running norm) and position (plan, mesh, config)
    WORKDIR/damaged/STEP-N/       a checkpoint that could not be read, and in STEP-N.txt why
    WORKDIR/export/               the finished model as a Hugging Face directory

A checkpoint appears when it is whole: a run that is killed while it saves finds the one before. Arrays are restored against
the shardings of the run that reads them, so the mesh and the number of processes may change.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import nnx

from vo3.models import hf_io
from vo3.models.qwen2_5_vl import Qwen2_5_VL
from vo3.models.safetensors_io import CheckpointError
from vo3.train import config as config_lib
from vo3.train import lora, processes
from vo3.train import workdir as workdir_lib
from vo3.train.gather import gather
from vo3.train.sharding import replicated
from vo3.train.state import Params, Trainable, TrainState, architecture, fit


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
            _absolute(self.workdir / "checkpoints"),
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
        path = _absolute(self.workdir / "frozen")
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


# ---------------------------------------------------------------- reading a finished run


def read_params(workdir: epath.PathLike, shapes: dict[str, jax.ShapeDtypeStruct]) -> Params:
    """Parameters of a run's newest checkpoint, adapters merged, laid out as `shapes`.

    Raises:
      FileNotFoundError: the run has no checkpoint.
      CheckpointError: its configuration, or the checkpoint, cannot be read.
      ConfigError: it is of another architecture.
    """
    workdir = epath.Path(workdir)
    steps = workdir_lib.steps(workdir)
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {workdir}; train that stage first")
    where = {n: s.sharding for n, s in shapes.items()}
    params = _read(
        _absolute(workdir / "checkpoints" / str(max(steps)) / "state"), where, inside="params"
    )
    if (workdir / "frozen").exists():
        params |= _read(_absolute(workdir / "frozen"), where)
    old = workdir_lib.stored(workdir) or {}
    if old.get("lora.rank"):
        merge = functools.partial(
            lora.merge_adapters, rank=old["lora.rank"], alpha=old["lora.alpha"]
        )
        params = jax.jit(merge)(params)
    return fit(params, shapes, workdir)


def _read(path: epath.Path, where: dict[str, Any], *, inside: str = "") -> Params:
    """The stored arrays by path, those of `where` in their places, adapters whole on every device of the others."""
    some = next(iter(where.values()))
    spread = isinstance(some, jax.sharding.NamedSharding)
    whole = replicated(some.mesh) if spread else some
    try:
        return _restored(path, where, whole, inside)
    except Exception as error:  # tensorstore has errors of its own
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {str(error)[:300]}); copy it anew, or move it away where an older step stands beside it"
        ) from error


def _restored(path: epath.Path, where: dict[str, Any], whole: Any, inside: str) -> Params:
    with ocp.PyTreeCheckpointer() as checkpointer:
        stored = checkpointer.metadata(path)
        stored = getattr(stored, "item_metadata", stored)
        stored = getattr(stored, "tree", stored)
        stored = stored[inside] if inside else stored
        # Against this run's shardings: the stored ones belong to the machines that wrote them.
        item = {
            n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where.get(n, whole))
            for n, x in stored.items()
        }
        nested = {inside: item} if inside else item
        args = ocp.args.PyTreeRestore(
            item=nested,
            restore_args=ocp.checkpoint_utils.construct_restore_args(nested),
            partial_restore=True,
        )
        found = checkpointer.restore(path, args=args)
    return found[inside] if inside else found


def export(run: Trainable, params: Params, directory: epath.PathLike) -> None:
    """Writes all parameters as a Hugging Face directory with the tokenizer and processor files of `config.model`.

    Several processes gather what they hold into the memory of the first one's host, which writes; see `gather`.
    """
    from vo3.models import loading

    config = run.config
    if config.lora.rank:
        merge = lambda p: lora.merge_adapters(p, rank=config.lora.rank, alpha=config.lora.alpha)
        params = jax.jit(merge)(params)
    dtype = jnp.dtype(config.param_dtype)
    if jax.process_count() > 1:
        params = gather(run, params)
    if processes.first():
        graph, shapes = hf_io.abstract(run.model, dtype=dtype, param_dtype=dtype)
        model = nnx.merge(graph, hf_io.unflatten(shapes, params))
        source = loading.NAMES.get(config.model, epath.Path(config.model))
        hf_io.save(model, directory, source=source if source.exists() else None, overwrite=True)
        loading.record_time(model, directory)
    processes.barrier("exported")


def load_run(workdir: epath.PathLike, *, dtype: Any = None) -> Qwen2_5_VL:
    """The model of a run's newest checkpoint, adapters merged, on this process's first device.

    Args:
      workdir: of the run.
      dtype: of weights and computation; None: f32.

    Raises:
      CheckpointError: no run's workdir, one without a checkpoint, or a configuration that cannot be read.
    """
    from vo3.models import loading

    workdir, dtype = epath.Path(workdir), jnp.dtype(dtype or jnp.float32)
    stored = workdir_lib.stored(workdir)
    if stored is None:
        raise CheckpointError(
            f"{workdir} has no {workdir_lib.CONFIG}; give the workdir of a training run"
        )
    name = stored["model"]
    own = {
        "model": name,
        "remat": "none",
        "data.mrope_time": stored.get("data.mrope_time", "constant"),
    }
    config = config_lib.override(config_lib.defaults(), **own)
    graph, shapes = hf_io.abstract(architecture(config), dtype=dtype, param_dtype=dtype)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = {n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device) for n, s in shapes.items()}
    try:
        params = read_params(workdir, placed)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from error
    model = nnx.merge(graph, hf_io.unflatten(shapes, params))
    source = loading.NAMES.get(name, epath.Path(name))
    model.source = source if source.exists() else None
    return model


def _absolute(path: epath.PathLike) -> epath.Path:
    # Orbax refuses relative paths; resolve() would break gs:// ones.
    return (
        epath.Path(path) if "://" in os.fspath(path) else epath.Path(pathlib.Path(path).absolute())
    )
