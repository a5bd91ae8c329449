"""FLOPs of a train step: matrix products counted in the traced program, attention by formula."""

from __future__ import annotations

import math
from typing import Any

from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig


def matmul_flops(jaxpr: Any) -> float:
    """FLOPs of every matrix product of a jaxpr, over all devices; loops times their length, the dearer branch of a choice.

    Kernels are left out: what they compute depends on the mask. `attention_flops` estimates it.

    Args:
      jaxpr: closed or open.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            total += _dot(eqn)
        elif name == "pallas_call":
            continue
        elif name == "scan":
            total += params["length"] * matmul_flops(params["jaxpr"])
        elif name == "cond":
            total += max(matmul_flops(branch) for branch in params["branches"])
        elif name == "shard_map":
            # The body is what one device does.
            total += params["mesh"].size * matmul_flops(params["jaxpr"])
        else:
            for value in params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    if hasattr(inner, "eqns") or hasattr(getattr(inner, "jaxpr", None), "eqns"):
                        total += matmul_flops(inner)
    return total


def _dot(eqn: Any) -> float:
    (contract, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[d] for d in contract)


def attention_flops(
    config: Qwen2_5_VLConfig,
    *,
    rows: int,
    length: int,
    patches: int,
    vision_trained: bool,
    frame_patches: int = 1024,
) -> float:
    """FLOPs of the attention kernels in a forward and backward pass, over all devices.

    A forward pass takes 2 products per score, the backward pass 7 (3 for dq, 4 for dk and dv), and recomputation another forward.
    Assumes one trajectory per row (the dearest: half of L^2 pairs), windows of (window / patch)^2 patches and frames of
    `frame_patches`.

    Args:
      rows, length, patches: of the batch.
      vision_trained: whether gradients pass through the vision blocks.
      frame_patches: patches of a temporal patch.
    """
    forward_and_backward = 2 + 7 + (2 if config.remat in ("full", "dots_no_batch") else 0)
    text, vision = config.text, config.vision
    pairs = rows * length * (length + 1) / 2
    heads = text.num_attention_heads * text.head_dim * text.num_hidden_layers
    decoder = 2.0 * forward_and_backward * pairs * heads
    full = len(vision.fullatt_block_indexes)
    window = (vision.window_size // vision.patch_size) ** 2
    seen = full * frame_patches + (vision.depth - full) * window
    products = forward_and_backward if vision_trained else 2
    return decoder + 2.0 * products * rows * patches * seen * vision.num_heads * vision.head_dim


def model_flops_per_token(config: Qwen2_5_VLConfig) -> float:
    """6 FLOPs per weight of the decoder's matrices and the output matrix: what MFU counts, without attention and vision."""
    t = config.text
    kv = t.num_key_value_heads * t.head_dim
    layer = 2 * t.hidden_size**2 + 2 * t.hidden_size * kv + 3 * t.hidden_size * t.intermediate_size
    return 6.0 * (t.num_hidden_layers * layer + t.hidden_size * t.vocab_size)
