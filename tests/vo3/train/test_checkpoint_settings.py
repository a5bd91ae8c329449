"""What a run takes from the checkpoint it starts from, and says in the one it ends with: time axis, size of tokens."""

import json
import shutil

import jax
import pytest

import vo3.models
from vo3.train import finished, sharding
from vo3.train.config import ConfigError, defaults, override
from vo3.train.row_feed import crop_policy_of
from vo3.train.state import architecture, initial_params, trainable


@pytest.fixture
def folder(tiny_hf_checkpoint, tmp_path):
    return shutil.copytree(tiny_hf_checkpoint, tmp_path / "start")


def config(folder, **changes):
    return override(defaults(), model=str(folder), dtype="float32", steps=1, **changes)


def says(folder, **settings):
    (folder / "vo3.json").write_text(json.dumps(settings))


def test_the_time_axis_is_the_configurations(folder):
    for time in ("constant", "hf_int", "exact"):
        assert architecture(config(folder, **{"data.mrope_time": time})).mrope_time == time
    says(
        folder, mrope_time="constant"
    )  # trained so and asked so: how the published models were made
    assert architecture(config(folder, **{"data.mrope_time": "hf_int"})).mrope_time == "hf_int"
    says(folder, mrope_time="exact")
    with pytest.raises(
        ConfigError,
        match=r"is 'constant' and .*vo3\.json.* says 'exact'; set data\.mrope_time=exact",
    ):
        architecture(config(folder))
    assert architecture(config(folder, **{"data.mrope_time": "exact"})).mrope_time == "exact"


@pytest.mark.parametrize(("time", "asked"), [("exact", "exact"), ("hf_int", "constant")])
def test_what_is_exported_is_asked_as_it_was_trained(folder, tmp_path, time, asked):
    says(folder, prompt_pack="clueworld")
    settings = config(folder, **{"data.mrope_time": time})
    run = trainable(settings, sharding.make_mesh(settings, jax.devices()[:1]))
    finished.export(run, initial_params(run), tmp_path / "export")
    made = vo3.models.load(tmp_path / "export")
    assert made.config.mrope_time == asked
    assert made.prompt_pack.name == "clueworld"


def test_a_crop_recipe_for_other_tokens_is_refused(folder):
    assert crop_policy_of(config(folder)).recipe == "sft"
    with pytest.raises(
        ConfigError, match=r"data\.crop_policy: the crop recipe 'qwen3_vl' plans tokens of 32"
    ):
        crop_policy_of(config(folder, **{"data.crop_policy": "qwen3_vl"}))
