"""Random tiny models of transformers, read through the real loader: the reference of every parity test."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig

Grid = tuple[int, int, int]

# The architectures that parity is tested on: what differs is what could go wrong.
CONFIGS: dict[str, Qwen2_5_VLConfig] = {
    "plain": Qwen2_5_VLConfig.tiny(),
    "tied": Qwen2_5_VLConfig.tiny(
        300,
        tie_word_embeddings=True,
        text={"num_key_value_heads": 1, "num_hidden_layers": 2, "rms_norm_eps": 1e-5},
    ),
    # No grouped heads; windows of 2 x 2 tokens; the first and last block full.
    "small-windows": Qwen2_5_VLConfig.tiny(
        text={"num_key_value_heads": 4, "rope_theta": 10_000.0},
        vision={"window_size": 56, "depth": 4, "fullatt_block_indexes": (0, 3)},
    ),
    # Uneven sections, windows of 3 x 3 tokens, no full block at all, a wider head.
    "uneven": Qwen2_5_VLConfig.tiny(
        text={"num_attention_heads": 2, "num_key_value_heads": 1, "mrope_section": (4, 5, 7)},
        vision={"window_size": 84, "depth": 2, "fullatt_block_indexes": (), "num_heads": 2},
    ),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights on both sides.

    Attributes:
      ours: as `vo3.models.load` reads them.
      theirs: the transformers model.
      folder: written by transformers.
    """

    ours: Qwen2_5_VL
    theirs: object
    folder: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Sample:
    """A conversation's ids with media in it: patches of all of them in order of appearance."""

    ids: np.ndarray
    grids: list[Grid]
    kinds: list[str]
    patches: np.ndarray | None

    def of_kind(self, kind: str) -> tuple[np.ndarray, list[Grid]]:
        """Patches and grids of the images or of the videos, as transformers wants them apart."""
        sizes = [t * h * w for t, h, w in self.grids]
        parts = np.split(self.patches, np.cumsum(sizes)[:-1])
        chosen = [i for i, k in enumerate(self.kinds) if k == kind]
        return np.concatenate([parts[i] for i in chosen]), [self.grids[i] for i in chosen]


def hf_model(config: Qwen2_5_VLConfig, seed: int = 0):
    """A transformers model with weights large enough that every part shows in the logits."""
    import torch

    # Torchvision's wheel for another torch lacks these operators; transformers imports it where it is installed.
    try:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        hf_model.library = library  # lives as long as the operators are needed
    except RuntimeError:
        pass  # defined by another test module
    import transformers

    torch.manual_seed(seed)
    theirs = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(**config.to_hf(layout="nested", dtype="float32"))
    ).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            norm = "norm" in name or "ln_q" in name
            weight.copy_(torch.randn_like(weight) * (0.2 if norm else 0.1) + (1.0 if norm else 0.0))
    return theirs


def make_sample(
    config: Qwen2_5_VLConfig, media: Sequence[tuple[str, Grid]], *, text: int = 7, seed: int = 0
) -> Sample:
    """Random text around random media: `text` tokens, then each medium followed by `text` more."""
    rng = np.random.default_rng(seed)
    words = config.text.vocab_size - 4
    pad = {"image": config.image_token_id, "video": config.video_token_id}
    ids = [rng.integers(0, words, text)]
    for kind, (t, h, w) in media:
        ids.append([config.vision_start_token_id])
        ids.append([pad[kind]] * (t * h * w // 4))
        ids.append([config.vision_end_token_id])
        ids.append(rng.integers(0, words, text))
    count = sum(t * h * w for _, (t, h, w) in media)
    patches = rng.normal(size=(count, config.vision.patch_dim)).astype(np.float32)
    return Sample(
        ids=np.concatenate(ids).astype(np.int32),
        grids=[grid for _, grid in media],
        kinds=[kind for kind, _ in media],
        patches=patches if media else None,
    )
