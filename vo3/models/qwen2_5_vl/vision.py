"""The vision tower: patch embedding, windowed and full blocks, merger. Several images and videos share a row of patches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.visibility import Visibility
from vo3.attention import AttentionMesh, EitherMask, Mask, attention, prepare
from vo3.models.qwen2_5_vl import layers, rope
from vo3.models.qwen2_5_vl.config import VisionConfig

Grid = tuple[int, int, int]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionInputs:
    """What the tower must know of a row of patches, made on the host. Every field may carry a leading row axis.

    The tower works in window order, where the patches of a window are neighbours. M = P / (patches per token).

    Attributes:
      positions: (y, x) of every patch inside its frame, in window order.
      windows: who sees whom in windowed blocks, in window order.
      frames: who sees whom in full blocks (a frame, i.e. one temporal patch), in window order.
      order: the original token that stands at each place of the window order.
      inverse: the place of each original token in the window order.
      count: patches that are no padding.
    """

    positions: Int[Array, "*B P 2"]
    windows: Visibility
    frames: Visibility
    order: Int[Array, "*B M"]
    inverse: Int[Array, "*B M"]
    count: Int[Array, "*B"]


def vision_inputs(
    grids: Sequence[Grid], config: VisionConfig, *, pad_patches: int | None = None
) -> VisionInputs:
    """Host-side description of the images and videos of one row, in order, then padding.

    Args:
      grids: (t, h, w) in patches of each image or video.
      config: of the tower.
      pad_patches: patches of the row after padding; None: no padding.

    Returns:
      numpy fields of a row of `pad_patches` patches.

    Raises:
      ValueError: a grid that the merge size does not divide, or more patches than the row holds.
    """
    unit, merge = config.merge_unit, config.spatial_merge_size
    for grid in grids:
        if len(grid) != 3 or min(grid) < 1 or grid[1] % merge or grid[2] % merge:
            raise ValueError(
                f"grid {tuple(grid)} must be (t, h, w) >= 1 with h and w multiples of {merge}; resize the frames to "
                f"multiples of {merge * config.patch_size} pixels"
            )
    used = sum(t * h * w for t, h, w in grids)
    total = used if pad_patches is None else pad_patches
    if used > total or total % unit:
        raise ValueError(
            f"grids hold {used} patches, the row pad_patches={total}; it must hold them and be a multiple of {unit}"
        )
    positions = np.zeros((total, 2), np.int32)
    window_ids = np.full(total, -1, np.int32)
    frame_ids = np.full(total, -1, np.int32)
    order = np.arange(total // unit, dtype=np.int32)
    start = windows = frames = 0
    for t, h, w in grids:
        tokens, ids = _window_order(
            h // merge, w // merge, config.window_size // merge // config.patch_size
        )
        place = _patch_positions(h, w, merge).reshape(-1, unit, 2)[tokens].reshape(-1, 2)
        size, count = h * w, int(ids.max()) + 1
        for _ in range(t):
            stop = start + size
            positions[start:stop] = place
            window_ids[start:stop] = np.repeat(ids + windows, unit)
            frame_ids[start:stop] = frames
            order[start // unit : stop // unit] = tokens + start // unit
            start, windows, frames = stop, windows + count, frames + 1
    return VisionInputs(
        positions=positions,
        windows=Visibility.segments(window_ids),
        frames=Visibility.segments(frame_ids),
        order=order,
        inverse=np.argsort(order).astype(np.int32),
        count=np.asarray(used, np.int32),
    )


def stack_vision_inputs(rows: Sequence[VisionInputs]) -> VisionInputs:
    """Rows of equal padded length as one batch, fields [B, ...]."""
    return jax.tree.map(lambda *fields: np.stack(fields), *rows)


def _patch_positions(height: int, width: int, merge: int) -> Int[np.ndarray, "P 2"]:
    """(y, x) of a frame's patches in the processor's order: merge blocks row by row, inside each its patches."""
    grid = np.stack(
        np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1
    ).astype(np.int32)
    blocks = grid.reshape(height // merge, merge, width // merge, merge, 2).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(-1, 2)


def _window_order(
    height: int, width: int, window: int
) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """Tokens of a frame (height x width tokens) in window order, and the window each belongs to."""
    y, x = np.divmod(np.arange(height * width, dtype=np.int32), np.int32(width))
    across = -(-width // window)
    ids = (y // window) * across + x // window
    order = np.argsort(ids, kind="stable").astype(np.int32)
    return order, ids[order].astype(np.int32)


class VisionAttention(nnx.Module):
    """Multi-head self-attention with a fused projection, kernel [D, 3 D]."""

    def __init__(self, config: VisionConfig, **options):
        dim = config.hidden_size
        self.qkv = layers.Linear(dim, 3 * dim, bias=True, **options)
        self.proj = layers.Linear(dim, dim, bias=True, **options)
        self.heads, self.head_dim = config.num_heads, config.head_dim

    def __call__(
        self, x: Float[Array, "B P D"], angles, mask: Mask | EitherMask
    ) -> Float[Array, "B P D"]:
        """The block's output, without the residual."""
        shape = (*x.shape[:2], self.heads, self.head_dim)
        q, k, v = (
            y.reshape(shape).transpose(0, 2, 1, 3) for y in jnp.split(self.qkv(x), 3, axis=-1)
        )
        q, k = layers.rotate(q, *angles), layers.rotate(k, *angles)
        out = attention(q, k, v, mask, scale=self.head_dim**-0.5)
        return self.proj(out.transpose(0, 2, 1, 3).reshape(x.shape))


class VisionBlock(nnx.Module):
    """norm, attention, norm, gated feed-forward."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype, param_dtype):
        norm = {"eps": 1e-6, "dtype": dtype, "param_dtype": param_dtype}
        options = {
            "stddev": config.initializer_range,
            "rngs": rngs,
            "dtype": dtype,
            "param_dtype": param_dtype,
        }
        self.norm1 = layers.RMSNorm(config.hidden_size, **norm)
        self.norm2 = layers.RMSNorm(config.hidden_size, **norm)
        self.attn = VisionAttention(config, **options)
        self.mlp = layers.GatedMLP(
            config.hidden_size, config.intermediate_size, bias=True, **options
        )

    def __call__(
        self, x: Float[Array, "B P D"], angles, mask: Mask | EitherMask
    ) -> Float[Array, "B P D"]:
        """One block on patches in window order; angles as `rope.vision_angles` gives them."""
        x = x + self.attn(self.norm1(x), angles, mask)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Neighbouring patches of a merge block become one token of the decoder's width."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype, param_dtype):
        options = {
            "stddev": config.initializer_range,
            "rngs": rngs,
            "dtype": dtype,
            "param_dtype": param_dtype,
        }
        width = config.hidden_size * config.merge_unit
        self.norm = layers.RMSNorm(
            config.hidden_size, eps=1e-6, dtype=dtype, param_dtype=param_dtype
        )
        self.fc1 = layers.Linear(width, width, bias=True, **options)
        self.fc2 = layers.Linear(width, config.out_hidden_size, bias=True, **options)
        self.width = width

    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B M O"]:
        """Tokens in the order of the patches."""
        x = self.norm(x).reshape(x.shape[0], -1, self.width)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionMasks:
    """Masks of windowed and of full blocks, in window order."""

    windows: Mask
    frames: Mask


class VisionTower(nnx.Module):
    """Patches to tokens of the decoder's width, in the original order."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        rngs: nnx.Rngs,
        dtype,
        param_dtype,
        remat: str = "none",
        unroll: int = 1,
        mesh: AttentionMesh | None = None,
    ):
        options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.patch_embed = layers.Linear(
            config.patch_dim,
            config.hidden_size,
            bias=False,
            stddev=config.initializer_range,
            **options,
        )
        self.blocks = layers.stack_layers(
            lambda r: VisionBlock(config, rngs=r, dtype=dtype, param_dtype=param_dtype),
            config.depth,
            rngs,
        )
        self.merger = PatchMerger(config, **options)
        self.config = config
        self.remat, self.unroll, self.mesh = remat, unroll, mesh

    def masks(self, inputs: VisionInputs, dtype: jnp.dtype) -> VisionMasks:
        """What the blocks' attention takes, for rows [B, P] of inputs."""
        mask = functools.partial(
            prepare,
            causal=False,
            q_heads=self.config.num_heads,
            kv_heads=self.config.num_heads,
            dtype=dtype,
            mesh=self.mesh,
        )
        # A window is contiguous in window order and no frame edge makes it larger.
        window = (self.config.window_size // self.config.patch_size) ** 2
        return VisionMasks(
            windows=mask(inputs.windows, inputs.windows, reach=window),
            frames=mask(inputs.frames, inputs.frames),
        )

    def __call__(
        self, patches: Float[Array, "*B P C"], inputs: VisionInputs
    ) -> Float[Array, "*B M D"]:
        """Features of each token (M = P / 4); padding gives finite rows that nothing points to.

        Args:
          patches: flattened patches as `vo3.video.patchify` makes them; one row [P, C] or rows [B, P, C].
          inputs: of the same rows.
        """
        if patches.ndim == 2:
            return self(patches[None], jax.tree.map(lambda f: jnp.asarray(f)[None], inputs))[0]
        inputs = jax.tree.map(jnp.asarray, inputs)
        batch, length, _ = patches.shape
        if inputs.positions.shape[:2] != (batch, length):
            raise ValueError(
                f"patches are {batch} rows of {length}, vision_inputs describe {inputs.positions.shape[:2]}; "
                "pass pad_patches equal to the padded row"
            )
        unit = self.config.merge_unit
        x = self.patch_embed(patches)
        x = permute(x.reshape(batch, length // unit, -1), inputs.order, inputs.inverse)
        x = x.reshape(batch, length, -1)
        angles = rope.vision_angles(inputs.positions, self.config)
        masks = self.masks(inputs, x.dtype)
        full = np.isin(np.arange(self.config.depth), self.config.fullatt_block_indexes)
        graph, state = nnx.split(self.blocks)

        def body(x: Array, layer: tuple[nnx.State, Bool[Array, ""]]) -> tuple[Array, None]:
            weights, is_full = layer
            mask = EitherMask(which=is_full, yes=masks.frames, no=masks.windows)
            return nnx.merge(graph, weights)(x, angles, mask), None

        x, _ = jax.lax.scan(layers.remat(body, self.remat), x, (state, full), unroll=self.unroll)
        return permute(self.merger(x), inputs.inverse, inputs.order)


@jax.custom_vjp
def permute(
    x: Float[Array, "B M D"], index: Int[Array, "B M"], inverse: Int[Array, "B M"]
) -> Float[Array, "B M D"]:
    """x[b, index[b]]; `inverse` makes the gradient a gather too, where a scatter would be slow."""
    del inverse
    return jnp.take_along_axis(x, index[..., None], axis=1, mode="promise_in_bounds")


def _permute_forward(x, index, inverse):
    return permute(x, index, inverse), (index, inverse)


def _permute_backward(residuals, gradient):
    index, inverse = residuals
    return permute(gradient, inverse, index), None, None


permute.defvjp(_permute_forward, _permute_backward)
