"""Our model against transformers on the same weights, f32: every component, vision features, logits."""

from __future__ import annotations

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vo3.models
from pallas_kernels import Visibility
from vo3.attention import attention, prepare
from vo3.chat.positions import mrope_positions
from vo3.models.qwen2_5_vl import rope, vision_inputs

pytestmark = pytest.mark.usefixtures("strict_dtypes")

TOLERANCE = 1e-4
NAMES = ("plain", "tied", "small-windows", "uneven")
MEDIA = {
    "text": [],
    "video": [("video", (2, 8, 12))],
    "image": [("image", (1, 10, 6))],
    # Sides that no window divides, one token, one row, one column.
    "odd": [("video", (3, 6, 10)), ("video", (1, 2, 2)), ("video", (2, 2, 34)), ("video", (1, 26, 2))],
    "mixed": [("video", (2, 4, 4)), ("image", (1, 18, 6)), ("video", (1, 10, 14)), ("image", (1, 2, 4))],
}  # fmt: skip


def positions_of(config, sample, **options):
    return mrope_positions(
        sample.ids,
        sample.grids,
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
        **options,
    )


def their_logits(theirs, sample, positions) -> np.ndarray:
    media = {}
    for kind, pixels, grids in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        if kind in sample.kinds:
            patches, shapes = sample.of_kind(kind)
            media |= {pixels: torch.tensor(patches), grids: torch.tensor(shapes)}
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(sample.ids).long()[None],
            position_ids=torch.tensor(positions).long()[:, None],
            **media,
        )
    return out.logits[0].numpy()


def encode(model, patches, inputs):
    return _encode(*nnx.split(model), patches, inputs)


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph, params, patches, inputs):
    return nnx.merge(graph, params).encode_vision(patches, inputs)


def difference(ours, theirs) -> float:
    assert ours.shape == tuple(theirs.shape)
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())


@pytest.mark.parametrize("media", MEDIA)
@pytest.mark.parametrize("name", NAMES)
def test_logits(pairs, sample, name, media):
    pair = pairs(name)
    item = sample(pair.ours.config, MEDIA[media])
    ours = vo3.models.run(pair.ours, item.ids, patches=item.patches, grids=item.grids or None)
    theirs = their_logits(pair.theirs, item, positions_of(pair.ours.config, item))
    assert np.abs(theirs).max() > 1  # large enough to tell
    assert difference(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("media", [m for m in MEDIA if m != "text"])
@pytest.mark.parametrize("name", NAMES)
def test_vision_features(pairs, sample, name, media):
    pair = pairs(name)
    item = sample(pair.ours.config, MEDIA[media], seed=1)
    inputs = vision_inputs(item.grids, pair.ours.config.vision)
    ours = encode(pair.ours, item.patches, inputs)
    with torch.no_grad():
        theirs = pair.theirs.model.visual(torch.tensor(item.patches), torch.tensor(item.grids))
    assert difference(ours, theirs.pooler_output) <= TOLERANCE


def test_logits_notice_a_wrong_position(pairs, sample):
    """The tolerance is tight enough: one position off by one is far outside it."""
    pair = pairs("plain")
    item = sample(pair.ours.config, MEDIA["video"])
    positions = positions_of(pair.ours.config, item)
    positions[1, 10] += 1
    ours = vo3.models.run(pair.ours, item.ids, patches=item.patches, grids=item.grids)
    assert difference(ours, their_logits(pair.theirs, item, positions)) > 10 * TOLERANCE


@pytest.mark.parametrize("swap", ["frames", "windows"])
def test_features_notice_a_wrong_mask(pairs, sample, swap):
    pair = pairs("plain")
    item = sample(pair.ours.config, [("video", (2, 12, 12))])
    inputs = vision_inputs(item.grids, pair.ours.config.vision)
    wrong = dataclasses.replace(inputs, frames=inputs.windows, windows=inputs.frames)
    with torch.no_grad():
        theirs = pair.theirs.model.visual(torch.tensor(item.patches), torch.tensor(item.grids))
    assert difference(encode(pair.ours, item.patches, wrong), theirs.pooler_output) > 1e-2


def test_positions_are_those_of_transformers_for_images(pairs, sample):
    """`run` against transformers with its own positions, where its newest rule is still the published one."""
    pair = pairs("plain")
    item = sample(pair.ours.config, [("image", (1, 10, 6)), ("image", (1, 4, 12))])
    patches, grids = item.of_kind("image")
    with torch.no_grad():
        theirs = pair.theirs(
            input_ids=torch.tensor(item.ids).long()[None],
            pixel_values=torch.tensor(patches),
            image_grid_thw=torch.tensor(grids),
            mm_token_type_ids=torch.tensor(item.ids == pair.ours.config.image_token_id).int()[None],
        ).logits[0]
    ours = vo3.models.run(pair.ours, item.ids, patches=item.patches, grids=item.grids)
    assert difference(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize(
    ("mrope_time", "second_per_grid"), [("constant", None), ("hf_int", [2.5]), ("exact", [0.75])]
)
def test_run_takes_the_time_rule_from_the_config(pairs, sample, mrope_time, second_per_grid):
    pair = pairs("plain")
    item = sample(pair.ours.config, [("video", (3, 4, 4))])
    model = vo3.models.load(pair.folder, mrope_time=mrope_time)
    step = {"constant": 2.0, "hf_int": 4.0, "exact": 1.5}[mrope_time]
    # By hand: seven words and the start token come first, so the video begins at 8.
    positions = positions_of(pair.ours.config, item)
    times = 8 + np.repeat(np.floor(np.arange(3) * step), 4)
    positions[0, 8 : 8 + 12] = times
    positions[:, 20:] = np.arange(len(item.ids) - 20) + max(times.max(), 8 + 1) + 1
    ours = vo3.models.run(
        model, item.ids, patches=item.patches, grids=item.grids, second_per_grid=second_per_grid
    )
    assert difference(ours, their_logits(pair.theirs, item, positions)) <= TOLERANCE


# ---------------------------------------------------------------- components, each fed with transformers' own inputs


def record(module, *modules, call):
    """Inputs and outputs of torch modules while `call` runs."""
    seen = {}

    def hook(key):
        def keep(_, args, kwargs, out) -> None:
            seen.setdefault(key, (args, kwargs, out))

        return keep

    hooks = [m.register_forward_hook(hook(key), with_kwargs=True) for key, m in modules]
    with torch.no_grad():
        call(module)
    for hook in hooks:
        hook.remove()
    return seen


def first(value) -> np.ndarray:
    return (value[0] if isinstance(value, tuple) else value).numpy()


def layer(stack: nnx.Module, index: int) -> nnx.Module:
    graph, state = nnx.split(stack)
    return nnx.merge(graph, jax.tree.map(lambda x: x[index], state))


@pytest.mark.parametrize("name", NAMES)
def test_vision_components(pairs, sample, name):
    pair = pairs(name)
    config = pair.ours.config.vision
    item = sample(pair.ours.config, [("video", (2, 6, 10)), ("video", (1, 10, 4))])
    visual, tower = pair.theirs.model.visual, pair.ours.vision
    seen = record(
        visual,
        ("embed", visual.patch_embed),
        *((i, block) for i, block in enumerate(visual.blocks)),
        *((f"attn{i}", block.attn) for i, block in enumerate(visual.blocks)),
        *((f"mlp{i}", block.mlp) for i, block in enumerate(visual.blocks)),
        ("norm", visual.blocks[0].norm1),
        ("merger", visual.merger),
        call=lambda m: m(torch.tensor(item.patches), torch.tensor(item.grids)),
    )
    inputs = jax.tree.map(lambda x: jnp.asarray(x)[None], vision_inputs(item.grids, config))
    assert difference(tower.patch_embed(jnp.asarray(item.patches)), seen["embed"][2]) <= TOLERANCE

    cos, sin = rope.vision_angles(inputs.positions, config)
    their_cos, their_sin = seen["attn0"][1]["position_embeddings"]
    half = config.head_dim // 2
    assert difference(cos[0, 0], their_cos[:, :half]) <= 1e-6
    assert difference(sin[0, 0], their_sin[:, half:]) <= 1e-6

    def given(key):
        args, kwargs, _ = seen[key]
        return jnp.asarray((args[0] if args else kwargs["hidden_states"]).numpy())[None]

    masks = tower.masks(inputs, jnp.float32)
    for i in range(config.depth):
        block = layer(tower.blocks, i)
        mask = masks.frames if i in config.fullatt_block_indexes else masks.windows
        assert difference(block(given(i), (cos, sin), mask)[0], first(seen[i][2])) <= TOLERANCE
        out = block.attn(given(f"attn{i}"), (cos, sin), mask)[0]
        assert difference(out, first(seen[f"attn{i}"][2])) <= TOLERANCE
        assert difference(block.mlp(given(f"mlp{i}"))[0], first(seen[f"mlp{i}"][2])) <= TOLERANCE
    assert (
        difference(layer(tower.blocks, 0).norm1(given("norm"))[0], first(seen["norm"][2]))
        <= TOLERANCE
    )
    assert difference(tower.merger(given("merger"))[0], first(seen["merger"][2])) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_decoder_components(pairs, sample, name):
    pair = pairs(name)
    config = pair.ours.config.text
    item = sample(pair.ours.config, [("video", (2, 6, 10))])
    text, decoder = pair.theirs.model.language_model, pair.ours.decoder
    positions = positions_of(pair.ours.config, item)
    seen = record(
        text,
        ("embed", text.embed_tokens),
        ("rope", text.rotary_emb),
        *((i, block) for i, block in enumerate(text.layers)),
        *((f"mlp{i}", block.mlp) for i, block in enumerate(text.layers)),
        ("norm", text.norm),
        call=lambda m: m(
            input_ids=torch.tensor(item.ids).long()[None],
            position_ids=torch.tensor(positions).long()[:, None],
        ),
    )
    assert difference(pair.ours.embed(jnp.asarray(item.ids)[None]), seen["embed"][2]) == 0
    cos, sin = rope.text_angles(jnp.asarray(positions)[:, None], config)
    half = config.head_dim // 2
    assert difference(cos[0, 0], seen["rope"][2][0][0, :, :half]) <= 1e-5
    assert difference(sin[0, 0], seen["rope"][2][1][0, :, half:]) <= 1e-5
    visibility = jax.tree.map(lambda x: jnp.asarray(x)[None], Visibility.causal(len(item.ids)))
    mask = prepare(
        visibility,
        visibility,
        causal=True,
        q_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        dtype=jnp.float32,
    )
    for i in range(config.num_hidden_layers):
        block = layer(decoder.layers, i)
        args, kwargs, out = seen[i]
        x = jnp.asarray((args[0] if args else kwargs["hidden_states"]).numpy())
        q, k, v = block.project(x, (cos, sin))
        scale = config.head_dim**-0.5
        heads = attention(q, k, v, mask, scale=scale)
        assert difference(block.finish(x, heads), first(out)) <= TOLERANCE
        mlp_in = jnp.asarray(seen[f"mlp{i}"][0][0].numpy())
        assert difference(block.mlp(mlp_in), first(seen[f"mlp{i}"][2])) <= TOLERANCE
    x = jnp.asarray(seen["norm"][0][0].numpy())
    assert difference(decoder.norm(x), first(seen["norm"][2])) <= TOLERANCE


def test_bfloat16_is_as_close_to_float32_as_transformers_is(pairs, sample):
    pair = pairs("plain")
    item = sample(pair.ours.config, MEDIA["mixed"])
    positions = positions_of(pair.ours.config, item)
    exact = their_logits(pair.theirs, item, positions)
    half = vo3.models.load(pair.folder, dtype=jnp.bfloat16)
    ours = vo3.models.run(half, item.ids, patches=item.patches, grids=item.grids)
    reduced = copy.deepcopy(pair.theirs).to(torch.bfloat16)
    theirs = their_logits(_Cast(reduced), item, positions)
    assert ours.dtype == jnp.float32
    ours_error = np.abs(np.asarray(ours) - exact).mean()
    assert 0 < ours_error <= 1.1 * np.abs(theirs - exact).mean()


class _Cast:
    """A bfloat16 model whose logits are f32 in numpy."""

    def __init__(self, model):
        self.model = model

    def __call__(self, **kwargs):
        out = self.model(**kwargs)
        out.logits = out.logits.float()
        return out
