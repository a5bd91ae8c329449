"""One declarative table: every parameter here and on the Hub, how one becomes the other, and how it is split over devices."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig

Form = Literal["same", "transposed", "patches"]
ShardingFn = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter in both worlds.

    Attributes:
      ours: dotted path in the model's state.
      theirs: key on the Hub; `{i}` is the layer of a stacked parameter.
      form: how theirs becomes ours: "same"; "transposed" ([out, in] to [in, out]); "patches" (the 3-D convolution
        [D, 3, 2, 14, 14] as a matrix [1176, D]).
      axes: what the axes of ours are, without the layer axis; see `RULES`.
    """

    ours: str
    theirs: str
    form: Form = "same"
    axes: tuple[str | None, ...] = (None,)

    @property
    def stacked(self) -> bool:
        """Whether ours holds all layers."""
        return "{i}" in self.theirs


def _linear(
    ours: str, theirs: str, axes: tuple[str | None, str | None], *, bias: bool
) -> list[Entry]:
    entries = [Entry(f"{ours}.kernel", f"{theirs}.weight", "transposed", axes)]
    return entries + [Entry(f"{ours}.bias", f"{theirs}.bias", "same", axes[1:])] * bias


_TEXT, _VISION = "model.layers.{i}", "visual.blocks.{i}"
TABLE: tuple[Entry, ...] = (
    Entry(
        "vision.patch_embed.kernel", "visual.patch_embed.proj.weight", "patches", (None, "embed")
    ),
    Entry("vision.blocks.norm1.scale", f"{_VISION}.norm1.weight"),
    Entry("vision.blocks.norm2.scale", f"{_VISION}.norm2.weight"),
    # q, k and v share the output axis, which therefore does not split by heads.
    *_linear("vision.blocks.attn.qkv", f"{_VISION}.attn.qkv", ("embed", None), bias=True),
    *_linear("vision.blocks.attn.proj", f"{_VISION}.attn.proj", ("heads", "embed"), bias=True),
    *_linear("vision.blocks.mlp.gate", f"{_VISION}.mlp.gate_proj", ("embed", "ffn"), bias=True),
    *_linear("vision.blocks.mlp.up", f"{_VISION}.mlp.up_proj", ("embed", "ffn"), bias=True),
    *_linear("vision.blocks.mlp.down", f"{_VISION}.mlp.down_proj", ("ffn", "embed"), bias=True),
    Entry("vision.merger.norm.scale", "visual.merger.ln_q.weight"),
    *_linear("vision.merger.fc1", "visual.merger.mlp.0", ("embed", "ffn"), bias=True),
    *_linear("vision.merger.fc2", "visual.merger.mlp.2", ("ffn", "embed"), bias=True),
    Entry("embed.table", "model.embed_tokens.weight", "same", ("vocab", "embed")),
    Entry("decoder.layers.input_norm.scale", f"{_TEXT}.input_layernorm.weight"),
    *_linear("decoder.layers.q", f"{_TEXT}.self_attn.q_proj", ("embed", "heads"), bias=True),
    *_linear("decoder.layers.k", f"{_TEXT}.self_attn.k_proj", ("embed", "kv"), bias=True),
    *_linear("decoder.layers.v", f"{_TEXT}.self_attn.v_proj", ("embed", "kv"), bias=True),
    *_linear("decoder.layers.o", f"{_TEXT}.self_attn.o_proj", ("heads", "embed"), bias=False),
    Entry("decoder.layers.post_norm.scale", f"{_TEXT}.post_attention_layernorm.weight"),
    *_linear("decoder.layers.mlp.gate", f"{_TEXT}.mlp.gate_proj", ("embed", "ffn"), bias=False),
    *_linear("decoder.layers.mlp.up", f"{_TEXT}.mlp.up_proj", ("embed", "ffn"), bias=False),
    *_linear("decoder.layers.mlp.down", f"{_TEXT}.mlp.down_proj", ("ffn", "embed"), bias=False),
    Entry("decoder.norm.scale", "model.norm.weight"),
    Entry("unembedding.kernel", "lm_head.weight", "transposed", ("embed", "vocab")),
)

# Default sharding: what each axis of the table is split over, where the mesh has it and the size allows.
RULES: dict[str, tuple[str, ...]] = {
    "embed": ("fsdp",),
    "heads": ("model", "tensor"),
    "kv": ("model", "tensor"),
    "ffn": ("model", "tensor"),
    "vocab": ("model", "tensor"),
}


def table(config: Qwen2_5_VLConfig) -> tuple[Entry, ...]:
    """The entries of this architecture: tied embeddings have no output matrix."""
    return tuple(
        e for e in TABLE if not (config.tie_word_embeddings and e.theirs == "lm_head.weight")
    )


def default_sharding(mesh: Mesh | None, device: jax.Device | None = None) -> ShardingFn:
    """Where each parameter lies: split by `RULES`; an axis whose size the mesh does not divide stays whole, and is logged.

    Without a mesh everything lies on `device`, the first of this process when None.
    """
    if mesh is None:
        single = SingleDeviceSharding(device or jax.local_devices()[0])
        return lambda path, shape: single
    axes_of = {entry.ours: entry for entry in TABLE}

    def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
        entry = axes_of.get(path) or axes_of[_kernel_of(path)]
        own = entry.axes if path in axes_of else entry.axes[1:]
        axes = ((None,) if entry.stacked else ()) + own
        spec = []
        for axis, size in zip(axes, shape, strict=True):
            names = tuple(n for n in RULES.get(axis, ()) if mesh.shape.get(n, 1) > 1)
            ways = math.prod(mesh.shape[n] for n in names)
            if size % ways:
                _log.warning("%s: axis %s of size %d is not split %d ways", path, axis, size, ways)
                names = ()
            spec.append(names or None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return sharding


def scale_of(path: str) -> str:
    """Where the scales of a kernel stand, if it is int8."""
    return f"{path.removesuffix('kernel')}scale"


def _kernel_of(path: str) -> str:
    """The inverse of `scale_of`."""
    return f"{path.removesuffix('scale')}kernel"
