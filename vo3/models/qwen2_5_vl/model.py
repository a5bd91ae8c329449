"""Qwen2.5-VL: vision tower, decoder, and the places where features stand among the tokens."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels.visibility import Visibility
from vo3.attention import AttentionMesh
from vo3.models.qwen2_5_vl import layers
from vo3.models.qwen2_5_vl.assets import Assets
from vo3.models.qwen2_5_vl.cache import KVCache
from vo3.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from vo3.models.qwen2_5_vl.decoder import Decoder
from vo3.models.qwen2_5_vl.vision import VisionInputs, VisionTower


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """What a forward pass gives.

    Attributes:
      hidden: normed hidden states.
      logits: f32 [B, L, V] for "all", [B, V] of each row's last unpadded token for "last", None for "none".
      cache: the cache with the new tokens appended, when one was given.
    """

    hidden: Float[Array, "B L D"]
    logits: Float[Array, "B *L V"] | None
    cache: KVCache | None


class Embedding(nnx.Module):
    """Token embeddings [V, D]."""

    def __init__(
        self,
        vocab: int,
        features: int,
        *,
        stddev: float,
        rngs: nnx.Rngs,
        dtype: Any,
        param_dtype: Any,
    ):
        init = nnx.initializers.normal(stddev)
        self.table = nnx.Param(init(rngs.params(), (vocab, features), param_dtype))
        self.dtype = dtype

    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """The rows of `ids`, in `dtype`."""
        return self.table[...].at[ids].get(mode="clip").astype(self.dtype)


class Qwen2_5_VL(nnx.Module):
    """The whole model.

    Args:
      config: the architecture.
      rngs: for initial weights.
      dtype: of the computation.
      param_dtype: of the weights as stored.
      mesh: how attention is split over devices; None: not.

    Attributes:
      assets: source, tokenizer, crop policy and prompt pack; see `Assets`.
      vision, embed, decoder: the parts.
      unembedding: the output matrix [D, V]; None when it is tied to the embedding.
    """

    def __init__(
        self,
        config: Qwen2_5_VLConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        mesh: AttentionMesh | None = None,
    ):
        options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        scan = {"remat": config.remat, "unroll": config.scan_unroll, "mesh": mesh}
        text = config.text
        self.config = config
        self.assets = Assets()
        self.dtype = dtype
        self.vision = VisionTower(config.vision, **options, **scan)
        self.embed = Embedding(
            text.vocab_size, text.hidden_size, stddev=text.initializer_range, **options
        )
        self.decoder = Decoder(text, **options, **scan)
        self.unembedding = (
            None
            if config.tie_word_embeddings
            else layers.Linear(
                text.hidden_size,
                text.vocab_size,
                bias=False,
                stddev=text.initializer_range,
                **options,
            )
        )

    def encode_vision(
        self, patches: Float[Array, "*B P C"], inputs: VisionInputs
    ) -> Float[Array, "*B M D"]:
        """Video and image tokens in the original order; see `VisionTower`."""
        return self.vision(patches, inputs)

    def __call__(
        self,
        ids: Int[Array, "B L"],
        positions: Int[Array, "3 B L"],
        visibility: Visibility,
        *,
        features: Float[Array, "*R M D"] | None = None,
        feature_index: Int[Array, "B L"] | None = None,
        cache: KVCache | None = None,
        logits: Literal["all", "last", "none"] = "all",
    ) -> ModelOutput:
        """One pass over rows of tokens.

        Args:
          ids: token ids.
          positions: M-RoPE positions (time, y, x).
          visibility: fields [B, L]; with a cache, of the new tokens only.
          features: vision features; leading axes are flattened.
          feature_index: for each token, -1 or the row of the flattened `features` that stands there.
          cache: the new tokens are appended to it and see what it holds.
          logits: which positions are unembedded.

        Raises:
          ValueError: features without their index or the reverse; an unknown `logits`.
        """
        if (features is None) != (feature_index is None):
            raise ValueError("features and feature_index go together; pass both or neither")
        if logits not in ("all", "last", "none"):
            raise ValueError(f"logits={logits!r}; one of 'all', 'last', 'none'")
        x = self.embed(ids)
        if features is not None:
            rows = features.reshape(-1, features.shape[-1]).astype(x.dtype)
            shown = rows.at[jnp.maximum(feature_index, 0)].get(mode="clip")
            x = jnp.where((feature_index >= 0)[..., None], shown, x)
        hidden, cache = self.decoder(x, positions, visibility, cache=cache)
        scores = None
        if logits == "all":
            scores = self.unembed(hidden)
        elif logits == "last":
            used = jnp.where(
                visibility.enter >= 0, jnp.arange(ids.shape[1], dtype=jnp.int32)[None], 0
            )
            last = jnp.max(used, axis=1)[:, None, None]
            scores = self.unembed(jnp.take_along_axis(hidden, last, axis=1, mode="clip"))[:, 0]
        return ModelOutput(hidden=hidden, logits=scores, cache=cache)

    def unembed(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """Logits in f32."""
        if self.unembedding is None:
            table = self.embed.table[...].astype(self.dtype)
            return jnp.einsum("BLD,VD->BLV", hidden, table, preferred_element_type=jnp.float32)
        return self.unembedding.in_f32(hidden)

    def save_hf(
        self,
        directory: epath.PathLike,
        *,
        max_shard_bytes: int = 5_000_000_000,
        overwrite: bool = False,
    ) -> None:
        """Writes a Hugging Face directory; tokenizer and processor files come from `source`. See `hf_io.save`."""
        from vo3.models import hf_io  # it builds on this module

        hf_io.save(
            self,
            directory,
            source=self.source,
            max_shard_bytes=max_shard_bytes,
            overwrite=overwrite,
        )

    @property
    def source(self) -> epath.Path | None:
        """The directory the model was loaded from."""
        return self.assets.source

    @source.setter
    def source(self, value: epath.PathLike | None) -> None:
        self.assets.source = None if value is None else epath.Path(value)

    @property
    def tokenizer(self) -> Any:
        """The source's transformers tokenizer."""
        return self.assets.tokenizer

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        self.assets.set("tokenizer", value)

    @property
    def dialect(self) -> str:
        """Name of the `vo3.chat.dialects` dialect the model calls its tool in."""
        return self.assets.dialect

    @dialect.setter
    def dialect(self, value: str) -> None:
        self.assets.set("dialect", value)

    @property
    def crop_policy(self) -> Any:
        """The `vo3.video.CropPolicy` the model is shown videos with."""
        return self.assets.crop_policy

    @crop_policy.setter
    def crop_policy(self, value: Any) -> None:
        self.assets.set("crop_policy", value)

    @property
    def prompt_pack(self) -> Any:
        """The `vo3.chat.PromptPack` the model is asked with."""
        return self.assets.prompt_pack

    @prompt_pack.setter
    def prompt_pack(self, value: Any) -> None:
        self.assets.set("prompt_pack", value)
