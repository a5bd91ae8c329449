"""Qwen2.5-VL in Flax NNX."""

from vo3.models.qwen2_5_vl.cache import KVCache
from vo3.models.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig
from vo3.models.qwen2_5_vl.model import ModelOutput, Qwen2_5_VL
from vo3.models.qwen2_5_vl.vision import (
    VisionInputs,
    VisionTower,
    stack_vision_inputs,
    vision_inputs,
)

__all__ = [
    "KVCache",
    "ModelOutput",
    "Qwen2_5_VL",
    "Qwen2_5_VLConfig",
    "TextConfig",
    "VisionConfig",
    "VisionInputs",
    "VisionTower",
    "stack_vision_inputs",
    "vision_inputs",
]
