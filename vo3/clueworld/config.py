"""Architecture of the embedded model: Qwen2.5-VL at a thousandth of the size."""

from __future__ import annotations

import dataclasses

from vo3.clueworld.tokenizer import build_tokenizer
from vo3.models.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig


def model_config() -> Qwen2_5_VLConfig:
    """Vision 3 blocks of 96, decoder 4 layers of 128, tied embeddings over the tokenizer's vocabulary."""
    tokenizer = build_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text=TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_theta=10_000.0,
            # Time gets the slow frequencies too: which of 32 patches came first must be in reach.
            mrope_section=(8, 4, 4),
            max_position_embeddings=2048,
            initializer_range=0.05,
        ),
        vision=VisionConfig(
            depth=3,
            hidden_size=96,
            intermediate_size=256,
            num_heads=3,
            out_hidden_size=128,
            fullatt_block_indexes=(2,),
            initializer_range=0.05,
        ),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
        scan_unroll=4,
        eos_token_id=ids("<|im_end|>"),
        bos_token_id=ids("<|endoftext|>"),
        pad_token_id=ids("<|endoftext|>"),
    )


def micro_model_config() -> Qwen2_5_VLConfig:
    """The micro-world's: vision 2 blocks of 64, decoder 3 layers of 96."""
    config = model_config()
    text = dataclasses.replace(
        config.text,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
    )
    vision = dataclasses.replace(
        config.vision,
        depth=2,
        hidden_size=64,
        intermediate_size=160,
        num_heads=2,
        out_hidden_size=96,
        fullatt_block_indexes=(1,),
    )
    return config.replace(text=text, vision=vision, scan_unroll=3)
