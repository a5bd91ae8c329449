"""One forward pass over a whole conversation, without a cache."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from pallas_kernels import Visibility
from vo3.chat import encode
from vo3.models.qwen2_5_vl import vision_inputs
from vo3.video import Clip, patchify
from vo3.video.patches import patchify_image


@nnx.jit
def whole(model, ids, positions, visibility, patches, inputs, index):
    features = model.encode_vision(patches, inputs)
    return model(ids, positions, visibility, features=features, feature_index=index).logits[0]


def patches_of(clip: Clip) -> np.ndarray:
    """As the processor of Hugging Face has them: of a video, or of one picture after another."""
    if clip.grid[0] == len(clip.frames):
        return np.concatenate([patchify_image(frame)[0] for frame in clip.frames])
    return patchify(clip.frames)[0]


def forward(model, tokenizer, rollout, *, babble) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Log-probabilities [L, V] of one pass over the whole conversation, and (token, turn) of the babbled tokens."""
    turns = rollout.trajectory.turns
    encoded = encode(turns, tokenizer)
    visibility = jax.tree.map(lambda field: field[None], Visibility.causal(len(encoded)))
    logits = whole(
        model,
        encoded.ids[None],
        encoded.positions[:, None],
        visibility,
        np.concatenate([patches_of(clip) for clip in rollout.clips]),
        vision_inputs(encoded.grids, model.config.vision),
        encoded.feature_index[None],
    )
    places = []
    for number, turn in enumerate(turns):
        if turn.role == "assistant":
            start = int(encoded.turn_offsets[number]) + len("assistant\n") + 1
            assert encoded.ids[start : start + len(turn.ids)].tolist() == list(turn.ids)
            places += [(start + i, number) for i in range(babble)]
    return np.asarray(jax.nn.log_softmax(logits)), places
