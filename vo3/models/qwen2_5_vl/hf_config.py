"""`config.json` of Hugging Face, read and written.

Two layouts are met: flat (the Hub's files: the decoder's keys at the top) and nested (`text_config` with
`rope_parameters`, as transformers writes since 5). Files written by transformers 4.49 leave out vision keys that equal
that library's defaults, so those defaults are part of the format and stand here.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Literal

from vo3.chat.positions import TOKENS_PER_SECOND
from vo3.models.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig

_log = logging.getLogger(__name__)

Layout = Literal["flat", "nested"]

_ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
_TEXT_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
)
_TEXT_DEFAULTS = {"max_position_embeddings": 32_768, "initializer_range": 0.02}
_VISION_REQUIRED = ("hidden_size",)
_VISION_DEFAULTS = {
    "depth": 32,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (7, 15, 23, 31),
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 4,
    "window_size": 112,
    "initializer_range": 0.02,
}
_MEDIA_TOKENS = {
    "image_token_id": 151_655,
    "video_token_id": 151_656,
    "vision_start_token_id": 151_652,
    "vision_end_token_id": 151_653,
}
_END_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys with one supported value; anything else would change the computation.
_ONLY = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "attention_bias": True,
}
# Checked or read elsewhere, or without influence on the computation.
_TEXT_KNOWN = {
    *_TEXT_REQUIRED,
    *_TEXT_DEFAULTS,
    *_ONLY,
    *_MEDIA_TOKENS,
    *_END_TOKENS,
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "layer_types",
    "head_dim",
    "tie_word_embeddings",
    "attention_dropout",
    "sliding_window",
    "max_window_layers",
    "use_cache",
    "vision_token_id",
    "quantization_config",
}
_VISION_KNOWN = {
    *_VISION_REQUIRED,
    *_VISION_DEFAULTS,
    *_ONLY,
    "in_chans",
    "spatial_patch_size",
    "rope_parameters",
    "quantization_config",
}
_TOP_KNOWN = {"text_config", "vision_config", "auto_map"}
# Attributes of every Hugging Face config (transformers 4 wrote many of them); none changes this model.
# fmt: off
_GENERIC = frozenset((
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
    "add_cross_attention", "architectures", "attn_implementation", "bad_words_ids",
    "begin_suppress_tokens", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "id2label", "is_decoder",
    "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length",
    "model_type", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores",
    "prefix", "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version",
    "typical_p", "unsloth_fixed", "unsloth_version", "use_bfloat16",
))
# fmt: on


def from_hf(data: Mapping[str, Any], **options: Any) -> Qwen2_5_VLConfig:
    """A config from the contents of a `config.json`.

    Args:
      data: the parsed file, flat or nested.
      **options: fields of `Qwen2_5_VLConfig` that the file does not know (`mrope_time`, `remat`, ...).

    Raises:
      ValueError: another model type; missing, unknown or contradicting keys, each named.
      NotImplementedError: a feature that no Qwen2.5-VL checkpoint uses (sliding windows, scaled rotary angles, ...).
    """
    if data.get("model_type") != "qwen2_5_vl":
        raise ValueError(
            f"config.json has model_type {data.get('model_type')!r}, wanted 'qwen2_5_vl'; "
            "only Qwen2.5-VL checkpoints can be read"
        )
    nested = isinstance(data.get("text_config"), Mapping)
    text = (
        dict(data["text_config"])
        if nested
        else {k: v for k, v in data.items() if k not in _TOP_KNOWN}
    )
    vision = data.get("vision_config")
    if not isinstance(vision, Mapping):
        raise ValueError(
            "config.json lacks the key 'vision_config'; take the file of the original checkpoint"
        )
    if "in_chans" in vision:
        vision = {"in_channels": vision["in_chans"], **vision}
    _reject_unknown("config.json", data, _TEXT_KNOWN | _TOP_KNOWN)
    if nested:
        _reject_unknown("text_config", text, _TEXT_KNOWN)
        _reject_contradictions(data, text)
    _reject_unknown("vision_config", vision, _VISION_KNOWN)
    _reject_unsupported("config.json", data)
    if nested:
        _reject_unsupported("text_config", text)
    _reject_unsupported("vision_config", vision)
    tied = bool(data.get("tie_word_embeddings", False)) or bool(
        text.get("tie_word_embeddings", False)
    )
    fields = _fields(vision, "vision_config", _VISION_REQUIRED, _VISION_DEFAULTS)
    if fields["tokens_per_second"] != TOKENS_PER_SECOND:
        _log.warning(
            "vision_config.tokens_per_second is %s (4 where the file lacks it); M-RoPE positions here have %s a second, as the published "
            "checkpoints: another model than transformers runs, unless it was trained so",
            fields["tokens_per_second"],
            TOKENS_PER_SECOND,
        )
    # The end tokens of nested files stand in text_config, those of flat files at the top.
    ends = {name: _tuple(text.get(name, data.get(name))) for name in _END_TOKENS}
    return Qwen2_5_VLConfig(
        text=_text(text, "text_config" if nested else "config.json"),
        vision=VisionConfig(**fields),
        **{name: int(data.get(name, default)) for name, default in _MEDIA_TOKENS.items()},
        tie_word_embeddings=tied,
        **ends,
        **options,
    )


def to_hf(
    config: Qwen2_5_VLConfig, *, layout: Layout = "flat", dtype: str = "bfloat16"
) -> dict[str, Any]:
    """The contents of a `config.json` that transformers, and whatever reads the Hub's files, loads.

    Args:
      config: to write.
      layout: "flat" as on the Hub, "nested" as transformers writes since 5.
      dtype: the weights' dtype, recorded for loaders.

    Raises:
      ValueError: an unknown layout.
    """
    if layout not in ("flat", "nested"):
        raise ValueError(f"layout {layout!r}; one of 'flat', 'nested'")
    text = dataclasses.asdict(config.text)
    section, theta = list(text.pop("mrope_section")), text.pop("rope_theta")
    text |= {
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
        "use_sliding_window": False,
    }
    # Some loaders index these two without asking whether windows are used.
    text |= {"sliding_window": 32_768, "max_window_layers": config.text.num_hidden_layers}
    ends = {name: _list(getattr(config, name)) for name in _END_TOKENS}
    text |= {name: value for name, value in ends.items() if value is not None}
    vision = dataclasses.asdict(config.vision)
    vision.pop("rope_theta")
    vision["fullatt_block_indexes"] = list(vision["fullatt_block_indexes"])
    # Readers of the Hub's files look for the first name, transformers for the second.
    vision |= {"in_chans": config.vision.in_channels, "hidden_act": "silu"}
    vision |= {"spatial_patch_size": config.vision.patch_size}
    top = {
        "architectures": [_ARCHITECTURE],
        "model_type": "qwen2_5_vl",
        **{name: getattr(config, name) for name in _MEDIA_TOKENS},
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
    }
    if layout == "flat":
        vision["model_type"] = "qwen2_5_vl"
        rope = {"rope_theta": theta, "rope_scaling": {"type": "mrope", "mrope_section": section}}
        return {**top, **text, **rope, "vision_config": vision}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": theta,
        "mrope_section": section,
    }
    text["model_type"], vision["model_type"] = "qwen2_5_vl_text", "qwen2_5_vl_vision"
    return {**top, "text_config": text, "vision_config": vision}


def _text(text: Mapping[str, Any], where: str) -> TextConfig:
    # transformers 4.57 and earlier: rope_theta and rope_scaling; later: rope_parameters holds both.
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(rope, Mapping):
        raise ValueError(
            f"{where} lacks the key 'rope_scaling' (or 'rope_parameters') with 'mrope_section'"
        )
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in ("default", "mrope"):
        raise NotImplementedError(
            f"{where}: rotary type {kind!r}; only unscaled M-RoPE is supported"
        )
    if "mrope_section" not in rope:
        raise ValueError(f"{where} lacks 'mrope_section' in its rotary parameters")
    theta = rope.get("rope_theta", text.get("rope_theta"))
    if theta is None:
        raise ValueError(f"{where} lacks the key 'rope_theta'")
    fields = _fields(text, where, _TEXT_REQUIRED, _TEXT_DEFAULTS)
    result = TextConfig(
        **fields, rope_theta=float(theta), mrope_section=tuple(rope["mrope_section"])
    )
    if text.get("head_dim") not in (None, result.head_dim):
        raise NotImplementedError(
            f"{where}: head_dim {text['head_dim']} differs from hidden_size / num_attention_heads = {result.head_dim}"
        )
    return result


def _fields(
    data: Mapping[str, Any], where: str, required: tuple[str, ...], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    missing = [name for name in required if data.get(name) is None]
    if missing:
        raise ValueError(
            f"{where} lacks the keys {missing}; take the file of the original checkpoint"
        )
    values = {name: data[name] for name in required}
    return values | {name: _tuple(data.get(name, default)) for name, default in defaults.items()}


def _reject_unknown(where: str, data: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(data) - known - _GENERIC)
    if unknown:
        raise ValueError(
            f"{where} has unknown keys {unknown}; remove them if they do not change the model's computation"
        )


def _reject_contradictions(data: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    names = sorted((set(_TEXT_REQUIRED) | set(_MEDIA_TOKENS)) & set(data) & set(text))
    wrong = [
        f"{n}: {data[n]!r} and {text[n]!r}"
        for n in names
        if text[n] is not None and data[n] != text[n]
    ]
    if wrong:
        raise ValueError(
            f"config.json and its text_config contradict each other in {wrong}; remove one of the two"
        )


def _reject_unsupported(part: str, data: Mapping[str, Any]) -> None:
    if quantised := data.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        raise NotImplementedError(
            f"{part}: quantization_config says that the weights are quantised ({method}); take the checkpoint before "
            "quantisation, quantize='int8' makes it small while it is read"
        )
    for name, only in _ONLY.items():
        if name in data and data[name] not in (only, None):
            raise NotImplementedError(
                f"{part}: {name} is {data[name]!r}; only {only!r} is supported"
            )
    if set(data.get("layer_types") or ()) - {"full_attention"}:
        raise NotImplementedError(
            f"{part}: layer_types {sorted(set(data['layer_types']))}; only full_attention"
        )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
