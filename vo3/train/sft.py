"""Supervised fine-tuning on packed trajectories, thin form.

    python -m vo3.train.sft --config=configs/clueworld.py:read --workdir=DIR [--config.steps=100]

Reads top to bottom: config, model, optimiser, step, loop. The batch of a step is a pure function of (seed, step), so a run that is killed
and started again goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import functools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import app, flags, logging
from etils import epath
from flax import nnx
from ml_collections import config_flags

from vo3.clueworld.config import model_config
from vo3.clueworld.data import DataConfig, make_stream
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.models.qwen2_5_vl.vision import vision_inputs
from vo3.train.batch import Batch
from vo3.train.losses import chunked_cross_entropy
from vo3.train.optim import make_optimizer, schedule
from vo3.train.pixels import patchify_traced
from vo3.train.prefetch import prefetch

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Training configuration.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints and logs go here.")


# ---------------------------------------------------------------- the step


def features_of(model: Qwen2_5_VL, frames: jax.Array) -> jax.Array:
    """Vision tokens [N * tokens, D] of N videos of equal size, uint8 [N, T, h, w, 3]."""
    config = model.config.vision
    patches = patchify_traced(frames, config)
    videos, steps, count, _ = patches.shape
    h, w = frames.shape[2] // config.patch_size, frames.shape[3] // config.patch_size
    one = vision_inputs([(1, h, w)], config)
    rows = jax.tree.map(lambda f: jnp.broadcast_to(f, (videos * steps, *f.shape)), one)
    features = model.encode_vision(patches.reshape(videos * steps, count, -1), rows)
    return features.reshape(-1, features.shape[-1])


def loss_fn(model: Qwen2_5_VL, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy and accuracy of the batch."""
    features = jnp.concatenate(
        [features_of(model, batch.overviews), features_of(model, batch.clips)]
    )
    out = model(
        batch.ids,
        batch.positions,
        batch.visibility,
        features=features,
        feature_index=batch.feature_index,
        logits="none",
    )
    return chunked_cross_entropy(
        out.hidden[:, :-1], batch.ids[:, 1:], batch.weight[:, 1:], model.unembed
    )


def make_step(graph: nnx.GraphDef, optimizer: optax.GradientTransformation):
    """The jitted update: (params, opt_state, batch) -> (params, opt_state, metrics); the first two are donated."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, batch: Batch):
        def objective(p):
            return loss_fn(nnx.merge(graph, p), batch)

        (loss, accuracy), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": optax.global_norm(gradient)}
        return optax.apply_updates(params, updates), opt_state, metrics

    return step


# ---------------------------------------------------------------- the run


def initial_params(model: Qwen2_5_VL, config: ml_collections.ConfigDict) -> nnx.State:
    """Where parameters come from, the first that applies: 1. `config.init_from`, 2. `config.init_vision`, 3. random."""
    if config.init_from:
        return latest_params(model, config.init_from)
    if config.init_vision:
        with epath.Path(config.init_vision).open("rb") as file:
            arrays = np.load(file)
            leaves = [jnp.asarray(arrays[f"arr_{i}"]) for i in range(len(arrays.files))]
        tower = jax.tree.structure(nnx.state(model.vision, nnx.Param))
        nnx.update(model.vision, jax.tree.unflatten(tower, leaves))
    return nnx.state(model, nnx.Param)


def latest_params(model: Qwen2_5_VL, workdir: epath.PathLike) -> nnx.State:
    """The parameters of the newest checkpoint of a run.

    Raises:
      FileNotFoundError: the run has no checkpoint.
    """
    params = nnx.state(model, nnx.Param)
    with ocp.CheckpointManager((epath.Path(workdir) / "checkpoints").absolute()) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {workdir}; train that stage first")
        target = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(params)))
        return manager.restore(step, args=target)["params"]


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> nnx.State:
    """Runs to `config.steps`, resuming from the newest checkpoint in `workdir`; returns the parameters."""
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(config.to_json_best_effort(indent=1))

    model = Qwen2_5_VL(model_config(), rngs=nnx.Rngs(config.seed))
    params = initial_params(model, config)
    graph = nnx.graphdef(model)
    rate = functools.partial(schedule, config.schedule, steps=config.steps, warmup=config.warmup)
    optimizer = make_optimizer(
        config.optimizer,
        rate(config.rate),
        adam_rate=rate(config.adam_rate),
        weight_decay=config.weight_decay,
        clip=config.clip,
    )
    opt_state = optimizer.init(params)

    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=config.save_every)
    manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)
    start = manager.latest_step() or 0
    if start:
        logging.info("resuming from step %d", start)
        kept = manager.restore(
            start,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_abstract(params)),
                optimizer=ocp.args.StandardRestore(_abstract(opt_state)),
            ),
        )
        params, opt_state = kept["params"], kept["optimizer"]

    step_fn = make_step(graph, optimizer)
    make = functools.partial(make_stream, DataConfig(**config.data))
    begin, waited, last = time.time(), 0.0, start
    ready = time.time()
    with manager, (workdir / "log.jsonl").open("a") as log:
        for i, batch in enumerate(
            prefetch(make, start=start, stop=config.steps, workers=config.workers), start
        ):
            waited += time.time() - ready
            params, opt_state, metrics = step_fn(params, opt_state, batch)
            jax.block_until_ready(
                metrics
            )  # else the step's own time would count as waiting for data
            done = i + 1
            if done % config.log_every == 0 or done == config.steps:
                row = {k: round(float(v), 5) for k, v in metrics.items()}
                spent = time.time() - begin
                row |= {
                    "step": done,
                    "seconds": round(spent, 1),
                    "seconds_per_step": round(spent / (done - last), 3),
                    "data_wait": round(waited / spent, 3),
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
                logging.info("%s", row)
                begin, waited, last = time.time(), 0.0, done
            if manager.should_save(done) or done == config.steps:
                # Copies: the save goes on in the background while the next step donates these buffers, which on CPU the writer may still share.
                kept = jax.tree.map(jnp.copy, (params, opt_state))
                manager.save(
                    done,
                    args=ocp.args.Composite(
                        params=ocp.args.StandardSave(kept[0]),
                        optimizer=ocp.args.StandardSave(kept[1]),
                    ),
                    force=True,
                )
            ready = time.time()
    return params


def main(_) -> None:
    """Entry point of `python -m vo3.train.sft`."""
    train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
