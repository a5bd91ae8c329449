"""The training configuration: every key with its default, overrides, derived values, contradictions.

A config file starts from `defaults()` and changes what it needs; nothing else may add a key. `resolve` fills in what follows
from the number of devices and of steps, and refuses contradictions before anything compiles; its `to_text` is what a run saves and prints.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

AXES = ("dcn_data", "data", "fsdp", "tensor", "context")
# Axes that split rows of a batch.
ROW_AXES = ("dcn_data", "data", "fsdp")
# What each key with a closed set of values may be.
CHOICES: dict[str, tuple[str, ...]] = {
    "data.source": ("rows", "tfds", "clueworld"),
    "data.format": ("auto", "json", "jsonl", "parquet"),
    "data.crop_policy": ("rl", "sft", "eval", "qwen3_vl"),
    "data.mrope_time": ("constant", "hf_int", "exact"),
    "tdam.policy": ("off", "released", "predictor", "turn"),
    "optim.name": ("adamw", "muon"),
    "optim.schedule": ("cosine", "linear", "constant"),
    "dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "dots", "dots_no_batch"),
    "on_nan": ("stop", "skip"),
}


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the keys and the remedy."""


def defaults() -> ml_collections.ConfigDict:
    """Every key of a training run. Values that the two published Video-o3 stages (arXiv 2601.23224) share stand here.

    Returns:
      A locked ConfigDict: a key that is not in it cannot be set.
    """
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = 0  # optimiser steps; 0: `epochs` of the data plan
    c.epochs = 1
    # A checkpoint directory, "clueworld", or the directory name of a published model: architecture and tokenizer.
    c.model = "Qwen2.5-VL-7B-Instruct"
    c.init_from = "model"  # weights: "model", "random", the workdir of an earlier run, a Hugging Face or vo3 directory, or the name of an embedded model
    c.init_vision = ""  # the vision tower alone, from an .npz of vo3.clueworld.pretrain
    c.dtype = "bfloat16"  # of the computation
    # Of what is trained and its optimiser state; anything less is refused. What is not trained is held in `dtype`.
    c.param_dtype = "float32"
    c.remat = "full"
    c.scan_unroll = 1
    c.compilation_cache = ""  # a directory, gs:// too; "": none
    c.on_nan = "stop"  # or "skip": the step leaves no trace
    c.spike_factor = (
        0.0  # gradient norm above this many times its running mean counts as a spike; 0: never
    )
    c.frozen = (r"^vision\.(?!merger\.)",)  # regexes on dotted parameter paths

    # Devices per axis; one may be -1: all that remain. dcn_data counts slices.
    c.mesh = ml_collections.ConfigDict(
        {"dcn_data": 1, "data": 1, "fsdp": -1, "tensor": 1, "context": 1}
    )
    # First match wins. Axes of the last dimensions, comma-separated, "-" for whole; stacked layers stay whole.
    c.sharding = ml_collections.ConfigDict()
    c.sharding.rules = (
        (r"(\.|^)(q|k|v|qkv|gate|up|fc1|patch_embed|unembedding)\.kernel$", "fsdp,tensor"),
        (r"(\.|^)(o|proj|down|fc2)\.kernel$", "tensor,fsdp"),
        (r"^embed\.table$", "tensor,fsdp"),
        (r"\.(bias|scale)$", "-"),
    )

    c.data = ml_collections.ConfigDict()
    c.data.source = (
        "rows"  # files of rows, the TFDS builder seeker_173k, or ClueWorld made on the fly
    )
    c.data.rows = ""  # a file, or with "tfds" its data_dir
    # The root of relative video paths; in RL on ClueWorld, where videos are kept.
    c.data.videos = ""
    c.data.format = "auto"  # of the files; "auto": what their names end in
    c.data.crop_policy = "sft"
    c.data.mrope_time = (
        "constant"  # how a step in a clip's time becomes a position: vo3.chat.positions
    )
    c.data.prompt_pack = "default"
    c.data.tokens_per_row = 40_000
    c.data.length_multiple = 128  # buckets are multiples of it
    c.data.programs = 8  # buckets, so compiled programs, at most
    c.data.trajectories_per_step = 256
    c.data.rows_per_device = 1  # of a micro-batch; the rest accumulates
    c.data.workers = 8
    c.data.clip_cache = ""  # a directory for decoded clips; "": none
    c.data.clip_cache_bytes = 200_000_000_000
    c.data.feature_cache = ""  # a directory for features of the frozen vision tower; "": none
    c.data.time_limit = 120.0  # seconds that one video may take
    c.data.reject_limit = 0.02  # share of rows that may be refused
    # Fields of vo3.clueworld.data.DataConfig, for source "clueworld".
    c.data.clueworld = ml_collections.ConfigDict(
        {
            "seed": 0,
            "worlds": 12,
            "patches": 32,
            "length": 544,
            "options_share": 0.6,
            "noise": 5.0,
            "transcripts": 0,
            "dense": False,
            "emphasis": 4.0,
        }
    )

    c.tdam = ml_collections.ConfigDict({"policy": "off", "mask_ratio": 0.0})
    c.optim = ml_collections.ConfigDict()
    c.optim.name = "adamw"
    c.optim.rate = 1e-5
    c.optim.adam_rate = 3e-3  # under Muon, of everything that is no matrix
    c.optim.schedule = "cosine"
    c.optim.warmup = 0.1  # below 1 a share of the steps, from 1 on steps
    c.optim.weight_decay = 0.0
    c.optim.clip = 1.0  # global norm
    c.optim.betas = (0.9, 0.999)
    c.optim.eps = 1e-8
    # Factors of the learning rate: (regex on dotted parameter paths, factor); the first that is found counts.
    c.optim.scales = ()
    # rank 0: full fine-tuning.
    c.lora = ml_collections.ConfigDict(
        {"rank": 0, "alpha": 16.0, "targets": r"^decoder\..*\.(q|k|v|o|gate|up|down)\.kernel$"}
    )
    c.loss = ml_collections.ConfigDict({"z_loss": 0.0, "label_smoothing": 0.0, "chunk": 512})
    c.checkpoint = ml_collections.ConfigDict(
        {"every": 50, "keep": 2, "background": True, "export_hf": True}
    )
    c.log = ml_collections.ConfigDict()
    c.log.every = 1
    c.log.tensorboard = True
    c.log.wandb = ""  # project; "": off
    c.log.profile_start = 0  # first step of a profile window; 0: no profile
    c.log.profile_steps = 3
    c.log.samples_every = 100  # steps between pictures of the batch; 0: never
    return c.lock()


# ---------------------------------------------------------------- keys and overrides


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def nearest(key: str, keys: Iterable[str]) -> str:
    """The key that was most likely meant: equal in its last part if there is one, else the closest in letters."""
    keys = list(keys)
    last = key.rsplit(".", 1)[-1]
    same = [k for k in keys if k.rsplit(".", 1)[-1] == last]
    close = difflib.get_close_matches(key, same or keys, n=1, cutoff=0.0)
    return close[0] if close else ""


def check_keys(config: ml_collections.ConfigDict, keys: Iterable[str]) -> None:
    """Refuses dotted `keys` that name no value or section of `config`.

    Raises:
      ConfigError: an unknown key; the message names the nearest one.
    """
    known = flatten(config)
    sections = {name[: m.start()] for name in known for m in re.finditer(r"\.", name)}
    for key in keys:
        if key not in known and key not in sections:
            raise ConfigError(
                f"unknown key config.{key}; the nearest is config.{nearest(key, known)}"
            )


def override(config: ml_collections.ConfigDict, **changes: Any) -> ml_collections.ConfigDict:
    """A copy with values changed; keys are dotted (`override(config, **{"optim.rate": 1e-4})`).

    Raises:
      ConfigError: an unknown key, or a value of another type.
    """
    check_keys(config, changes)
    result = ml_collections.ConfigDict(config).copy_and_resolve_references()
    try:
        result.update_from_flattened_dict(changes)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.{', config.'.join(changes)}: {error}") from error
    return result.lock()


def parse_flags(argv: Sequence[str]) -> list[str]:
    """A `flags_parser` for `absl.app.run`: unknown `--config.` overrides end in one line and exit code 2."""
    from absl import app

    path = next((a.split("=", 1)[1] for a in argv if re.match(r"--?config=", a)), None)
    names = [m.group(1) for a in argv[1:] if (m := re.match(r"--?(?:no)?config\.([\w.]+)", a))]
    if path and names:
        try:
            check_keys(load(path), names)
        except ConfigError as error:
            print(f"{argv[0]}: {error}", file=sys.stderr)
            sys.exit(2)
    return app.parse_flags_with_usage(list(argv))


def load(path: str) -> ml_collections.ConfigDict:
    """The config of `FILE.py` or `FILE.py:argument`, as `--config=` reads it.

    Raises:
      ConfigError: no such file, or one without get_config.
    """
    import importlib.util

    file, _, argument = path.partition(":")
    spec = importlib.util.spec_from_file_location("_vo3_config", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is no Python file; give a file of configs/")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError as error:
        raise ConfigError(f"{file} does not exist; give a file of configs/") from error
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{file} has no get_config(); see configs/debug.py")
    return module.get_config(argument) if argument else module.get_config()


# ---------------------------------------------------------------- what follows from the rest


def mesh_sizes(config: ml_collections.ConfigDict, devices: int) -> dict[str, int]:
    """Devices per axis, -1 filled in.

    Raises:
      ConfigError: the axes do not multiply to `devices`.
    """
    sizes = {axis: int(config.mesh[axis]) for axis in AXES}
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if bad or len(open_axes) > 1:
        names = ", ".join(f"mesh.{a}={sizes[a]}" for a in bad or open_axes)
        raise ConfigError(f"{names}: sizes are 1 or more, and one of them at most -1")
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if devices % fixed or (not open_axes and fixed != devices):
        told = ", ".join(f"{a}={s}" for a, s in sizes.items())
        raise ConfigError(
            f"mesh {told} does not fit {devices} devices; set one axis to -1 or change their sizes"
        )
    for axis in open_axes:
        sizes[axis] = devices // fixed
    return sizes


def row_ways(config: ml_collections.ConfigDict) -> int:
    """Into how many parts the rows of a micro-batch are split, on a resolved config."""
    return int(np.prod([config.mesh[axis] for axis in ROW_AXES]))


def warmup_steps(config: ml_collections.ConfigDict, steps: int) -> int:
    """Warm-up in steps: `optim.warmup` below 1 is a share, rounded up."""
    warmup = config.optim.warmup
    return int(np.ceil(round(warmup * steps, 9))) if warmup < 1 else int(warmup)


def resolve(
    config: ml_collections.ConfigDict,
    *,
    devices: int | None = None,
    steps_per_epoch: int | None = None,
    needs_data: bool = True,
) -> ml_collections.ConfigDict:
    """A validated, locked copy with the derived values filled in.

    Args:
      devices: of the run; fills the mesh's -1. None leaves the mesh as it is.
      steps_per_epoch: of the data plan; fills `steps` when that is 0, and `optim.warmup` in steps.
      needs_data: False where nothing is read, so that data.rows may be empty.

    Raises:
      ConfigError: a contradiction; see `validate`.
    """
    validate(config, needs_data=needs_data)
    config = ml_collections.ConfigDict(config).copy_and_resolve_references()
    with config.unlocked():
        if devices is not None:
            config.mesh.update(mesh_sizes(config, devices))
        if config.steps == 0 and steps_per_epoch is not None:
            config.steps = config.epochs * steps_per_epoch
        if config.steps:
            warmup = warmup_steps(config, config.steps)
            if 0 < config.optim.warmup < 1:  # a share: a run of one step has none
                warmup = min(warmup, config.steps - 1)
            if warmup >= config.steps:
                raise ConfigError(
                    f"optim.warmup of {warmup} steps does not fit a run of {config.steps}; lower optim.warmup"
                )
            config.optim.warmup = float(warmup) if warmup >= 1 else 0.0
    return config.lock()


def validate(config: ml_collections.ConfigDict, *, needs_data: bool = True) -> None:
    """Refuses values outside their sets and ranges, and keys that contradict each other.

    Args:
      config: to check.
      needs_data: False where nothing is read, so that data.rows may be empty.

    Raises:
      ConfigError: every fault found, one a line.
    """
    unknown = set(flatten(config)) ^ set(flatten(defaults()))
    for key in sorted(unknown):
        if key in flatten(config):
            raise ConfigError(
                f"unknown key config.{key}; the nearest is config.{nearest(key, flatten(defaults()))}"
            )
        raise ConfigError(f"config.{key} is missing; start from vo3.train.config.defaults()")
    faults = [*_bad_values(config), *_contradictions(config)]
    if needs_data and config.data.source in ("rows", "tfds") and not config.data.rows:
        faults.append(
            f"data.source={config.data.source!r} needs data.rows; set --config.data.rows=PATH"
        )
    if faults:
        raise ConfigError("\n".join(faults))


def _bad_values(c: ml_collections.ConfigDict) -> Iterable[str]:
    flat = flatten(c)
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            yield f"{key}={flat[key]!r}; one of {', '.join(choices)}"
    at_least = {
        "steps": 0, "epochs": 1, "scan_unroll": 1, "data.tokens_per_row": 1, "data.length_multiple": 1,
        "data.programs": 1, "data.trajectories_per_step": 1, "data.rows_per_device": 1, "data.workers": 0,
        "data.clip_cache_bytes": 1, "optim.rate": 0, "optim.adam_rate": 0, "optim.warmup": 0, "optim.weight_decay": 0,
        "lora.rank": 0, "loss.z_loss": 0, "loss.label_smoothing": 0, "loss.chunk": 1, "checkpoint.every": 1,
        "checkpoint.keep": 1, "log.every": 1, "log.profile_start": 0, "log.profile_steps": 1,
        "log.samples_every": 0, "spike_factor": 0,
    }  # fmt: skip
    for key, low in at_least.items():
        if not flat[key] >= low:
            yield f"{key}={flat[key]} is below {low}"
    for key in ("data.reject_limit", "tdam.mask_ratio"):
        if not 0 <= flat[key] <= 1:
            yield f"{key}={flat[key]} lies outside of [0, 1]"
    for key in ("data.time_limit", "optim.clip", "optim.eps", "lora.alpha"):
        if not flat[key] > 0:
            yield f"{key}={flat[key]} is not above 0"
    if len(c.optim.betas) != 2 or not all(0 <= b < 1 for b in c.optim.betas):
        yield f"optim.betas={c.optim.betas}: two numbers in [0, 1)"
    bad_rules = list(no_tuples("sharding.rules", c.sharding.rules, ("PATTERN", "fsdp,tensor")))
    yield from bad_rules
    bad_scales = list(no_tuples("optim.scales", c.optim.scales, ("PATTERN", 0.1)))
    yield from bad_scales
    for key, patterns in (
        ("frozen", c.frozen),
        ("lora.targets", (c.lora.targets,)),
        ("sharding.rules", [] if bad_rules else [rule[0] for rule in c.sharding.rules]),
        ("optim.scales", [] if bad_scales else [scale[0] for scale in c.optim.scales]),
    ):
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"{key}: {pattern!r} is no regular expression ({error})"
    for pattern, factor in c.optim.scales if not bad_scales else ():
        if not 0 < factor < float("inf"):
            yield f"optim.scales: {pattern!r} has the factor {factor}; one above 0, and what shall not be trained is named by frozen"
    for rule in c.sharding.rules if not bad_rules else ():
        names = (
            [] if rule[1] == "-" else [n for part in rule[1].split(",") for n in part.split("+")]
        )
        wrong = sorted(set(names) - {*AXES, "-"})
        twice = sorted({n for n in names if n != "-" and names.count(n) > 1})
        if wrong:
            yield f"sharding.rules: {rule[0]!r} names {wrong}; the mesh has {', '.join(AXES)}"
        if twice:
            yield f"sharding.rules: {rule[0]!r} uses {twice} for two dimensions"


def no_tuples(key: str, value: Sequence[Any], like: tuple[Any, ...]) -> Iterable[str]:
    """What is wrong with a tuple of tuples like `like`: items of another length, or of other types, as where the outer parentheses are forgotten."""
    kinds = tuple((int, float) if isinstance(x, float) else type(x) for x in like)
    for item in value:
        if (
            not isinstance(item, tuple | list)
            or len(item) != len(like)
            or not all(isinstance(x, kind) for x, kind in zip(item, kinds))
        ):
            yield f"{key}: {item!r} is not like {like!r}; one alone is {(like,)!r}"


def _contradictions(c: ml_collections.ConfigDict) -> Iterable[str]:
    if (c.tdam.policy == "off") != (c.tdam.mask_ratio == 0):
        yield (
            f"tdam.policy={c.tdam.policy!r} with tdam.mask_ratio={c.tdam.mask_ratio}: "
            "a policy needs a ratio above 0, and 'off' the ratio 0"
        )
    if c.data.source != "rows" and c.data.format != "auto":
        yield f"data.format={c.data.format!r} says how files of rows are read, and data.source={c.data.source!r} has none; drop it"
    if c.data.source == "clueworld" and c.model != "clueworld":
        yield f"data.source='clueworld' is encoded for model='clueworld', not {c.model!r}"
    tower = "vision.blocks.attn.qkv.kernel"
    if c.data.feature_cache and not any(re.search(p, tower) for p in c.frozen):
        yield "data.feature_cache keeps features of a frozen vision tower, but config.frozen leaves it free"
    if c.lora.rank and c.optim.name == "muon":
        yield "lora.rank with optim.name='muon': the adapters are no square-like matrices; use 'adamw'"
    if c.param_dtype == "bfloat16":
        yield (
            "param_dtype='bfloat16': in 8 bits updates of rate 1e-5 vanish, and Adam's second moment never falls (0.999 of it "
            "rounds back), with LoRA too; keep float32: what is not trained is held in `dtype` anyway"
        )
    if c.init_vision and c.init_from not in ("model", "random"):
        yield f"init_vision and init_from={c.init_from!r} both give the vision tower; drop one"
    context = max(c.mesh.context, 1)
    if context > 1 and c.data.length_multiple % context:
        yield (
            f"data.length_multiple={c.data.length_multiple} cannot be split over mesh.context={context}; "
            f"use a multiple of it"
        )
    if c.steps and c.optim.warmup >= 1 and c.optim.warmup >= c.steps:
        yield f"optim.warmup of {c.optim.warmup:g} steps does not fit a run of {c.steps}; lower optim.warmup"


def to_text(config: ml_collections.ConfigDict) -> str:
    """One `key: value` a line, sorted; what a run saves and prints, and the tests keep as golden files."""
    return "".join(f"{key}: {value!r}\n" for key, value in sorted(flatten(config).items()))
