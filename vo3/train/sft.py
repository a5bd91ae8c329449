"""Supervised fine-tuning, from one core to a pod by the same command.

    python -m vo3.train.sft --config=configs/sft_stage1.py --workdir=DIR [--config.steps=100]

Reads top to bottom: config, data, model, loop. What a step computes is a pure function of (config, step, parameters), so a run
that is killed and started again goes on from its newest checkpoint as if nothing had happened. SIGTERM or a preemption notice
saves and exits with 0, or with what VO3_STOPPED_CODE says.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath
from flax import nnx

from vo3.data.failures import FailureLimitError
from vo3.data.rejects import RejectLimitError
from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from vo3.train import checkpoints as ckpt
from vo3.train import command, processes, samples, sharding
from vo3.train import config as config_lib
from vo3.train.faults import Faults
from vo3.train.feed import Ahead, ClueWorldFeed, Feed, MicroBatch
from vo3.train.finished import export, read_params
from vo3.train.metrics import Log, Meter, Profile
from vo3.train.state import Params, Trainable, TrainState, initial_params, trainable
from vo3.train.step import FAULTS, Metrics, Programs
from vo3.train.work import Work
from vo3.train.workdir import claim

# Steps whose batches are written to WORKDIR/faults, of those that a start of the run passes over: a step of a large run is gigabytes.
_DUMPED = 3


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes:
      params: every parameter by dotted path, frozen ones too.
      step: steps done.
      finished: whether that is all of them; False after SIGTERM.
    """

    params: Params
    step: int
    finished: bool


def train(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    *,
    feed: Feed | None = None,
    devices: list[Any] | None = None,
    model: Qwen2_5_VLConfig | None = None,
    stop_after: int | None = None,
) -> Result:
    """Runs to `config.steps`, or to the end of the data's epochs, from the newest checkpoint in `workdir` on.

    Args:
      config: of `vo3.train.config.defaults()`, or the short form of `configs/clueworld.py`.
      workdir: checkpoints and logs.
      feed: the data; None: as `config.data` says.
      devices: to use; None: all, or what the short form says.
      model: the architecture; None: that of `config.model`.
      stop_after: save and end after this step, as SIGTERM does.

    Raises:
      ConfigError: the configuration contradicts itself, or the workdir is another run's.
      CheckpointError: checkpoints cannot be read or written.
      RejectLimitError, FailureLimitError: more rows, or videos, cannot be used than `data.reject_limit` allows.
      TrainingFault: a step that is not finite, or a spike, with `on_nan="stop"`; or many in a row.
    """
    workdir = epath.Path(workdir)
    if "optimizer" in config:
        config, devices = from_short_form(config), devices or jax.local_devices()[:1]
    else:
        config_lib.validate(config, needs_data=feed is None)
    devices = devices or jax.devices()
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    mesh = sharding.make_mesh(config, devices)
    # From here on: one of several processes that SIGTERM kills while it reads or compiles would leave the others waiting.
    with processes.Preemption() as preemption:
        feed = feed or make_feed(config, mesh, workdir)
        config = _resolved(config, len(devices), feed)
        claim(workdir, config)
        run = trainable(config, mesh, model=model)
        if processes.first():
            logging.info("configuration:\n%s", config_lib.to_text(config))
            counts = [sum(np.prod(s.shape) for s in run.part(f).values()) for f in (False, True)]
            logging.info("%s parameters are trained, %s frozen", *(f"{int(n):,}" for n in counts))
        with ckpt.Checkpoints(workdir, run, plan=feed.plan) as checkpoints:
            state, frozen = start(run, checkpoints)
            feed.prepare(run, frozen)
            state, step, finished = _loop(
                run, feed, checkpoints, preemption, state, frozen, workdir, stop_after
            )
        params = {**state.params, **frozen}
        if finished and config.checkpoint.export_hf:
            export(run, params, workdir / "export")
    return Result(params, step, finished)


def start(run: Trainable, checkpoints: ckpt.Checkpoints) -> tuple[TrainState, Params]:
    """(state, frozen parameters): of the newest checkpoint, or new ones."""
    restored = checkpoints.restore()
    if restored is not None:
        logging.info("resuming from step %d", restored.position.step)
        return restored.state, checkpoints.frozen(lambda: run.split(initial_params(run))[1])
    trained, frozen = run.split(initial_params(run))
    make = jax.jit(run.new_state, out_shardings=jax.tree.map(lambda x: x.sharding, run.state))
    return make(trained), checkpoints.frozen(lambda: frozen, anew=True)


def _loop(
    run: Trainable,
    feed: Feed,
    checkpoints: ckpt.Checkpoints,
    preemption: processes.Preemption,
    state: TrainState,
    frozen: Params,
    workdir: epath.Path,
    stop_after: int | None,
) -> tuple[TrainState, int, bool]:
    """Steps until the end; returns (state, steps done, whether all are)."""
    config, done = run.config, int(state.step)
    programs = Programs(run)
    _, groups = sharding.row_groups(run.mesh)
    put = functools.partial(sharding.place, mesh=run.mesh, groups=groups)
    vision_trained = any(n.startswith("vision.blocks") for n in run.part(frozen=False))
    meter = Meter(run.model, total=config.steps, vision_trained=vision_trained, mesh=run.mesh)
    profile = Profile(workdir, config)
    log = Log(workdir, config, start=done)
    faults = Faults(config.on_nan, checkpoints.steps)
    source = feed.micro_batches(done, config.steps)
    ahead = Ahead(source, lambda item: (item, put(item.batch)))
    with log, ahead:
        items = iter(ahead)
        ending = preemption.reached()
        while done < config.steps and not ending:
            profile.before(done + 1)
            hosts, state, metrics, waited = _step(programs, feed, state, frozen, items, put)
            done += 1
            meter.add(sum((item.work for item in hosts), Work()), waited)
            profile.after(done)
            if metrics.fault:
                _report_fault(workdir, done, hosts, metrics, faults)
            else:
                faults.none()
            if done % config.log.every == 0 or done == config.steps:
                log.write(meter.row(done, _values(metrics, run, done, programs, feed)))
            if (
                config.log.samples_every
                and done % config.log.samples_every == 1 % config.log.samples_every
            ):
                batch = hosts[0].batch
                log.sample(done, samples.text_of(batch, feed.tokenizer), samples.picture_of(batch))
            ending = preemption.reached() or done == stop_after
            if done % config.checkpoint.every == 0 or done == config.steps or ending:
                checkpoints.save(state, done)
        if ending and done < config.steps:
            logging.info("asked to end after step %d", done)
        profile.after(10**9)
        checkpoints.wait()
    return state, done, done == config.steps


def _step(
    programs: Programs, feed: Feed, state: TrainState, frozen: Params, items: Any, put: Callable
) -> tuple[list[MicroBatch], TrainState, Metrics, float]:
    """One optimiser step: takes its micro-batches; returns them, the new state, the metrics on the host, and the seconds
    that were spent waiting for data.
    """
    hosts: list[MicroBatch] = []
    waited = 0.0
    partial = None if feed.single else programs.zero()
    while not hosts or not hosts[-1].last:
        begin = time.monotonic()
        host, batch = next(items)
        waited += time.monotonic() - begin
        if host.settle is not None and (settled := host.settle()) is not None:
            host, batch = settled, put(settled.batch)
        hosts.append(host)
        if feed.single:
            state, metrics = programs.update(state, frozen, batch)
        else:
            partial = programs.add(partial, state, frozen, batch)
    if not feed.single:
        state, metrics = programs.finish(state, partial)
    # Waits for the step: else its own time would count as waiting for data.
    return hosts, state, jax.device_get(metrics), waited


def _values(
    metrics: Metrics, run: Trainable, done: int, programs: Programs, feed: Feed
) -> dict[str, float]:
    values = {
        "loss": float(metrics.entropy),
        "accuracy": float(metrics.accuracy),
        "gradient_norm": float(metrics.gradient_norm),
        "rate": float(run.rate(done - 1)),
        "programs": programs.compiled(),
    }
    if feed.rejected is not None:
        values["rejected"] = feed.rejected
    if run.config.loss.z_loss or run.config.loss.label_smoothing:
        values["objective"] = float(metrics.loss)
    if run.config.tdam.policy != "off":
        values["masked"] = float(metrics.masked)
    return values


def _report_fault(
    workdir: epath.Path, done: int, hosts: list[MicroBatch], metrics: Metrics, faults: Faults
) -> None:
    """Names the step's batches, and dumps those of the first few faults.

    Raises:
      TrainingFault: with `on_nan="stop"`, or after many in a row.
    """
    folder = workdir / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{done:06d}-process{jax.process_index()}"
    names = [name for host in hosts for name in host.names]
    (folder / f"{name}.txt").write_text("\n".join(names) + "\n")
    where = f"the names of its batches are in {folder / name}.txt"
    if faults.total < _DUMPED:
        where += ", they are in *.npz beside it"
        for i, host in enumerate(hosts):
            leaves, _ = jax.tree_util.tree_flatten_with_path(host.batch)
            arrays = {
                jax.tree_util.keystr(path).strip("."): np.asarray(leaf) for path, leaf in leaves
            }
            with (folder / f"{name}-{i}.npz").open("wb") as file:
                np.savez_compressed(file, **arrays)
    fault = int(metrics.fault)
    faults.add(
        fault,
        f"step {done}: {FAULTS[fault]} (loss {float(metrics.loss):g}, gradient norm {float(metrics.gradient_norm):g}); "
        f"{where}: {', '.join(names[:5])}",
    )


# ---------------------------------------------------------------- configuration and data


def make_feed(config: ml_collections.ConfigDict, mesh: Any, workdir: epath.PathLike) -> Feed:
    """The data that `config.data` names.

    Raises:
      RejectLimitError: more rows cannot be used than `data.reject_limit` allows.
      ConfigError: rows that cannot be read, or of which none can be trained on.
    """
    if config.data.source == "clueworld":
        return ClueWorldFeed(config)
    from vo3.train.row_feed import RowFeed  # grain and the readers, which ClueWorld does not need

    try:
        return RowFeed(config, mesh, workdir)
    except (config_lib.ConfigError, RejectLimitError):
        raise
    except ValueError as error:  # as which files and plan tell what is wrong with the rows
        raise config_lib.ConfigError(f"data.rows={config.data.rows}: {error}") from error


def _resolved(
    config: ml_collections.ConfigDict, devices: int, feed: Feed
) -> ml_collections.ConfigDict:
    clueworld = dict(config.data.clueworld)
    config = ml_collections.ConfigDict(config).copy_and_resolve_references()
    with config.unlocked():
        config.data.clueworld = config_lib.defaults().data.clueworld
    config = config_lib.resolve(
        config, devices=devices, steps_per_epoch=feed.steps_per_epoch, needs_data=False
    )
    with config.unlocked():
        # The stream's own fields are checked by the stream.
        config.data.clueworld = ml_collections.ConfigDict(clueworld)
        config.optim.warmup = float(config_lib.warmup_steps(config, config.steps))
    if not config.steps:
        raise config_lib.ConfigError("steps=0 with data that does not end; set --config.steps")
    return config


def from_short_form(short: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The full configuration of the short form in `configs/clueworld.py`: the embedded model from scratch on one device."""
    config = config_lib.override(
        config_lib.defaults(),
        **{
            "seed": short.seed,
            "steps": short.steps,
            "model": "clueworld",
            "init_from": short.init_from or "random",
            "init_vision": "" if short.init_from else short.init_vision,
            "dtype": "float32",
            "remat": "none",
            "frozen": tuple(short.get("frozen", ())),
            "mesh.fsdp": 1,
            "data.source": "clueworld",
            "data.workers": short.workers,
            "optim.name": short.optimizer,
            "optim.rate": short.rate,
            "optim.adam_rate": short.adam_rate,
            "optim.schedule": short.schedule,
            "optim.warmup": float(short.warmup),
            "optim.weight_decay": short.weight_decay,
            "optim.clip": short.clip,
            "optim.scales": tuple(short.get("scales", ())),
            "checkpoint.every": short.save_every,
            "checkpoint.export_hf": False,
            "log.every": short.log_every,
            "log.tensorboard": False,
            "log.samples_every": 0,
            **{f"tdam.{key}": value for key, value in short.get("tdam", {}).items()},
        },
    )
    with config.unlocked():
        config.data.clueworld = ml_collections.ConfigDict(short.data.to_dict())
    return config


def latest_params(model: Qwen2_5_VL, workdir: epath.PathLike) -> nnx.State:
    """The parameters of the newest checkpoint of a run, for `model`.

    Raises:
      FileNotFoundError: the run has no checkpoint.
    """
    from vo3.models import hf_io

    like = hf_io.flatten(nnx.state(model, nnx.Param))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = {n: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=device) for n, v in like.items()}
    return hf_io.unflatten(like, read_params(workdir, shapes))


def main(_: list[str]) -> int:
    """Entry point of `python -m vo3.train.sft`; see `command.run`."""
    return command.run("vo3.train.sft", train, RejectLimitError, FailureLimitError)


if __name__ == "__main__":
    command.start(main)
