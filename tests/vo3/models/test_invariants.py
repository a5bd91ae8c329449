"""What must not change the result: padding, packing, batching, recomputation, unrolling, sharding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels import Visibility
from vo3.attention import AttentionMesh
from vo3.models.qwen2_5_vl import (
    Qwen2_5_VL,
    Qwen2_5_VLConfig,
    stack_vision_inputs,
    vision_inputs,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CONFIG = Qwen2_5_VLConfig.tiny(text={"initializer_range": 0.1}, vision={"initializer_range": 0.1})
GRIDS = [(2, 6, 10), (1, 2, 2), (1, 10, 4)]
TOKENS = sum(t * h * w // 4 for t, h, w in GRIDS)


@functools.cache
def model(**options) -> Qwen2_5_VL:
    return Qwen2_5_VL(CONFIG.replace(**options), rngs=nnx.Rngs(0))


def patches(count: int, seed: int = 0) -> np.ndarray:
    shape = (count, CONFIG.vision.patch_dim)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Text:
    """Rows of text with features at fixed places."""

    ids: np.ndarray
    positions: np.ndarray
    visibility: Visibility
    index: np.ndarray


def text(length: int, rows: int = 1, seed: int = 0) -> Text:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 250, (rows, length)).astype(np.int32)
    positions = np.sort(rng.integers(0, length, (3, rows, length)), axis=-1).astype(np.int32)
    visibility = jax.tree.map(lambda f: np.tile(f, (rows, 1)), Visibility.causal(length))
    index = np.full((rows, length), -1, np.int32)
    index[:, 2 : 2 + 12] = rng.integers(0, TOKENS, (rows, 12))
    return Text(ids, positions, visibility, index)


@functools.partial(jax.jit, static_argnums=0)
def forward(graph, params, pixels, inputs, t_ids, t_positions, t_visibility, t_index):
    built = nnx.merge(graph, params)
    features = built.encode_vision(pixels, inputs)
    out = built(t_ids, t_positions, t_visibility, features=features, feature_index=t_index)
    return features, out.logits


def run(built: Qwen2_5_VL, pixels, inputs, item: Text):
    graph, params = nnx.split(built)
    return forward(
        graph, params, pixels, inputs, item.ids, item.positions, item.visibility, item.index
    )


def close(a, b, tolerance=1e-5) -> bool:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max()) <= tolerance


# ---------------------------------------------------------------- padding and packing


def test_bucketed_is_unpadded():
    count = TOKENS * 4
    exact, wide = (
        vision_inputs(GRIDS, CONFIG.vision),
        vision_inputs(GRIDS, CONFIG.vision, pad_patches=256),
    )
    item = text(30)
    features, logits = run(model(), patches(count), exact, item)

    # What stands in the padding must not matter.
    pixels = np.concatenate([patches(count), 50 * patches(256 - count, seed=1)])
    fill = lambda x, value: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 10)], constant_values=value)
    padded = Text(
        fill(item.ids, 7),
        fill(item.positions, 99),
        jax.tree.map(lambda f: f[None], Visibility.causal(40, valid=30)),
        fill(item.index, 3),
    )
    wide_features, wide_logits = run(model(), pixels, wide, padded)
    assert close(features, wide_features[:TOKENS])
    assert close(logits, wide_logits[:, :30])
    assert np.isfinite(wide_logits).all() and np.isfinite(wide_features).all()


def test_padding_that_is_visible_is_noticed():
    """The test above can fail: with the padding made part of the last frame the features move."""
    inputs = vision_inputs(GRIDS, CONFIG.vision, pad_patches=256)
    last = int(inputs.frames.enter.max())
    ids = np.where(inputs.frames.enter < 0, last, inputs.frames.enter)
    leaking = dataclasses.replace(inputs, frames=Visibility.segments(ids.astype(np.int32)))
    pixels = np.concatenate([patches(TOKENS * 4), 50 * patches(256 - TOKENS * 4, seed=1)])
    item = text(30)
    right, wrong = (run(model(), pixels, i, item)[0][:TOKENS] for i in (inputs, leaking))
    assert not close(right, wrong, 1e-3)


def test_media_packed_in_a_row_are_media_alone():
    sizes = [t * h * w for t, h, w in GRIDS]
    parts = np.split(patches(sum(sizes)), np.cumsum(sizes)[:-1])
    item = text(30)
    packed, _ = run(model(), np.concatenate(parts), vision_inputs(GRIDS, CONFIG.vision), item)
    rows = stack_vision_inputs(
        [vision_inputs([g], CONFIG.vision, pad_patches=max(sizes)) for g in GRIDS]
    )
    pixels = np.stack([np.pad(p, ((0, max(sizes) - len(p)), (0, 0))) for p in parts])
    batched, _ = run(model(), pixels, rows, item)
    start = 0
    for row, size in zip(batched, sizes, strict=True):
        assert close(packed[start : start + size // 4], row[: size // 4])
        start += size // 4


def test_documents_packed_in_a_row_are_documents_alone():
    first, second = text(17, seed=1), text(23, seed=2)
    join = lambda name: np.concatenate([getattr(first, name), getattr(second, name)], axis=-1)
    both = Text(
        join("ids"),
        join("positions"),
        jax.tree.map(lambda f: f[None], Visibility.packed([17, 23])),
        join("index"),
    )
    inputs, pixels = vision_inputs(GRIDS, CONFIG.vision), patches(TOKENS * 4)
    _, packed = run(model(), pixels, inputs, both)
    assert close(packed[:, :17], run(model(), pixels, inputs, first)[1])
    assert close(packed[:, 17:], run(model(), pixels, inputs, second)[1])


def test_unrolling_does_not_change_the_result():
    args = patches(TOKENS * 4), vision_inputs(GRIDS, CONFIG.vision), text(20)
    for a, b in zip(run(model(), *args), run(model(scan_unroll=3), *args), strict=True):
        assert close(a, b)


# ---------------------------------------------------------------- gradients


def loss_and_gradient(built: Qwen2_5_VL, pixels, inputs, item: Text, shard=None):
    graph, params = nnx.split(built)
    if shard is not None:
        params = jax.tree.map(shard, params)

    @jax.jit
    def both(params):
        def loss(p):
            _, logits = forward(
                graph, p, pixels, inputs, item.ids, item.positions, item.visibility, item.index
            )
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), item.ids[..., None], axis=-1)
            return -jnp.mean(picked)

        return jax.value_and_grad(loss)(params)

    return both(params)


@functools.cache
def plain_gradient():
    return loss_and_gradient(
        model(), patches(TOKENS * 4), vision_inputs(GRIDS, CONFIG.vision), text(30, rows=4)
    )


def same_gradient(a, b, tolerance=2e-5) -> bool:
    (loss_a, grad_a), (loss_b, grad_b) = a, b
    pairs = zip(jax.tree.leaves(grad_a), jax.tree.leaves(grad_b), strict=True)
    return close(loss_a, loss_b, 1e-5) and all(close(x, y, tolerance) for x, y in pairs)


def test_every_parameter_has_a_gradient():
    _, gradient = plain_gradient()
    flat = {".".join(map(str, k)): v.get_value() for k, v in nnx.to_flat_state(gradient)}
    assert all(np.isfinite(g).all() for g in flat.values())
    silent = [name for name, g in flat.items() if not np.abs(g).max() > 1e-7]
    assert silent == []


@pytest.mark.parametrize("policy", ["full", "dots", "dots_no_batch"])
def test_recomputation_does_not_change_gradients(policy):
    remat = loss_and_gradient(
        model(remat=policy),
        patches(TOKENS * 4),
        vision_inputs(GRIDS, CONFIG.vision),
        text(30, rows=4),
    )
    assert same_gradient(plain_gradient(), remat)


def test_recomputation_saves_memory():
    def temporaries(policy: str) -> int:
        config = CONFIG.replace(remat=policy, text={"num_hidden_layers": 6})
        graph, params = nnx.split(Qwen2_5_VL(config, rngs=nnx.Rngs(0)))
        item, inputs = text(256, rows=4), vision_inputs(GRIDS, CONFIG.vision)

        def loss(p):
            out = forward(
                graph,
                p,
                patches(TOKENS * 4),
                inputs,
                item.ids,
                item.positions,
                item.visibility,
                item.index,
            )
            return jnp.mean(jnp.square(out[1]))

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("full") < 0.7 * temporaries("none")


def test_gradient_of_the_reordering_is_a_gather():
    """A scatter in the tower's backward pass would be slow on every device."""
    graph, params = nnx.split(model().vision)
    inputs, pixels = vision_inputs(GRIDS, CONFIG.vision), patches(TOKENS * 4)
    loss = lambda p: jnp.sum(jnp.sin(nnx.merge(graph, p)(pixels, inputs)))
    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert "gather" in text and "scatter" not in text


# ---------------------------------------------------------------- sharding


@functools.cache
def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))


def test_sharded_is_unsharded():
    built = Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0), mesh=AttentionMesh(mesh()))
    everywhere = NamedSharding(mesh(), PartitionSpec())
    sharded = loss_and_gradient(
        built,
        patches(TOKENS * 4),
        vision_inputs(GRIDS, CONFIG.vision),
        text(30, rows=4),
        shard=lambda x: jax.device_put(x, everywhere),
    )
    assert same_gradient(plain_gradient(), sharded)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("grid", [(1, 3, 4), (1, 4, 3), (0, 4, 4), (1, 0, 4)])
def test_vision_inputs_refuse_a_grid_that_does_not_merge(grid):
    with pytest.raises(ValueError, match="multiples of"):
        vision_inputs([grid], CONFIG.vision)


@pytest.mark.parametrize("pad", [96, 163, 0])
def test_vision_inputs_refuse_a_row_that_is_too_small_or_odd(pad):
    with pytest.raises(ValueError, match="pad_patches"):
        vision_inputs([(1, 10, 16)], CONFIG.vision, pad_patches=pad)


def test_the_tower_refuses_inputs_of_another_row():
    with pytest.raises(ValueError, match="pad_patches"):
        model().vision(patches(40), vision_inputs([(1, 4, 4)], CONFIG.vision))


def test_features_and_index_go_together():
    item = text(20)
    with pytest.raises(ValueError, match="go together"):
        model()(item.ids, item.positions, item.visibility, feature_index=item.index)
    with pytest.raises(ValueError, match="logits="):
        model()(item.ids, item.positions, item.visibility, logits="first")
