"""The parameters of a run outside of it: read from its newest checkpoint, or written as a Hugging Face directory."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from vo3.models import hf_io, loading
from vo3.models.loading import absolute
from vo3.models.qwen2_5_vl import Qwen2_5_VL
from vo3.models.safetensors_io import CheckpointError
from vo3.train import config as config_lib
from vo3.train import lora, processes
from vo3.train import workdir as workdir_lib
from vo3.train.gather import gather
from vo3.train.sharding import replicated
from vo3.train.state import Params, Trainable, architecture, fit


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
        raise FileNotFoundError(
            f"no checkpoint in {workdir}; give the workdir of a run that has one, or the directory of a checkpoint"
        )
    where = {n: s.sharding for n, s in shapes.items()}
    params = _read(
        absolute(workdir / "checkpoints" / str(max(steps)) / "state"), where, inside="params"
    )
    if (workdir / "frozen").exists():
        params |= _read(absolute(workdir / "frozen"), where)
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
