"""Configs: the published sizes, both layouts, and what is refused."""

from __future__ import annotations

import copy
import json

import pytest

from vo3.models import hf_io
from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig

pytestmark = pytest.mark.quick

# What the Hub's files say, by size; the keys they share are in `published`.
SIZES = {
    "3B": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_window_layers": 70, "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_window_layers": 28, "tie_word_embeddings": False,
    },
    "32B": {
        "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
        "num_key_value_heads": 8, "vocab_size": 152064, "max_window_layers": 64, "tie_word_embeddings": False,
    },
    "72B": {
        "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 152064, "max_window_layers": 80, "tie_word_embeddings": False,
    },
}  # fmt: skip
VISION_FFN = {"3B": 3420, "7B": 3420, "32B": 3456, "72B": 3456}
# Parameters of the published weights.
PARAMETERS = {
    "3B": 3_754_622_976,
    "7B": 8_292_166_656,
    "32B": 33_452_718_336,
    "72B": 73_410_777_344,
}


def published(size: str) -> dict:
    """The Hub's config.json of a size."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "model_type": "qwen2_5_vl",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        **SIZES[size],
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": VISION_FFN[size],
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": SIZES[size]["hidden_size"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    }


def nested(size: str) -> dict:
    """The same as transformers 5 writes it."""
    flat = published(size)
    text = {k: flat.pop(k) for k in list(flat) if k in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "max_window_layers", "hidden_act", "initializer_range", "max_position_embeddings",
        "rms_norm_eps", "sliding_window", "use_cache", "use_sliding_window", "attention_dropout",
        "bos_token_id", "eos_token_id",
    )}  # fmt: skip
    rope = flat.pop("rope_scaling")["mrope_section"]
    text["rope_parameters"] = {
        "rope_type": "default",
        "mrope_section": rope,
        "rope_theta": flat.pop("rope_theta"),
    }
    text["layer_types"] = ["full_attention"] * text["num_hidden_layers"]
    return {**flat, "dtype": flat.pop("torch_dtype"), "text_config": text}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
    config = Qwen2_5_VLConfig.from_hf(published(size))
    wanted = SIZES[size]
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"):
        assert getattr(config.text, name) == wanted[name]
    assert config.text.head_dim == 128 and config.vision.head_dim == 80
    assert config.text.mrope_section == (16, 24, 24)
    assert config.vision.intermediate_size == VISION_FFN[size]
    assert config.vision.patch_dim == 1176
    assert config.tie_word_embeddings is wanted["tie_word_embeddings"]
    assert config.mrope_time == "constant"


@pytest.mark.parametrize("size", SIZES)
def test_parameter_count_is_that_of_the_published_weights(size):
    shapes = hf_io.expected(Qwen2_5_VLConfig.from_hf(published(size)))
    total = 0
    for shape in shapes.values():
        count = 1
        for n in shape:
            count *= n
        total += count
    assert total == PARAMETERS[size]


@pytest.mark.parametrize("size", SIZES)
def test_flat_and_nested_files_say_the_same(size):
    assert Qwen2_5_VLConfig.from_hf(nested(size)) == Qwen2_5_VLConfig.from_hf(published(size))


@pytest.mark.parametrize("layout", ["flat", "nested"])
@pytest.mark.parametrize("size", SIZES)
def test_round_trip(size, layout):
    config = Qwen2_5_VLConfig.from_hf(published(size))
    written = json.loads(json.dumps(config.to_hf(layout=layout)))
    assert Qwen2_5_VLConfig.from_hf(written) == config


def test_the_flat_file_keeps_what_the_hub_has():
    written = Qwen2_5_VLConfig.from_hf(published("7B")).to_hf()
    wanted = published("7B")
    for name in ("transformers_version", "vision_token_id"):
        del wanted[name]
    vision = wanted.pop("vision_config")
    assert {k: written.get(k) for k in wanted} == wanted
    assert {k: written["vision_config"].get(k) for k in vision} == vision


def test_both_layouts_at_once_as_transformers_4_5x_writes():
    data = nested("3B")
    data.update(SIZES["3B"], rms_norm_eps=1e-6, hidden_act="silu", rope_theta=1e6)
    data["text_config"] |= {
        "image_token_id": 151655,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    assert Qwen2_5_VLConfig.from_hf(data) == Qwen2_5_VLConfig.from_hf(published("3B"))
    data["text_config"]["hidden_size"] = 1024
    with pytest.raises(ValueError, match=r"contradict.*hidden_size: 2048 and 1024"):
        Qwen2_5_VLConfig.from_hf(data)


def test_vision_keys_that_transformers_4_49_leaves_out():
    data = published("7B")
    data["vision_config"] = {
        "hidden_size": 1280, "in_chans": 3, "model_type": "qwen2_5_vl", "spatial_patch_size": 14,
        "tokens_per_second": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip
    assert Qwen2_5_VLConfig.from_hf(data) == Qwen2_5_VLConfig.from_hf(published("7B"))


@pytest.mark.parametrize(
    "name",
    ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
     "num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling", "vision_config"],
)  # fmt: skip
def test_a_missing_key_is_named(name):
    data = published("7B")
    del data[name]
    with pytest.raises(ValueError, match=rf"lacks.*{name}"):
        Qwen2_5_VLConfig.from_hf(data)


def test_missing_keys_of_the_vision_tower_and_the_sections_are_named():
    data = published("7B")
    del data["vision_config"]["hidden_size"]
    with pytest.raises(ValueError, match=r"vision_config lacks the keys \['hidden_size'\]"):
        Qwen2_5_VLConfig.from_hf(data)
    data = published("7B")
    del data["rope_scaling"]["mrope_section"]
    with pytest.raises(ValueError, match="mrope_section"):
        Qwen2_5_VLConfig.from_hf(data)


@pytest.mark.parametrize("place", [(), ("vision_config",)])
def test_unknown_keys_are_named(place):
    data = target = published("7B")
    for part in place:
        target = target[part]
    target |= {"num_experts": 8, "attention_gate": True}
    with pytest.raises(ValueError, match=r"unknown keys \['attention_gate', 'num_experts'\]"):
        Qwen2_5_VLConfig.from_hf(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mrope_section": [16, 24, 24]}}, "yarn"),
        ({"head_dim": 64}, "head_dim"),
        ({"layer_types": ["sliding_attention"] * 28}, "layer_types"),
    ],
)
def test_what_no_checkpoint_uses_is_not_implemented(change, message):
    with pytest.raises(NotImplementedError, match=message):
        Qwen2_5_VLConfig.from_hf({**published("7B"), **change})


def test_quantised_weights_are_refused_in_both_layouts():
    nested = Qwen2_5_VLConfig.from_hf(published("7B")).to_hf(layout="nested")
    for data in (published("7B"), nested):
        data["quantization_config"] = {"quant_method": "awq", "bits": 4}
        with pytest.raises(NotImplementedError, match=r"quantised \(awq\).*int8"):
            Qwen2_5_VLConfig.from_hf(data)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="qwen3_vl"):
        Qwen2_5_VLConfig.from_hf({**published("7B"), "model_type": "qwen3_vl"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mrope_time": "seconds"}, "mrope_time"),
        ({"remat": "some"}, "remat"),
        ({"image_token_id": 999}, "image_token_id"),
        ({"text": {"num_attention_heads": 5}}, "num_attention_heads"),
        ({"text": {"num_key_value_heads": 0}}, "num_key_value_heads is 0"),
        ({"vision": {"depth": 2.0}}, r"depth is 2\.0"),
        ({"text": {"num_key_value_heads": 3}}, "num_key_value_heads"),
        ({"text": {"mrope_section": (2, 2, 2)}}, "mrope_section"),
        ({"vision": {"num_heads": 5}}, "num_heads"),
        ({"vision": {"fullatt_block_indexes": (7,)}}, "fullatt_block_indexes"),
        ({"vision": {"window_size": 14}}, "window_size"),
        ({"vision": {"out_hidden_size": 32}}, "out_hidden_size"),
    ],
)
def test_contradictory_fields_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Qwen2_5_VLConfig.tiny(**copy.deepcopy(change))
    with pytest.raises(ValueError, match="layout"):
        Qwen2_5_VLConfig.tiny().to_hf(layout="deep")


@pytest.mark.parametrize("given", [4, None])
def test_another_rate_of_positions_is_named(given, caplog):
    """transformers multiplies times by it, and takes 4 where the file lacks it."""
    data = published("7B")
    data["vision_config"].pop("tokens_per_second")
    if given is not None:
        data["vision_config"]["tokens_per_second"] = given
    config = Qwen2_5_VLConfig.from_hf(data)
    assert "tokens_per_second is 4" in caplog.text
    assert config.to_hf()["vision_config"]["tokens_per_second"] == 4
    caplog.clear()
    Qwen2_5_VLConfig.from_hf(published("7B"))
    assert not caplog.records
