"""The evaluation's configuration: every key with its default, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import ml_collections

from vo3.chat.dialects import DEFAULT, get_dialect
from vo3.evals.benchmarks import BENCHMARKS, Options
from vo3.rollout.policy import RolloutPolicy
from vo3.rollout.sampler import Sampling
from vo3.train.config import AXES, ConfigError, flatten, nearest
from vo3.video import CropPolicy
from vo3.video.policy import RECIPES

MODES = ("tools", "direct", "think")
_QUOTAS = ("overview_quota", "coarse_quota", "medium_quota", "fine_quota", "max_frames")


def defaults() -> ml_collections.ConfigDict:
    """Every key of an evaluation; the values are those of Video-o3's published evaluation (arXiv 2601.23224).

    Returns:
      A locked ConfigDict: a key that is not in it cannot be set.
    """
    c = ml_collections.ConfigDict()
    c.benchmarks = "clueworld"  # names, comma-separated
    # tools: the agent. direct: one look, the answer alone. think: one look, reasoning before the answer.
    c.modes = "tools"
    # Overview quotas in tokens, comma-separated: every mode is run at each of them. "": the checkpoint's.
    c.sweep = ""
    # Tokens of the one look of `direct` and `think`. 0: as the overview of `tools`; -1: as that overview and one fine clip.
    c.direct_quota = 0
    c.checkpoint = "clueworld"  # a directory, or the embedded model
    c.dtype = ""  # float32 or bfloat16; "": as the weights
    c.quantize = ""  # int8: the decoder's weights in one byte each; "": as they are
    c.mrope_time = ""  # constant, hf_int or exact; "": the checkpoint's
    # How the checkpoint calls its tool: video-o3, longvt, videozoomer, or package.module:NAME; "": the checkpoint's.
    c.dialect = ""
    c.prompt_pack = ""  # a name or path; "": the checkpoint's, or that of a dialect which is not the checkpoint's
    c.data_root = "data"  # a benchmark lies in its folder of this, as it was downloaded
    # A benchmark's own folder, where it lies elsewhere.
    c.roots = ml_collections.ConfigDict({name: "" for name in BENCHMARKS})
    c.partial = False  # accept an incomplete or changed benchmark; the card says so
    c.limit = 0  # the first questions of each benchmark; 0: all
    c.subtitles = False
    c.open_questions = False  # ask what is no part of the headline metric too, and report it apart
    c.clueworld = ml_collections.ConfigDict({"worlds": 20, "first": 50_000})
    # What videos are shown as: a recipe, and numbers that are not the recipe's. "" and 0: the checkpoint's.
    c.crop = ml_collections.ConfigDict({"recipe": "", **dict.fromkeys(_QUOTAS, 0)})
    c.max_turns = 0  # 0: the dialect's; Video-o3: 8
    c.max_new_tokens = 4096  # in one turn
    c.max_videos = 12
    c.max_length = 0  # of the context; 0: the model's, at most 32,768
    c.temperature = 0.0
    c.top_p = 1.0
    c.top_k = 0
    c.seed = 0
    c.time_limit = 120.0  # seconds that one read of a video may take
    # Which part of the videos this process evaluates: part `shard` of `shards`, into the same workdir.
    c.shard = 0
    c.shards = 1
    # An OpenAI-compatible endpoint for answers that no rule can score; "": off.
    c.judge = ml_collections.ConfigDict(
        {"url": "", "model": "", "key_env": "OPENAI_API_KEY", "time_limit": 60.0}
    )
    # Questions under way in one batch; 1: one after the other, with a video's overview prefilled once for all its questions.
    c.batch = 1
    # Devices per axis that the model is spread over, as in training; one may be -1. 1 everywhere: one device.
    c.mesh = ml_collections.ConfigDict(dict.fromkeys(AXES, 1))
    return c.lock()


@functools.cache
def flat_defaults() -> dict[str, Any]:
    """Dotted key -> default."""
    return flatten(defaults())


def names(text: str) -> tuple[str, ...]:
    """The items of a comma-separated value."""
    return tuple(item.strip() for item in str(text).split(",") if item.strip())


def quotas(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """The overview quotas to run at; (0,) for the checkpoint's alone."""
    return tuple(int(item) for item in names(config.sweep)) or (0,)


def options_of(config: ml_collections.ConfigDict) -> Options:
    """What is asked of the benchmarks."""
    return Options(
        subtitles=config.subtitles,
        open_questions=config.open_questions,
        worlds=config.clueworld.worlds,
        first=config.clueworld.first,
    )


def sharded(config: ml_collections.ConfigDict) -> bool:
    """Whether the model is spread over several devices."""
    return any(size != 1 for size in config.mesh.values())


def rollout_policy(config: ml_collections.ConfigDict, *, dialect: str = DEFAULT) -> RolloutPolicy:
    """The limits of a rollout with tools; `dialect` where the config names none."""
    return RolloutPolicy(
        mode="eval",
        dialect=config.dialect or dialect,
        max_turns=config.max_turns or None,
        max_new_tokens=config.max_new_tokens,
        max_videos=config.max_videos,
        max_length=config.max_length or None,
    )


def sampling(config: ml_collections.ConfigDict) -> Sampling:
    """How tokens are drawn."""
    return Sampling(config.temperature, config.top_p, config.top_k, config.seed)


def crop_policy(
    config: ml_collections.ConfigDict, own: CropPolicy, token_size: int = 28
) -> CropPolicy:
    """What videos are shown as, from the checkpoint's own policy and the config's changes.

    Raises:
      ConfigError: quotas that cannot be met, or a recipe for tokens of another size than `token_size` pixels a side.
    """
    if config.crop.recipe:
        own = CropPolicy(recipe=config.crop.recipe)
    changes = {key: config.crop[key] for key in _QUOTAS if config.crop[key]}
    try:
        return (dataclasses.replace(own, **changes) if changes else own).fitting(token_size)
    except ValueError as error:
        raise ConfigError(f"config.crop: {error}") from error


def validate(config: ml_collections.ConfigDict) -> None:
    """Refuses values outside their sets, and keys that contradict each other.

    Raises:
      ConfigError: every fault found, one a line.
    """
    known = flat_defaults()
    for key in flatten(config):
        if key not in known:
            raise ConfigError(
                f"unknown key config.{key}; the nearest is config.{nearest(key, known)}"
            )
    for key in known:
        if key not in flatten(config):
            raise ConfigError(f"config.{key} is missing; start from vo3.evals.config.defaults()")
    if faults := list(_faults(config)):
        raise ConfigError("\n".join(faults))


def _faults(c: ml_collections.ConfigDict) -> Iterable[str]:
    for key, values in (("benchmarks", tuple(BENCHMARKS)), ("modes", MODES)):
        given = names(c[key])
        if not given:
            yield f"{key} is empty; choose from {', '.join(values)}"
        for name in given:
            if name not in values:
                yield f"{key}: {name!r} is none of {', '.join(values)}; the nearest is {nearest(name, values)}"
        if len(set(given)) < len(given):
            yield f"{key}={c[key]!r} names something twice"
    for item in names(c.sweep):
        if not item.isdigit() or int(item) < 1:
            yield f"sweep: {item!r} is no number of tokens; write --config.sweep=2048,4096,16384"
    for key, choices in (
        ("dtype", ("", "float32", "bfloat16")),
        ("quantize", ("", "int8")),
        ("mrope_time", ("", "constant", "hf_int", "exact")),
        ("crop.recipe", ("", *RECIPES)),
    ):
        value = flatten(c)[key]
        if value not in choices:
            yield f"{key}={value!r}; one of {', '.join(x or repr(x) for x in choices)}"
    if c.dialect:
        try:
            get_dialect(c.dialect)
        except ValueError as error:
            yield f"dialect: {error}"
    for key, low in (("max_turns", 0), ("max_new_tokens", 1), ("max_videos", 1), ("max_length", 0), ("limit", 0),
                     ("shards", 1), ("direct_quota", -1), ("batch", 1)):  # fmt: skip
        if c[key] < low:
            yield f"{key}={c[key]} is below {low}"
    for key in _QUOTAS:
        if c.crop[key] < 0:
            yield f"crop.{key}={c.crop[key]} is below 0"
    if not 0 <= c.shard < c.shards:
        yield f"shard={c.shard} of shards={c.shards}: parts are numbered from 0"
    if not c.time_limit > 0 or not c.judge.time_limit > 0:
        yield "time_limit and judge.time_limit are seconds above 0"
    if c.clueworld.worlds < 1:
        yield f"clueworld.worlds={c.clueworld.worlds} is below 1"
    if bool(c.judge.url) != bool(c.judge.model):
        yield "judge.url and judge.model belong together: an endpoint needs the name of its model"
    if c.open_questions and "mlvu" in names(c.benchmarks) and not c.judge.url:
        yield "open_questions with mlvu: its generation questions are scored by a judge alone; set judge.url and judge.model"
    if any(size < 1 and size != -1 for size in c.mesh.values()):
        yield f"mesh {dict(c.mesh)}: sizes are 1 or more, and one of them at most -1"
    try:
        sampling(c)
    except ValueError as error:
        yield str(error)
