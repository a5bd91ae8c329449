"""Vision features that outlive a step: what the frozen tower gives of a clip is computed once and kept on disk.

Kept is the tower's output before the merger, which trains on: [M, patches per token * width] for the M tokens of a clip, in the
order of the patches.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vo3.data.feature_cache import FeatureCache, FeatureSpec, weights_hash
from vo3.data.rows import Rows
from vo3.models.qwen2_5_vl.config import VisionConfig
from vo3.models.qwen2_5_vl.vision import VisionInputs, VisionTower, vision_inputs
from vo3.train import sharding
from vo3.train.config import ConfigError
from vo3.train.pixels import normalize
from vo3.train.state import Params, Trainable

_TOWER, _MERGER = "vision.", "vision.merger."
# Clips are padded to powers of two from here on, so that few programs serve all sizes.
_LEAST = 512


def spec_of(config: VisionConfig, dtype: str) -> FeatureSpec:
    """Of the tower's output before the merger."""
    return FeatureSpec(config.hidden_size * config.merge_unit, dtype)


def trunk(
    tower: VisionTower, patches: Float[Array, "B P C"], inputs: VisionInputs
) -> Float[Array, "B M W"]:
    """The tower without its merger."""
    merger = tower.merger
    tower.merger = lambda x: x.reshape(x.shape[0], -1, merger.width)
    try:
        return tower(patches, inputs)
    finally:
        tower.merger = merger


def merged(tower: VisionTower, features: Float[Array, "B M W"]) -> Float[Array, "B M D"]:
    """What the tower would have given: the merger on features that were kept."""
    patches = features.shape[1] * tower.config.merge_unit
    return tower.merger(
        features.reshape(features.shape[0], patches, tower.config.hidden_size).astype(
            tower.merger.fc1.dtype
        )
    )


class FrozenTower:
    """Computes the features that the cache lacks, on one device of this process, and keeps them.

    Attributes:
      cache: what worker processes read from.
    """

    def __init__(self, run: Trainable, frozen: Params, root: Any, *, limit_bytes: int | None):
        """Brings the tower's weights, which may be spread over processes, to this process's first device.

        Raises:
          ConfigError: the tower trains.
        """
        names = [n for n in run.shapes if n.startswith(_TOWER) and not n.startswith(_MERGER)]
        free = [n for n in names if n not in run.frozen]
        if free:
            raise ConfigError(
                f"data.feature_cache, but {free[0]} is trained; freeze the vision tower"
            )
        self._vision = run.model.vision
        gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(run.mesh))
        weights = {n: gather(frozen[n]).addressable_data(0) for n in names}
        dtype = str(jnp.dtype(run.config.dtype))
        self.cache = FeatureCache(
            root,
            weights=weights_hash({**weights, "dtype": np.frombuffer(dtype.encode(), np.uint8)}),
            spec=spec_of(self._vision, dtype),
            limit_bytes=limit_bytes,
        )
        build = functools.partial(
            VisionTower, self._vision, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype)
        )
        graph, state = nnx.split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
        paths = {".".join(map(str, p)): p for p, _ in nnx.to_flat_state(state)}
        # The merger is never called.
        blank = {
            n: s.get_value()
            for n, s in zip(paths, (v for _, v in nnx.to_flat_state(state)), strict=True)
        }
        values = {
            n: weights[_TOWER + n]
            if _TOWER + n in weights
            else jnp.zeros(blank[n].shape, blank[n].dtype)
            for n in paths
        }
        self._weights = values

        @jax.jit
        def compute(values: Params, patches: Array, inputs: VisionInputs) -> Array:
            flat = [(paths[n], nnx.Param(v)) for n, v in values.items()]
            tower = nnx.merge(graph, nnx.from_flat_state(flat))
            rows = jax.tree.map(lambda f: f[None], inputs)
            return trunk(tower, normalize(patches)[None], rows)[0]

        self._compute = compute

    def fill(self, rows: Rows) -> Rows:
        """The rows with the features that were missing; they are kept for the next time."""
        if not rows.missing:
            return rows
        features = np.array(rows.features)
        for clip in rows.missing:
            found = self._features(clip.patches, clip.observation.grid)
            features[clip.row, clip.start : clip.start + len(found)] = found
            if clip.key is not None:
                self.cache.put(clip.key, clip.observation, found)
        return dataclasses.replace(rows, features=features, missing=())

    def _features(self, patches: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
        count = len(patches)
        size = max(_LEAST, 1 << (count - 1).bit_length())
        padded = np.zeros((size, patches.shape[1]), np.uint8)
        padded[:count] = patches
        inputs = vision_inputs([grid], self._vision, pad_patches=size)
        out = np.asarray(self._compute(self._weights, padded, inputs))
        return out[: count // self._vision.merge_unit]
