"""M-RoPE positions against the installed transformers, where its rule is the same.

transformers 5 goes on after a video at the larger of its sides, which differs when the video is long: so images
anywhere, and one video at the end.
"""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from vo3.chat.positions import grid_tokens, mrope_positions

IMAGE, VIDEO, START, END = 901, 902, 903, 904


def theirs(ids, images, video, seconds):
    vision = types.SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(vision_config=vision),
        get_vision_position_ids=lambda *a, **k: Qwen2_5_VLModel.get_vision_position_ids(
            None, *a, **k
        ),
    )
    kinds = [{IMAGE: 1, VIDEO: 2}.get(i, 0) for i in ids]
    out, _ = Qwen2_5_VLModel.get_rope_index(
        model,
        torch.tensor([ids]),
        torch.tensor([kinds], dtype=torch.int32),
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor([video]),
        second_per_grid_ts=torch.tensor([seconds]),
    )
    return out[:, 0].numpy()


@pytest.mark.parametrize("seed", range(20))
def test_images_and_a_last_video(seed):
    rng = np.random.default_rng(seed)
    images = [(1, *(2 * rng.integers(1, 6, 2)).tolist()) for _ in range(rng.integers(0, 4))]
    video = (int(rng.integers(1, 6)), *(2 * rng.integers(1, 6, 2)).tolist())
    ids = [1] * int(rng.integers(1, 5))
    for grid in images:
        ids += [START, *[IMAGE] * grid_tokens(grid), END, *[1] * int(rng.integers(0, 4))]
    ids += [START, *[VIDEO] * grid_tokens(video)]
    seconds = float(np.float32(rng.random() * 5))
    got = mrope_positions(
        ids,
        [*images, video],
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        mrope_time="exact",
        second_per_grid=[seconds],
    )
    np.testing.assert_array_equal(got, theirs(ids, images, video, seconds))
