"""Architecture of a Qwen2.5-VL model, read from and written to a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from vo3.chat.positions import MropeTime

REMAT_POLICIES: tuple[str, ...] = ("none", "full", "dots", "dots_no_batch")


def _check_counts(config: Any, part: str) -> None:
    """Raises ValueError where a field that counts something is no integer above 0."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        # Annotations are text here.
        if field.type == "int" and not (isinstance(value, int) and value > 0):
            raise ValueError(f"{part}: {field.name} is {value!r}; it must be an integer above 0")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder. Field names are those of Hugging Face; `mrope_section` counts frequencies for (time, y, x)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    max_position_embeddings: int = 128_000
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _check_counts(self, "text")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"text: hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"text: num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if len(self.mrope_section) != 3 or 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(
                f"text: mrope_section {list(self.mrope_section)} must be three counts that sum to half the head "
                f"dimension, {self.head_dim} / 2"
            )

    @property
    def head_dim(self) -> int:
        """H: features per head."""
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Field names are those of Hugging Face; `window_size` is in pixels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    tokens_per_second: float = 2
    window_size: int = 112
    rope_theta: float = 10_000.0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _check_counts(self, "vision")
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"vision: hidden_size {self.hidden_size} must be a multiple of 4 * num_heads, 4 * {self.num_heads}"
            )
        outside = [i for i in self.fullatt_block_indexes if not 0 <= i < self.depth]
        if outside:
            raise ValueError(
                f"vision: fullatt_block_indexes {outside} lie outside the {self.depth} blocks"
            )
        if self.window_size < self.token_size:
            raise ValueError(
                f"vision: window_size {self.window_size} is smaller than a merged patch of {self.token_size} pixels"
            )

    @property
    def head_dim(self) -> int:
        """H: features per head."""
        return self.hidden_size // self.num_heads

    @property
    def merge_unit(self) -> int:
        """Patches per token: `spatial_merge_size` squared."""
        return self.spatial_merge_size**2

    @property
    def token_size(self) -> int:
        """Pixels per side of one token."""
        return self.patch_size * self.spatial_merge_size

    @property
    def patch_dim(self) -> int:
        """Features of a flattened patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class Qwen2_5_VLConfig:
    """A whole model.

    Attributes:
      text, vision: the two towers.
      image_token_id, video_token_id: pad tokens at whose places features stand.
      vision_start_token_id, vision_end_token_id: tokens around them.
      tie_word_embeddings: whether the output matrix is the embedding.
      mrope_time: how a video's grid step becomes a position; see `vo3.chat.positions`.
      remat: what the backward pass recomputes: "none", "full" (everything but the layers' inputs), "dots" (keeps
        every matrix product), "dots_no_batch" (keeps products with weights).
      scan_unroll: layers per iteration of the layer scan.
      eos_token_id, bos_token_id, pad_token_id: carried through for export only.
    """

    text: TextConfig
    vision: VisionConfig
    image_token_id: int = 151_655
    video_token_id: int = 151_656
    vision_start_token_id: int = 151_652
    vision_end_token_id: int = 151_653
    tie_word_embeddings: bool = False
    mrope_time: MropeTime = "constant"
    remat: str = "none"
    scan_unroll: int = 1
    eos_token_id: int | tuple[int, ...] | None = 151_645
    bos_token_id: int | None = 151_643
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.mrope_time not in get_args(MropeTime):
            raise ValueError(f"mrope_time {self.mrope_time!r}; one of {list(get_args(MropeTime))}")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat {self.remat!r}; one of {list(REMAT_POLICIES)}")
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ValueError(
                f"vision out_hidden_size {self.vision.out_hidden_size} differs from text hidden_size "
                f"{self.text.hidden_size}"
            )
        for name in (
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        ):
            if not 0 <= getattr(self, name) < self.text.vocab_size:
                raise ValueError(
                    f"{name} {getattr(self, name)} lies outside the vocabulary of {self.text.vocab_size}"
                )

    def replace(self, **changes: Any) -> Qwen2_5_VLConfig:
        """A copy with fields changed; `text` and `vision` may be given as dicts of changes."""
        for name in ("text", "vision"):
            if isinstance(changes.get(name), Mapping):
                changes[name] = dataclasses.replace(getattr(self, name), **changes[name])
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_hf(cls, data: Mapping[str, Any], **options: Any) -> Qwen2_5_VLConfig:
        """A config from the contents of a Hugging Face `config.json`; see `hf_config.from_hf`."""
        from vo3.models.qwen2_5_vl import hf_config  # it builds on this module

        return hf_config.from_hf(data, **options)

    def to_hf(
        self, *, layout: Literal["flat", "nested"] = "flat", dtype: str = "bfloat16"
    ) -> dict[str, Any]:
        """The contents of a `config.json` that transformers loads; see `hf_config.to_hf`."""
        from vo3.models.qwen2_5_vl import hf_config

        return hf_config.to_hf(self, layout=layout, dtype=dtype)

    @classmethod
    def tiny(cls, vocab: int = 256, **changes: Any) -> Qwen2_5_VLConfig:
        """A model of about a quarter of a million parameters for tests; the media tokens are the vocabulary's last four."""
        config = cls(
            text=TextConfig(
                vocab_size=vocab,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                mrope_section=(2, 3, 3),
                max_position_embeddings=4096,
            ),
            vision=VisionConfig(
                depth=3,
                hidden_size=48,
                intermediate_size=96,
                num_heads=3,
                out_hidden_size=64,
                fullatt_block_indexes=(1,),
            ),
            vision_start_token_id=vocab - 4,
            vision_end_token_id=vocab - 3,
            image_token_id=vocab - 2,
            video_token_id=vocab - 1,
            eos_token_id=None,
            bos_token_id=None,
        )
        return config.replace(**changes)
