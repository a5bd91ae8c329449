"""Coming from LLaMA-Factory or verl: every key of their YAML files as ours, or why there is none.

    vo3 convert-config examples/video_o3_sft_stage1.yaml --gpus 32 --out configs/mine.py

A key that is not known is named and nothing is written: what is passed over silently would train something else.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

import yaml
from etils import epath

from vo3.rewards import RewardPolicy
from vo3.rollout.policy import RolloutPolicy
from vo3.train import config as config_lib
from vo3.train.config import ConfigError
from vo3.train.foreign_keys import LLAMA_FACTORY, VERL, VERL_SECTIONS, Rule


@dataclasses.dataclass(frozen=True)
class Line:
    """One foreign key in the report: its value, what it is here (empty: nothing), and a remark."""

    theirs: str
    given: Any
    ours: str
    why: str


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A converted file.

    Attributes:
      kind: "LLaMA-Factory" or "verl".
      changes: dotted key of our training config -> value, where it differs from the default.
      policies: `RolloutPolicy.x`, `RewardPolicy.x` -> value, where it differs from the default.
      workdir: the original's output directory, for --workdir; empty if it names none.
      lines: the report, one a foreign key.
    """

    kind: str
    changes: dict[str, Any]
    policies: dict[str, Any]
    workdir: str
    lines: tuple[Line, ...]


def read(path: epath.PathLike, *, gpus: int | None = None) -> Conversion:
    """Converts a YAML file; see `convert`.

    Raises:
      ConfigError: the file cannot be read, is no mapping, or cannot be converted.
    """
    path = epath.Path(path)
    try:
        data = yaml.load(path.read_text(), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(data, Mapping) or not data:
        raise ConfigError(f"{path} holds no keys; give a LLaMA-Factory or verl YAML file")
    return convert(data, gpus=gpus)


class _Loader(yaml.SafeLoader):
    """YAML as those projects read it: `1e-6` is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def convert(data: Mapping[str, Any], *, gpus: int | None = None) -> Conversion:
    """Our settings for a LLaMA-Factory or verl configuration; which of the two is seen from its keys.

    Args:
      data: the file's contents, nested or with dotted keys.
      gpus: of the original run: LLaMA-Factory's files name the batch of one GPU only.

    Raises:
      ConfigError: unknown keys, or values that mean what this trainer does not do; all of them, one a line.
    """
    flat = _flatten(data)
    verl = any(key.startswith(("actor_rollout_ref.", "trainer.", "algorithm.")) for key in flat)
    table, sections = (VERL, VERL_SECTIONS) if verl else (LLAMA_FACTORY, {})
    changes: dict[str, Any] = {}
    lines: list[Line] = []
    faults: list[str] = []
    for key, given in flat.items():
        rule = table.get(key) or next((r for p, r in sections.items() if key.startswith(p)), None)
        if rule is None:
            close = difflib.get_close_matches(key, table, n=1)
            hint = f"; the nearest that is known is {close[0]}" if close else ""
            faults.append(f"unknown key {key}: {given!r}{hint}")
            continue
        try:
            made = _apply(key, rule, given)
        except (TypeError, ValueError) as error:
            faults.append(f"{key}: {given!r}: {error}")
            continue
        changes |= made
        ours = ", ".join(f"{name}={value!r}" for name, value in made.items())
        lines.append(Line(key, given, ours, rule.why))
    if not verl:
        for keys, together in _TOGETHER.items():
            try:
                made = together(flat, gpus)
            except ValueError as error:
                faults.append(str(error))
                continue
            changes |= made
            ours = ", ".join(f"{name}={value!r}" for name, value in made.items())
            lines = [dataclasses.replace(x, ours=ours) if x.theirs in keys else x for x in lines]
    elif flat.get("trainer.project_name") and changes.get("log.wandb"):
        changes["log.wandb"] = flat["trainer.project_name"]
    if faults:
        raise ConfigError("\n".join(faults))
    workdir = flat.get("trainer.default_local_dir" if verl else "output_dir") or ""
    return _conversion("verl" if verl else "LLaMA-Factory", changes, str(workdir), lines)


def _apply(key: str, rule: Rule, given: Any) -> dict[str, Any]:
    if rule.only is not None:
        if given is not None and given not in rule.only:
            values = " or ".join(map(repr, rule.only))
            raise ValueError(f"only {values} can be converted ({rule.why})")
        return {}
    if given is None or not rule.ours:
        return {}
    value = rule.value(given) if rule.value else given
    return value if isinstance(value, dict) else {name: value for name in rule.ours}


def _conversion(kind: str, changes: dict[str, Any], workdir: str, lines: list[Line]) -> Conversion:
    known = config_lib.flatten(config_lib.defaults())
    policies = {"RolloutPolicy": RolloutPolicy("rl"), "RewardPolicy": RewardPolicy()}
    ours, others = {}, {}
    for key, value in changes.items():
        name, _, field = key.partition(".")
        if name in policies:
            if getattr(policies[name], field) != value:
                others[key] = value
        elif isinstance(value, list):
            raise ConfigError(f"{key}: {len(value)} files; join them into one first")
        elif known[key] != value:
            # Whole numbers where the key holds a float, and the reverse of it.
            ours[key] = type(known[key])(value) if isinstance(known[key], int | float) else value
    config_lib.validate(config_lib.override(config_lib.defaults(), **ours), needs_data=False)
    return Conversion(kind, ours, others, workdir, tuple(lines))


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}".removeprefix("+")
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


# ---------------------------------------------------------------- keys that mean something together


def _batch(flat: Mapping[str, Any], gpus: int | None) -> dict[str, Any]:
    per_gpu = flat.get("per_device_train_batch_size")
    if per_gpu is None:
        return {}
    if gpus is None:
        raise ValueError(
            "per_device_train_batch_size is that of one GPU; give --gpus N, those of the original run (32 for the published ones)"
        )
    steps = flat.get("gradient_accumulation_steps") or 1
    return {"data.trajectories_per_step": int(per_gpu) * int(steps) * gpus}


def _frozen(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    # Their defaults: the tower and the projector are frozen, the language model is not.
    frozen = {
        r"^vision\.(?!merger\.)": flat.get("freeze_vision_tower", True),
        r"^vision\.merger\.": flat.get("freeze_multi_modal_projector", True),
        r"^(decoder|embed|unembedding)\.": flat.get("freeze_language_model", False),
    }
    if all(frozen.values()):
        raise ValueError("freeze_*: everything is frozen")
    return {"frozen": tuple(pattern for pattern, yes in frozen.items() if yes)}


def _lora(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    if flat.get("finetuning_type") != "lora":
        return {}
    rank = int(flat.get("lora_rank") or 8)
    changes: dict[str, Any] = {
        "lora.rank": rank,
        "lora.alpha": float(flat.get("lora_alpha") or 2 * rank),
    }
    targets = flat.get("lora_target") or "all"
    names = targets.split(",") if isinstance(targets, str) else list(targets)
    table = {f"{n}_proj": n for n in ("q", "k", "v", "o", "gate", "up", "down")}
    if names != ["all"]:
        unknown = sorted({n.strip() for n in names} - set(table))
        if unknown:
            raise ValueError(
                f"lora_target: {', '.join(unknown)}; all, or some of {', '.join(table)}"
            )
        chosen = "|".join(table[n.strip()] for n in names)
        changes["lora.targets"] = rf"^decoder\..*\.({chosen})\.kernel$"
    return changes


def _tdam(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    answer = bool(flat.get("mask_answer_from_first_video"))
    calls = bool(flat.get("mask_grounding_from_other_videos"))
    if answer != calls:
        raise ValueError(
            "mask_answer_from_first_video and mask_grounding_from_other_videos differ; a policy has both or neither"
        )
    if not answer:
        return {}
    return {"tdam.policy": "released", "tdam.mask_ratio": float(flat.get("mask_ratio", 0.1))}


def _betas(flat: Mapping[str, Any], _: int | None) -> dict[str, Any]:
    return {
        "optim.betas": (float(flat.get("adam_beta1", 0.9)), float(flat.get("adam_beta2", 0.999)))
    }


_TOGETHER = {
    ("per_device_train_batch_size", "gradient_accumulation_steps"): _batch,
    ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"): _frozen,
    ("finetuning_type", "lora_rank", "lora_alpha", "lora_target"): _lora,
    ("mask_answer_from_first_video", "mask_grounding_from_other_videos", "mask_ratio"): _tdam,
    ("adam_beta1", "adam_beta2"): _betas,
}


# ---------------------------------------------------------------- what is written


def report(conversion: Conversion) -> str:
    """One line a foreign key: what became of it."""
    lines = []
    for line in conversion.lines:
        here = line.ours or "-"
        lines.append(
            f"{line.theirs}: {line.given!r}  ->  {here}" + (f"  ({line.why})" if line.why else "")
        )
    lines += [f"{name}={value!r}" for name, value in conversion.policies.items()]
    return "\n".join(lines) + "\n"


def source(conversion: Conversion, *, origin: str) -> str:
    """A config file for `--config=`.

    Args:
      origin: name of the converted file, for the docstring.
    """
    workdir = conversion.workdir or "WORKDIR"
    body = "".join(f"    config.{key} = {value!r}\n" for key, value in conversion.changes.items())
    notes = "".join(f"    # {name} = {value!r}\n" for name, value in conversion.policies.items())
    return f'''"""Converted from {origin} ({conversion.kind}).

python -m vo3.train.sft --config=THIS_FILE --workdir={workdir}
"""

import ml_collections

from vo3.train.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """What differs from the defaults."""
    config = defaults()
{body}{notes}    return config
'''
