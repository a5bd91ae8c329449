"""`load`, `run` and our own checkpoints."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

import vo3.models
from pallas_kernels import Visibility
from vo3.models import CheckpointError, loading
from vo3.video import CropPolicy


def leaves(model) -> list[jax.Array]:
    return jax.tree.leaves(nnx.state(model))


# ---------------------------------------------------------------- our own checkpoints


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_orbax_there_and_back_is_bitwise(tiny_hf_checkpoint, tmp_path, dtype):
    model = vo3.models.load(tiny_hf_checkpoint, dtype=dtype)
    vo3.models.save_orbax(model, tmp_path / "ours")
    again = vo3.models.load(tmp_path / "ours")
    assert again.config == model.config and again.dtype == jnp.dtype(dtype)
    assert all(
        a.dtype == b.dtype and (a == b).all()
        for a, b in zip(leaves(model), leaves(again), strict=True)
    )
    assert again.tokenizer.encode("look") == model.tokenizer.encode("look")
    with pytest.raises(CheckpointError, match="already holds params"):
        vo3.models.save_orbax(model, tmp_path / "ours")


def test_orbax_restores_into_the_target_sharding(pairs, tmp_path):
    vo3.models.save_orbax(pairs("plain").ours, tmp_path / "ours")
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "model"))
    spread = vo3.models.load(tmp_path / "ours", mesh=mesh)
    assert spread.decoder.layers.q.kernel[...].sharding.spec[1:] == ("fsdp", "model")
    pairs_of_leaves = zip(leaves(pairs("plain").ours), leaves(spread), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs_of_leaves)


def test_orbax_parameters_of_another_architecture(pairs, tmp_path):
    vo3.models.save_orbax(pairs("plain").ours, tmp_path / "ours")
    shutil.copy(pairs("tied").folder / "config.json", tmp_path / "ours" / "config.json")
    with pytest.raises(CheckpointError, match=r"params does not hold the parameters"):
        vo3.models.load(tmp_path / "ours")


def test_a_hugging_face_directory_may_lie_in_a_bucket(tiny_hf_checkpoint, bucket):
    model = vo3.models.load(tiny_hf_checkpoint)
    model.save_hf("gs://bucket/exported")
    assert "/bucket/exported/config.json" in bucket.store
    again = vo3.models.load("gs://bucket/exported")
    assert again.config == model.config
    assert all((a == b).all() for a, b in zip(leaves(model), leaves(again), strict=True))
    assert again.tokenizer.encode("look") == model.tokenizer.encode("look")


# ---------------------------------------------------------------- settings


@pytest.fixture
def folder(tiny_hf_checkpoint, tmp_path):
    for file in tiny_hf_checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def test_defaults_without_settings(folder):
    model = vo3.models.load(folder)
    assert model.crop_policy == CropPolicy(recipe="eval")
    assert model.prompt_pack.name == "default"
    assert model.config.mrope_time == "constant"
    assert model.source == folder


def test_settings_of_the_directory(folder, tmp_path):
    policy = CropPolicy(recipe="rl", max_crop_frames=4)
    pack = {**vo3.models.load(folder).prompt_pack.to_dict(), "name": "mine"}
    (folder / "mine.yaml").write_text(json.dumps(pack))  # JSON is YAML
    settings = {"crop_policy": policy.to_json(), "prompt_pack": "mine.yaml", "mrope_time": "exact"}
    (folder / "vo3.json").write_text(json.dumps(settings))
    model = vo3.models.load(folder)
    assert model.crop_policy == policy
    assert model.prompt_pack.name == "mine"
    assert model.config.mrope_time == "exact"
    assert vo3.models.load(folder, mrope_time="hf_int").config.mrope_time == "hf_int"
    model.save_hf(tmp_path / "copy")  # with the pack that its settings name
    assert vo3.models.load(tmp_path / "copy").prompt_pack.name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("7", "no JSON object"),
        ('["dialect"]', "no JSON object"),
        ('{"policy": {}}', "unknown keys"),
        ('{"dialect": ["longvt"]}', "dialect is .* must be a text"),
        ('{"crop_policy": "rl"}', "crop_policy is .* must be an object"),
        ('{"mrope_time": "seconds"}', "mrope_time is 'seconds'; one of"),
    ],
)
def test_broken_settings(folder, text, message):
    (folder / "vo3.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"vo3\.json.*{message}"):
        vo3.models.load(folder)


def test_companions_may_be_replaced(folder):
    model = vo3.models.load(folder)
    model.tokenizer = model.crop_policy = model.prompt_pack = "mine"
    assert (model.tokenizer, model.crop_policy, model.prompt_pack) == ("mine",) * 3
    graph, params = nnx.split(model)
    hash(graph)
    assert nnx.merge(graph, params).tokenizer == "mine"


def test_no_tokenizer(pairs):
    with pytest.raises(CheckpointError, match=r"no tokenizer files.*copy tokenizer\.json"):
        _ = pairs("plain").ours.tokenizer


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"type": "none"}}'])
def test_a_broken_tokenizer(folder, text):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer in .* cannot be read.*; copy"):
        _ = vo3.models.load(folder).tokenizer


def test_a_name_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(loading.NAMES, "clueworld", type(loading.NAMES["clueworld"])(tmp_path))
    with pytest.raises(CheckpointError, match="make clueworld"):
        vo3.models.load("clueworld")


def test_the_embedded_model_before_and_after_rl():
    after, before = vo3.models.load("clueworld"), vo3.models.load("clueworld-sft")
    assert after.config == before.config and after.crop_policy == before.crop_policy
    assert after.prompt_pack.name == before.prompt_pack.name == "clueworld"
    changed = [not np.array_equal(a, b) for a, b in zip(leaves(after), leaves(before), strict=True)]
    assert sum(changed) > len(changed) / 2


# ---------------------------------------------------------------- run


def test_run_with_a_visibility(pairs):
    model = pairs("plain").ours
    ids = np.arange(1, 31)
    both = np.asarray(vo3.models.run(model, ids, visibility=Visibility.packed([12, 18])))
    assert both.dtype == np.float32 and both.shape == (30, model.config.text.vocab_size)
    assert np.abs(both[:12] - np.asarray(vo3.models.run(model, ids[:12]))).max() <= 1e-5
    # The second document's positions go on from the first's: rotation sees distances only.
    assert np.abs(both[12:] - np.asarray(vo3.models.run(model, ids[12:]))).max() <= 1e-4


def test_run_keeps_no_hold_of_its_arguments(pairs, sample):
    model = pairs("plain").ours
    item = sample(model.config, [("video", (1, 4, 4))])
    out = vo3.models.run(model, item.ids, patches=item.patches, grids=item.grids)
    kept = item.patches.copy()
    item.patches[:] = 1e6
    item.ids[:] = 0
    again = vo3.models.run(
        model, sample(model.config, [("video", (1, 4, 4))]).ids, patches=kept, grids=item.grids
    )
    assert np.array_equal(out, again)


def test_run_in_strict_types(pairs, sample, strict_dtypes):
    model = pairs("plain").ours
    item = sample(model.config, [("video", (1, 4, 4))])
    vo3.models.run(model, item.ids.tolist(), patches=item.patches.tolist(), grids=item.grids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": []}, "one sequence"),
        ({"ids": [[1, 2]]}, "one sequence"),
        ({"ids": [1, 256]}, r"\[1, 256\].*256 tokens"),
        ({"ids": [-1, 2]}, "vocabulary"),
        ({"patches": None}, "go together"),
        ({"grids": None}, "go together"),
        ({"patches": np.zeros((8, 1176))}, r"\[8, 1176\], the grids want \[16, 1176\]"),
        ({"patches": np.zeros((16, 588))}, r"the grids want \[16, 1176\]"),
        ({"grids": [(1, 4, 6)]}, "pads"),
        ({"grids": []}, "pads"),
        ({"visibility": Visibility.causal(4)}, r"fields \[4\]"),
    ],
)
def test_run_refuses_what_does_not_fit(pairs, sample, change, message):
    model = pairs("plain").ours
    item = sample(model.config, [("video", (1, 4, 4))])
    given = {"ids": item.ids, "patches": item.patches, "grids": item.grids, **change}
    with pytest.raises(ValueError, match=message):
        vo3.models.run(model, given.pop("ids"), **given)


def test_a_workdir_of_a_run_is_no_checkpoint(tiny_hf_checkpoint, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text('{"seed": 0}')
    with pytest.raises(CheckpointError, match=r"is the workdir of a training run.*`vo3 convert "):
        vo3.models.load(tmp_path)
    shutil.copytree(tiny_hf_checkpoint, tmp_path / "export")
    with pytest.raises(CheckpointError, match=r"training run, no checkpoint; give .*export"):
        vo3.models.load(tmp_path)
