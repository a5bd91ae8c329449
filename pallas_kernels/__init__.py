"""Attention under a Visibility: packed, windowed, tree-shaped and task-decoupled masks in O(L) memory."""

from pallas_kernels.prefix_decode.api import prefix_decode
from pallas_kernels.schedule import Plan
from pallas_kernels.splash.api import BlockSizes, attention_plan, splash_attention
from pallas_kernels.tuning import target
from pallas_kernels.visibility import Visibility, visible

__all__ = [
    "BlockSizes",
    "Plan",
    "Visibility",
    "attention_plan",
    "prefix_decode",
    "splash_attention",
    "target",
    "visible",
]
