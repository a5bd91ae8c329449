"""The policy's weights, from where they are trained to where they roll out, without a copy through the host.

Each process rolls out on its own devices: sets of `rl.rollout.tensor` of them share the weights, and every set has groups of its own. The trainer's mesh
spans all processes. On one device the arrays are the trainer's own; else they are cast and moved from device to device.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from vo3.attention import AttentionMesh
from vo3.models import hf_io
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.train import sharding
from vo3.train.config import AXES, ConfigError
from vo3.train.state import Params, Trainable, build_model


def _splitting(heads: int, devices: int) -> int:
    """The most of a process's devices that key-value heads can be split over: more would each hold all caches."""
    return max(n for n in range(1, devices + 1) if devices % n == 0 and heads % n == 0)


def _overlap(a: jax.Array, b: jax.Array) -> bool:
    """Whether two arrays have memory in common: what is neither cast nor moved is no copy."""
    places = [{s.data.unsafe_buffer_pointer() for s in x.addressable_shards} for x in (a, b)]
    return a.dtype == b.dtype and not places[0].isdisjoint(places[1])


class Publisher:
    """Makes rollout models of a run's parameters.

    Attributes:
      mesh: this process's devices, with the trainer's axes.
      sets: of devices that share the weights, in this process.
      shared: the rollout uses the trainer's very arrays.
    """

    def __init__(self, run: Trainable):
        """Lays the rollout's weights out; nothing is moved yet.

        Raises:
          ConfigError: `rl.rollout.tensor` does not fit this process's devices.
        """
        self._run = run
        config, every = run.config, list(run.mesh.devices.flat)
        by_process = {p: [d for d in every if d.process_index == p] for p in {d.process_index for d in every}}  # fmt: skip
        local = by_process[jax.process_index()]
        heads = run.model.text.num_key_value_heads
        ways = config.rl.rollout.tensor or _splitting(heads, len(local))
        if ways < 1 or len(local) % ways:
            raise ConfigError(
                f"rl.rollout.tensor={ways} does not divide the {len(local)} devices of a process"
            )
        self.sets = len(local) // ways
        grid = np.asarray([by_process[p] for p in sorted(by_process)])
        self._wide = Mesh(grid.reshape(len(grid), self.sets, ways), ("process", "data", "tensor"))
        self.mesh = Mesh(np.asarray(local).reshape(1, self.sets, 1, ways, 1), AXES)
        # Only tensor parallelism is left of the rules on this mesh.
        rules = sharding.param_sharding(self.mesh, config.sharding.rules)
        self._specs = {name: rules(name, s.shape).spec for name, s in run.shapes.items()}
        attention = None
        if self.mesh.size > 1:
            attention = AttentionMesh(self.mesh, batch=("data",), heads=("tensor",))
        model = functools.partial(build_model, run.model, config, attention)
        self._graph, _ = nnx.split(nnx.eval_shape(model))
        self._dtype = jnp.dtype(config.dtype)
        self._given: list[jax.Array] = []
        self.shared = run.mesh.size == 1 and jnp.dtype(config.param_dtype) == self._dtype

    def __call__(self, params: Params, frozen: Params) -> Qwen2_5_VL:
        """The model of these parameters. Where they are `shared` it lasts until the trainer gives them away."""
        every = {**params, **frozen}
        if not self.shared:
            every = self._move(every)
        return self._model(every)

    def release(self) -> None:
        """Frees the memory of the model made last, before an update needs it: of all that does not lie in the trainer's own arrays."""
        for array in self._given:
            array.delete()
        self._given = []

    def abstract(self) -> Qwen2_5_VL:
        """The model as shapes with their places, for compilation alone."""
        place = lambda name: NamedSharding(self.mesh, self._specs[name])
        shapes = {
            name: jax.ShapeDtypeStruct(s.shape, self._dtype, sharding=place(name))
            for name, s in self._run.shapes.items()
        }
        return self._model(shapes)

    def _model(self, params: dict[str, Any]) -> Qwen2_5_VL:
        return nnx.merge(self._graph, hf_io.unflatten(self._run.shapes, params))

    def _move(self, params: Params) -> Params:
        cast = self._cast(params)
        wide = {n: NamedSharding(self._wide, self._specs[n]) for n in cast}
        moved = jax.device_put(cast, wide)
        one = jax.sharding.SingleDeviceSharding(self.mesh.devices.flat[0])

        def own(name: str, x: jax.Array) -> jax.Array:
            single = self.mesh.size == 1
            target = one if single else NamedSharding(self.mesh, self._specs[name])
            shards = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, target, shards)

        result = {name: own(name, x) for name, x in moved.items()}
        self._given = [x for name, x in result.items() if not _overlap(x, params[name])]
        return result

    @functools.cached_property
    def _cast(self) -> Any:
        return jax.jit(lambda params: {n: x.astype(self._dtype) for n, x in params.items()})
