"""Coming from LLaMA-Factory or verl: every key of their YAML files as ours, or why there is none.

    vo3 convert-config examples/video_o3_sft_stage1.yaml --gpus 32 --out configs/mine.py

A key that is not known is named and nothing is written: what is passed over silently would train something else. What a file leaves out is what that project does then,
not what this one would (`vo3.train.foreign_defaults`).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

import yaml
from etils import epath

from vo3.train import config as config_lib
from vo3.train import rl_config
from vo3.train.config import ConfigError
from vo3.train.foreign_defaults import left_out
from vo3.train.foreign_groups import TOGETHER
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
      changes: dotted key of our config (`vo3.train.config`; of verl `vo3.train.rl_config`) -> value, where it differs from the default.
      workdir: the original's output directory, for --workdir; empty if it names none.
      lines: the report, one a foreign key.
    """

    kind: str
    changes: dict[str, Any]
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
    kind = "verl" if verl else "LLaMA-Factory"
    silent = left_out(kind, flat)
    flat |= silent
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
        default = f"left out: {kind}'s default" if key in silent else ""
        try:
            made = _apply(key, rule, given)
        except (TypeError, ValueError) as error:
            faults.append(f"{key}: {given!r}{default and f' ({default})'}: {error}")
            continue
        changes |= made
        ours = ", ".join(f"{name}={value!r}" for name, value in made.items())
        lines.append(Line(key, given, ours, "; ".join(x for x in (default, rule.why) if x)))
    for keys, together in TOGETHER[kind].items():
        try:
            made = together(flat, gpus)
        except (TypeError, ValueError) as error:
            faults.append(str(error))
            continue
        changes |= made
        ours = ", ".join(f"{name}={value!r}" for name, value in made.items())
        lines = [dataclasses.replace(x, ours=ours) if x.theirs in keys else x for x in lines]
    if verl and flat.get("trainer.project_name") and changes.get("log.wandb"):
        changes["log.wandb"] = flat["trainer.project_name"]
    if faults:
        raise ConfigError("\n".join(faults))
    workdir = flat.get("trainer.default_local_dir" if verl else "output_dir") or ""
    return _conversion(kind, changes, str(workdir), lines)


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
    defaults = (rl_config if kind == "verl" else config_lib).defaults()
    known = config_lib.flatten(defaults)
    ours = {}
    for key, value in changes.items():
        if isinstance(value, list):
            raise ConfigError(f"{key}: {len(value)} files; join them into one first")
        if known[key] != value:
            # Whole numbers where the key holds a float, and the reverse of it.
            ours[key] = type(known[key])(value) if isinstance(known[key], int | float) else value
    if kind == "verl":
        # The data may be named later, on the command line.
        rl_config.validate(config_lib.override(defaults, **{"data.rows": "ROWS", **ours}))
    else:
        config_lib.validate(config_lib.override(defaults, **ours), needs_data=False)
    return Conversion(kind, ours, workdir, tuple(lines))


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}".removeprefix("+")
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


# ---------------------------------------------------------------- what is written


def report(conversion: Conversion) -> str:
    """One line a foreign key: what became of it."""
    lines = []
    for line in conversion.lines:
        here = line.ours or "-"
        lines.append(
            f"{line.theirs}: {line.given!r}  ->  {here}" + (f"  ({line.why})" if line.why else "")
        )
    return "\n".join(lines) + "\n"


def source(conversion: Conversion, *, origin: str) -> str:
    """A config file for `--config=`.

    Args:
      origin: name of the converted file, for the docstring.
    """
    workdir = conversion.workdir or "WORKDIR"
    body = "".join(f"    config.{key} = {value!r}\n" for key, value in conversion.changes.items())
    module, defaults = ("grpo", "rl_config") if conversion.kind == "verl" else ("sft", "config")
    needed = ("data.rows", "data.videos")
    flags = "".join(f"--config.{n}=PATH " for n in needed if n not in conversion.changes)
    return f'''"""Converted from {origin} ({conversion.kind}).

python -m vo3.train.{module} --config=THIS_FILE {flags}--workdir={workdir}
"""

import ml_collections

from vo3.train.{defaults} import defaults


def get_config() -> ml_collections.ConfigDict:
    """What differs from the defaults."""
    config = defaults()
{body}    return config
'''
