"""A model's parameters as the programs of a rollout take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from vo3.models.qwen2_5_vl.model import Qwen2_5_VL

# Bytes of a decoder's layers up to which their weights are kept one array per layer, too.
_SPLIT_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model's parameters as programs take them.

    XLA on CPU copies a layer's slice of the stacked weights before it multiplies by it: for every token all weights are written once
    more, which takes half of a small model's time. So on CPU a small model's decoder goes in as one array per layer. A stack of them
    whose slices alone are used costs nothing in a compiled program.

    Attributes:
      graph, tree: structure of the model.
      leaves: arrays; a tuple of one per layer where they are split.
    """

    graph: nnx.GraphDef
    tree: jax.tree_util.PyTreeDef
    leaves: list[Array | tuple[Array, ...]]

    @classmethod
    def of(cls, model: Qwen2_5_VL, *, split: bool | None = None) -> Weights:
        """The parameters of a model; `split` says whether one array per layer, None: where it pays."""
        graph, state = nnx.split(model)
        leaves, tree = jax.tree.flatten(state)
        if split is None:
            sizes = jax.tree.leaves(nnx.state(model.decoder.layers))
            small = sum(x.size * x.dtype.itemsize for x in sizes) <= _SPLIT_BYTES
            # Shapes alone are of another device: something is compiled for it.
            here = jax.default_backend() == "cpu" and all(isinstance(x, jax.Array) for x in sizes)
            split = here and model.decoder.mesh is None and small
        if split:
            paths = [path for path, _ in jax.tree.leaves_with_path(state)]
            stacked = [[key.key for key in path[:2]] == ["decoder", "layers"] for path in paths]
            leaves = [tuple(x) if s else x for x, s in zip(leaves, stacked, strict=True)]
        return cls(graph, tree, leaves)

    def replaced(self, model: Qwen2_5_VL) -> Weights:
        """The parameters of another model, where these stand and of their types, so that no program is compiled for them.

        Arrays that already are so are taken as they are; the others are moved from device to device.

        Raises:
          ValueError: the model is of another architecture.
        """
        new = Weights.of(model, split=any(isinstance(x, tuple) for x in self.leaves))
        shapes = lambda weights: [x.shape for x in jax.tree.leaves(weights.leaves)]
        if new.tree != self.tree or shapes(new) != shapes(self):
            raise ValueError("the new parameters are of another architecture; make a new engine")
        return dataclasses.replace(self, leaves=jax.tree.map(_like, new.leaves, self.leaves))

    def model(self, leaves: Sequence[Array | tuple[Array, ...]]) -> Qwen2_5_VL:
        """The model with the (traced) `leaves` as parameters."""
        whole = [jnp.stack(x) if isinstance(x, tuple) else x for x in leaves]
        model = nnx.merge(self.graph, jax.tree.unflatten(self.tree, whole))
        if any(isinstance(x, tuple) for x in leaves):
            model.decoder.unroll = model.decoder.config.num_hidden_layers
        return model


def _like(new: Array, old: Array) -> Array:
    new = new if new.dtype == old.dtype else new.astype(old.dtype)
    return new if new.sharding == old.sharding else jax.device_put(new, old.sharding)
