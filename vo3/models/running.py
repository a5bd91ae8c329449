"""The plainest call of a model: one sequence in, logits out."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels import Visibility
from vo3.chat.positions import mrope_positions
from vo3.models.qwen2_5_vl import Qwen2_5_VL, VisionInputs, vision_inputs

Grid = tuple[int, int, int]


def run(
    model: Qwen2_5_VL,
    ids: Int[np.ndarray, "L"] | Sequence[int],
    *,
    patches: Float[np.ndarray, "P C"] | Sequence[Sequence[float]] | None = None,
    grids: Sequence[Grid] | None = None,
    second_per_grid: Sequence[float] | None = None,
    visibility: Visibility | None = None,
) -> Float[Array, "L V"]:
    """Logits of one unpadded sequence. Compiles anew for every length: for checks and small uses.

    Args:
      model: to run.
      ids: token ids, with a pad token for every video and image token.
      patches: of all videos and images in order of appearance, as `vo3.video.patchify` makes them.
      grids: (t, h, w) in patches of each; images and videos are told apart by their pad token.
      second_per_grid: seconds per grid step of each grid or each video; see `vo3.chat.positions`.
      visibility: fields [L]; None: causal.

    Returns:
      Logits f32 [L, V].

    Raises:
      ValueError: ids outside the vocabulary, or ids, patches, grids and visibility that do not fit each other.
    """
    config = model.config
    # A copy: JAX on CPU may keep using the caller's memory.
    ids = np.array(ids, np.int32)
    if ids.ndim != 1 or not ids.size:
        raise ValueError(f"ids must be one sequence [L] with L >= 1, got shape {list(ids.shape)}")
    if ids.min() < 0 or ids.max() >= config.text.vocab_size:
        raise ValueError(
            f"ids lie in [{ids.min()}, {ids.max()}], the vocabulary has {config.text.vocab_size} tokens; "
            "encode with the tokenizer of this checkpoint"
        )
    if (patches is None) != (grids is None):
        raise ValueError("patches and grids go together; pass both or neither")
    positions = mrope_positions(
        ids,
        grids or (),
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
        spatial_merge_size=config.vision.spatial_merge_size,
        mrope_time=config.mrope_time,
        second_per_grid=second_per_grid,
    )
    visibility = Visibility.causal(len(ids)) if visibility is None else visibility
    if visibility.order.shape != ids.shape:
        raise ValueError(
            f"visibility has fields {list(visibility.order.shape)}, ids are {list(ids.shape)}; pass one entry a token"
        )
    index = inputs = None
    if grids:
        pads = (ids == config.image_token_id) | (ids == config.video_token_id)
        index = np.where(pads, np.cumsum(pads) - 1, -1).astype(np.int32)[None]
        inputs = vision_inputs(grids, config.vision)
        patches = np.array(patches, np.float32)
        if patches.shape != (int(inputs.count), config.vision.patch_dim):
            raise ValueError(
                f"patches are {list(patches.shape)}, the grids want [{int(inputs.count)}, {config.vision.patch_dim}]"
            )
    else:
        patches = None
    graph, params = nnx.split(model)
    visibility = jax.tree.map(lambda field: np.array(field, np.int32)[None], visibility)
    return _run(graph, params, ids[None], positions[:, None], visibility, patches, inputs, index)


@functools.partial(jax.jit, static_argnums=0)
def _run(
    graph: nnx.GraphDef,
    params: nnx.State,
    ids: Int[Array, "1 L"],
    positions: Int[Array, "3 1 L"],
    visibility: Visibility,
    patches: Float[Array, "P C"] | None,
    inputs: VisionInputs | None,
    index: Int[Array, "1 L"] | None,
) -> Float[Array, "L V"]:
    model = nnx.merge(graph, params)
    features = None if patches is None else model.encode_vision(patches, inputs)
    out = model(ids, positions, visibility, features=features, feature_index=index)
    return out.logits[0]
