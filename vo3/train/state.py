"""What is trained: the model's graph, its parameters by path, which of them are frozen, the optimiser, and where they come from."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32

from vo3.clueworld.config import model_config as clueworld_config
from vo3.models import hf_io, loading
from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from vo3.train import lora, sharding
from vo3.train.config import ConfigError
from vo3.train.optim import make_optimizer, schedule

Params = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes, and all that a checkpoint must hold beside the frozen parameters.

    Attributes:
      step: optimiser steps done, which is also the position in the data plan.
      key: data of the run's random key; a step's own is `fold_in(key, step)`.
      params: trained parameters by dotted path.
      optimizer: of `params` alone.
      norm: running mean of the gradient norm, 0 before the first step.
    """

    step: Int[Array, ""]
    key: UInt32[Array, " words"]
    params: Params
    optimizer: Any
    norm: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A model laid out for training; no memory is held.

    Attributes:
      config: the run's, resolved.
      model: the architecture.
      mesh: the devices.
      graph: `nnx.merge(graph, unflatten(params))` is the model.
      shapes: of every parameter by path, with its sharding; frozen ones in the computation's dtype.
      frozen: paths that are not trained.
      optimizer: for the others.
      rate: learning rate at a step.
    """

    config: ml_collections.ConfigDict
    model: Qwen2_5_VLConfig
    mesh: Mesh
    graph: nnx.GraphDef
    shapes: dict[str, jax.ShapeDtypeStruct]
    frozen: frozenset[str]
    optimizer: optax.GradientTransformation
    rate: optax.Schedule

    def merge(self, params: Params, frozen: Params) -> Qwen2_5_VL:
        """The model with these parameters."""
        return nnx.merge(self.graph, hf_io.unflatten(self.shapes, {**params, **frozen}))

    def part(self, frozen: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of the frozen, or of the trained parameters."""
        return {n: s for n, s in self.shapes.items() if (n in self.frozen) == frozen}

    def split(self, params: Params) -> tuple[Params, Params]:
        """(trained, frozen)."""
        trained = {n: v for n, v in params.items() if n not in self.frozen}
        return trained, {n: v for n, v in params.items() if n in self.frozen}

    def new_state(self, params: Params) -> TrainState:
        """The state before the first step, from the trained parameters."""
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(jax.random.key(self.config.seed)),
            params=params,
            optimizer=self.optimizer.init(params),
            norm=jnp.zeros((), jnp.float32),
        )

    @functools.cached_property
    def state(self) -> TrainState:
        """Shapes and shardings of the state."""
        shapes = jax.eval_shape(self.new_state, self.part(frozen=False))
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            sharding.like_params(shapes, self.shapes, self._sharding, self.mesh),
        )

    def _sharding(self, path: str, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
        return self.shapes[path].sharding


def architecture(config: ml_collections.ConfigDict) -> Qwen2_5_VLConfig:
    """The model's architecture with the run's recomputation, unrolling and time axis.

    Raises:
      CheckpointError: `config.model` is no directory with a config.json.
      ConfigError: its `vo3.json` has another time axis than `data.mrope_time`.
    """
    own = {"remat": config.remat, "mrope_time": config.data.mrope_time}
    if config.model == "clueworld":
        return clueworld_config().replace(**own)
    directory = loading.NAMES.get(config.model, epath.Path(config.model))
    recorded = loading.settings_of(directory).get("mrope_time")
    # `constant` there and `hf_int` here is how the published models were made and are asked.
    if recorded not in (None, "constant", config.data.mrope_time):
        raise ConfigError(
            f"data.mrope_time is {config.data.mrope_time!r} and {directory / loading.SETTINGS}, which goes with what is exported, "
            f"says {recorded!r}; set data.mrope_time={recorded} or change that file"
        )
    return hf_io.read_config(directory, scan_unroll=config.scan_unroll, **own)


def trainable(
    config: ml_collections.ConfigDict, mesh: Mesh, *, model: Qwen2_5_VLConfig | None = None
) -> Trainable:
    """Lays out a run on a mesh: nothing is read but the architecture, nothing is allocated.

    Args:
      config: resolved, with `steps`.
      mesh: from `sharding.make_mesh`; of a topology that is not there, for compilation alone.
      model: the architecture; None: `architecture(config)`.

    Raises:
      ConfigError: nothing is left to train, or a pattern of `optim.scales` finds nothing.
    """
    model = model or architecture(config)
    dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
    build = functools.partial(build_model, model, config, sharding.attention_mesh(mesh))
    graph, state = nnx.split(nnx.eval_shape(build))
    leaves = hf_io.flatten(state)
    frozen = frozenset(n for n in leaves if is_frozen(n, config))
    if len(frozen) == len(leaves):
        raise ConfigError(f"frozen={tuple(config.frozen)} leaves nothing to train; drop a pattern")
    for pattern, _ in config.optim.scales:
        if not any(re.search(pattern, n) for n in leaves if n not in frozen):
            raise ConfigError(f"optim.scales: {pattern!r} is found in no parameter that is trained")
    where = sharding.param_sharding(mesh, config.sharding.rules)
    shapes = {
        name: jax.ShapeDtypeStruct(
            leaf.shape,
            # What is not trained needs no more bits than the computation takes of it.
            dtype if name in frozen else param_dtype,
            sharding=where(name, leaf.shape),
        )
        for name, leaf in leaves.items()
    }
    rate = functools.partial(
        schedule, config.optim.schedule, steps=config.steps, warmup=int(config.optim.warmup)
    )
    optimizer = make_optimizer(
        config.optim.name,
        rate(config.optim.rate),
        adam_rate=rate(config.optim.adam_rate),
        weight_decay=config.optim.weight_decay,
        clip=config.optim.clip,
        betas=tuple(config.optim.betas),
        eps=config.optim.eps,
        scales=tuple(config.optim.scales),
    )
    return Trainable(config, model, mesh, graph, shapes, frozen, optimizer, rate(config.optim.rate))


def is_frozen(path: str, config: ml_collections.ConfigDict) -> bool:
    """Whether a parameter is left as it is: by `config.frozen`, and under LoRA everything but the adapters."""
    if config.lora.rank:
        return not lora.ADAPTERS.search(path)
    return any(re.search(pattern, path) for pattern in config.frozen)


def build_model(
    model: Qwen2_5_VLConfig, config: ml_collections.ConfigDict, mesh: Any
) -> Qwen2_5_VL:
    """A new model of a run, adapters included; trace it (`nnx.eval_shape`) where no memory shall be held."""
    rngs = nnx.Rngs(config.seed)
    param_dtype = jnp.dtype(config.param_dtype)
    built = Qwen2_5_VL(
        model, rngs=rngs, dtype=jnp.dtype(config.dtype), param_dtype=param_dtype, mesh=mesh
    )
    if config.lora.rank:
        lora.add_adapters(
            built,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            targets=config.lora.targets,
            rngs=rngs,
            param_dtype=param_dtype,
        )
    return built


# ---------------------------------------------------------------- where parameters come from


def initial_params(run: Trainable) -> Params:
    """Every parameter, laid out as `run.shapes`: random ones, then what `init_from` and `init_vision` say.

    Raises:
      CheckpointError, FileNotFoundError: what they name cannot be read.
    """
    config = run.config
    source = config.init_from
    if source == "model":
        params = _loaded(run, config.model)
    elif source == "random":
        params = _random(run, list(run.shapes))
    elif source in loading.NAMES or loading.is_checkpoint(source):
        params = _loaded(run, source)
    else:
        from vo3.train import finished  # it builds on this module

        params = finished.read_params(source, _plain(run))
    if config.init_vision:
        params |= _vision(run, config.init_vision)
    adapters = [n for n in run.shapes if n not in params]
    return {**params, **(_random(run, adapters) if adapters else {})}


def _plain(run: Trainable) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes without adapters."""
    return {n: s for n, s in run.shapes.items() if not lora.ADAPTERS.search(n)}


def _random(run: Trainable, names: list[str]) -> Params:
    shapes = {n: run.shapes[n] for n in names}

    @functools.partial(jax.jit, out_shardings={n: s.sharding for n, s in shapes.items()})
    def make() -> Params:
        leaves = hf_io.flatten(nnx.state(build_model(run.model, run.config, None)))
        return {n: leaves[n].astype(s.dtype) for n, s in shapes.items()}

    return make()


def _loaded(run: Trainable, source: epath.PathLike) -> Params:
    """The weights of a checkpoint that `vo3.models.load` reads, each parameter straight into its place."""
    where = lambda path, shape: run.shapes[path].sharding
    loaded = loading.load(
        source,
        dtype=jnp.dtype(run.config.dtype),
        param_dtype=jnp.dtype(run.config.param_dtype),
        mesh=run.mesh,
        sharding=where,
    )
    return fit(hf_io.flatten(nnx.state(loaded)), _plain(run), source)


def _vision(run: Trainable, path: epath.PathLike) -> Params:
    """The vision tower of an .npz of `vo3.clueworld.pretrain`: its leaves in tree order."""
    with epath.Path(path).open("rb") as file:
        arrays = np.load(file)
        leaves = [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
    model = nnx.eval_shape(functools.partial(build_model, run.model, run.config, None))
    tower = jax.tree.structure(nnx.state(model.vision, nnx.Param))
    if tower.num_leaves != len(leaves):
        raise ConfigError(
            f"init_vision={path} holds {len(leaves)} arrays, the tower has {tower.num_leaves}"
        )
    values = hf_io.flatten(jax.tree.unflatten(tower, leaves))
    values = {f"vision.{name}": value for name, value in values.items()}
    return fit(values, {n: run.shapes[n] for n in values}, path)


def fit(values: dict[str, Any], shapes: dict[str, jax.ShapeDtypeStruct], source: Any) -> Params:
    """The values as `shapes` has them.

    Raises:
      ConfigError: another set of parameters, or another shape.
    """
    wrong = sorted(set(values) ^ set(shapes))
    wrong += [n for n in shapes if n in values and tuple(values[n].shape) != shapes[n].shape]
    if wrong:
        raise ConfigError(f"{source} does not hold this model's parameters: {wrong[:5]} differ")
    return {n: jax.device_put(values[n].astype(s.dtype), s.sharding) for n, s in shapes.items()}
