"""Attention under a Visibility: packed, windowed, tree-shaped and task-decoupled masks in O(L) memory."""

from pallas_kernels.splash.api import BlockSizes, splash_attention
from pallas_kernels.visibility import Visibility, visible

__all__ = ["BlockSizes", "Visibility", "splash_attention", "visible"]
