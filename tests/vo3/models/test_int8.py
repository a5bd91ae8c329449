"""int8 weights: the values against the library's and by hand, reading block by block, and what they do to the logits."""

from __future__ import annotations

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx
from jax.sharding import Mesh

import vo3.models
from vo3.chat import encode
from vo3.clueworld import tasks, trajectories
from vo3.clueworld.views import render
from vo3.clueworld.world import make_world
from vo3.models import CheckpointError, hf_io, hf_pieces
from vo3.models import safetensors_io as st
from vo3.models.qwen2_5_vl import int8
from vo3.video import patchify


def flat(model) -> dict[str, jax.Array]:
    return hf_io.flatten(nnx.state(model))


def matrices(values: dict) -> list[str]:
    """The paths of what is to be int8."""
    inside = ("decoder.", "unembedding.")
    return [p for p in values if p.startswith(inside) and p.endswith("kernel")]


def dense(values: dict, path: str) -> np.ndarray:
    """The kernel that is meant, in float64."""
    scale = np.asarray(values[path.removesuffix("kernel") + "scale"], np.float64)
    return np.asarray(values[path], np.float64) * scale[..., None, :]


@pytest.fixture
def blocks(monkeypatch, pairs) -> list[int]:
    """Rows per block so few that matrices take several; what was read of matrices, in rows."""
    pairs("plain")  # what making it reads does not count
    monkeypatch.setattr(hf_pieces, "INT8_ROWS", 24)
    read, seen = st.read, []

    def noted(tensor, rows=slice(None)):
        if tensor.name.endswith("_proj.weight") and "visual" not in tensor.name:
            seen.append(len(range(*rows.indices(tensor.shape[0]))))
        return read(tensor, rows)

    monkeypatch.setattr(st, "read", noted)
    return seen


def test_values_are_within_half_a_step_and_the_librarys(pairs):
    before = flat(pairs("plain").ours)
    after = flat(vo3.models.load(pairs("plain").folder, quantize="int8"))
    names = matrices(before)
    assert len(names) == 8 and "unembedding.kernel" in names
    for path, value in before.items():
        if path not in names:
            assert np.array_equal(after[path], value), path
            continue
        kernel, scale = after[path], after[path.removesuffix("kernel") + "scale"]
        assert kernel.dtype == jnp.int8 and scale.dtype == jnp.float32
        assert scale.shape == (*value.shape[:-2], value.shape[-1])
        wrong = np.abs(dense(after, path) - np.asarray(value, np.float64))
        assert (wrong <= 0.501 * np.asarray(scale)[..., None, :]).all(), path
        # A channel's largest weight is at the end of the range: no step is given away.
        assert (np.abs(np.asarray(kernel, int)).max(-2) >= 127).all(), path
        channels = tuple(a for a in range(value.ndim) if a != value.ndim - 2)
        theirs = qwix.quantize(value, jnp.int8, channelwise_axes=channels)
        assert np.array_equal(theirs.qvalue, kernel)
        assert np.array_equal(theirs.scale.squeeze(-2), scale)


def test_a_linear_layer_is_the_product_with_the_kernel_that_is_meant(pairs, strict_dtypes):
    layer = pairs("plain").ours.unembedding
    short = int8.Int8Linear(layer)
    x = np.random.default_rng(0).normal(size=(2, 5, 64)).astype(np.float32)
    kernel = dense({"kernel": short.kernel[...], "scale": short.scale[...]}, "kernel")
    assert np.abs(np.asarray(short(jnp.asarray(x))) - x.astype(np.float64) @ kernel).max() <= 1e-4
    half = int8.Int8Linear(layer)
    half.dtype = jnp.bfloat16
    y = half(jnp.asarray(x))
    assert y.dtype == jnp.bfloat16
    assert np.abs(np.asarray(y, np.float64) - x.astype(np.float64) @ kernel).max() <= 0.03


def test_no_more_than_a_block_of_a_matrix_is_read_and_nothing_twice(pairs, blocks):
    whole = flat(vo3.models.load(pairs("plain").folder, quantize="int8"))
    layers, outputs = 3, 64 + 32 + 32 + 64 + 128 + 128 + 64
    assert max(blocks) <= 24 and sum(blocks) == layers * outputs
    hf_pieces.INT8_ROWS = 4096
    again = flat(vo3.models.load(pairs("plain").folder, quantize="int8"))
    assert all(np.array_equal(whole[path], again[path]) for path in again)


def test_a_mesh_spreads_kernels_and_scales(pairs, blocks):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "model"))
    alone = vo3.models.load(pairs("plain").folder, quantize="int8")
    spread = vo3.models.load(pairs("plain").folder, quantize="int8", mesh=mesh)
    ours, theirs = flat(alone), flat(spread)
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)
    q, k = spread.decoder.layers.q, spread.decoder.layers.mlp.down
    spec = jax.sharding.PartitionSpec
    assert q.kernel[...].sharding.spec == spec(None, ("fsdp",), ("model",))
    assert q.scale[...].sharding.spec == spec(None, ("model",))
    assert k.scale[...].sharding.spec == spec(None, ("fsdp",))
    ids = np.arange(1, 20)
    near = np.asarray(vo3.models.run(spread, ids)) - np.asarray(vo3.models.run(alone, ids))
    assert np.abs(near).max() <= 1e-4


@pytest.mark.parametrize("name", ["plain", "tied"])
def test_logits_of_a_random_model(pairs, sample, name):
    """Random weights are the worst case: nothing is learned that could be robust."""
    media = [("video", (2, 8, 12)), ("image", (1, 4, 6))]
    got = sample(pairs(name).ours.config, media, seed=3)
    run = lambda model: np.asarray(
        vo3.models.run(model, got.ids, patches=got.patches, grids=got.grids)
    )
    exact = run(pairs(name).ours)
    short = run(vo3.models.load(pairs(name).folder, quantize="int8"))
    wrong = np.sqrt(np.mean((short - exact) ** 2)) / exact.std()
    assert 0 < wrong <= 0.03, wrong


def test_logits_of_the_embedded_model():
    """On what a conversation should say, from the question to the answer, both say the same."""
    exact = vo3.models.load("clueworld")
    short = vo3.models.load("clueworld", quantize="int8")
    world, rng = make_world(2031), np.random.default_rng(0)
    question = tasks.KINDS["sum"](world, rng)
    task = tasks.make_task(world, question, video="", task_id="", rng=rng, options=True)
    said = trajectories.make_trajectory(
        world, question, task, pack=exact.prompt_pack, policy=exact.crop_policy
    )
    encoded = encode(list(said.turns), exact.tokenizer)
    shown = [patchify(render(world, clip, scale=1)) for clip in said.observations]
    media = {"patches": np.concatenate([p for p, _ in shown]), "grids": [g for _, g in shown]}
    before, after = (
        np.asarray(vo3.models.run(m, encoded.ids, **media))[np.flatnonzero(encoded.loss_mask) - 1]
        for m in (exact, short)
    )
    wrong = np.sqrt(np.mean((after - before) ** 2)) / before.std()
    same = np.mean(after.argmax(-1) == before.argmax(-1))
    assert len(before) > 40 and 0 < wrong <= 0.03 and same >= 0.97, (wrong, same)


def test_it_is_not_saved(pairs, tmp_path):
    short = vo3.models.load(pairs("plain").folder, quantize="int8")
    with pytest.raises(CheckpointError, match="int8 weights are not written"):
        short.save_hf(tmp_path / "hf")
    with pytest.raises(CheckpointError, match="int8 weights are not written"):
        vo3.models.save_orbax(short, tmp_path / "orbax")


def test_what_cannot_be_int8_says_why(pairs, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="quantize='int4'"):
        vo3.models.load(pairs("plain").folder, quantize="int4")
    vo3.models.save_orbax(pairs("plain").ours, tmp_path / "orbax")
    with pytest.raises(CheckpointError, match="vo3 convert"):
        vo3.models.load(tmp_path / "orbax", quantize="int8")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "qwix":
            raise ImportError("No module named 'qwix'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(int8.QwixMissing, match=r"pip install -e '\.\[int8\]'"):
        vo3.models.load(pairs("plain").folder, quantize="int8")
