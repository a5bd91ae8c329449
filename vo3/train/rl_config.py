"""The configuration of an RL run: that of a training run (`vo3.train.config`) and a section `rl`.

Values are those of Video-o3's published RL (arXiv 2601.23224). What the sections `data.tokens_per_row`, `data.trajectories_per_step`, `tdam` and
the caches of `data` say is of fine-tuning and has no effect here; setting TDAM or a cache is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import ml_collections

from vo3.clueworld.scales import SCALES
from vo3.rewards import RewardPolicy
from vo3.rewards.free_form import require
from vo3.rollout import RolloutPolicy, Sampling
from vo3.rollout.buckets import GroupBuckets
from vo3.train import config as config_lib
from vo3.train.config import ConfigError
from vo3.train.group_trees import Shape
from vo3.train.policy_loss import AGGREGATIONS, PolicyLoss

# Changes to the plain recipe, by name.
#   gspo      one ratio a sequence (arXiv 2507.18071)
#   no_std    advantages are not divided by the group's deviation (Dr. GRPO, arXiv 2503.20783)
#   overlong  a growing penalty on long rollouts (DAPO, arXiv 2503.14476, section 3.4)
#   tis       truncated importance sampling between sampler and trainer
OPTIONS = ("gspo", "no_std", "overlong", "tis")
CURRICULA = ("off", "single_first")
WHEN_SHORT = ("stop", "train")

# Two options that cannot both be meant, and why.
_EXCLUDE = {
    ("gspo", "tis"): "one weighs whole sequences, the other single tokens",
}


def defaults() -> ml_collections.ConfigDict:
    """Every key of an RL run, locked."""
    c = config_lib.defaults()
    c.unlock()
    c.frozen = ()  # the vision tower trains too
    c.data.crop_policy = "rl"
    c.optim.rate = 1e-6
    c.optim.schedule = "constant"
    c.optim.warmup = 0.0
    c.optim.weight_decay = 0.01
    c.checkpoint.every = 10
    c.log.samples_every = 0

    c.rl = rl = ml_collections.ConfigDict()
    rl.prompts_per_step = 32
    rl.group = 16  # rollouts of a prompt
    rl.mini_batches = 1  # optimiser steps that the groups of a step are dealt out to
    rl.epochs = 1  # times that a step's groups are gone through
    rl.clip = (0.2, 0.3)  # the ratio counts from 1 - 0.2 to 1 + 0.3
    rl.aggregation = "seq-mean-token-mean"
    rl.options = ()  # of OPTIONS
    rl.tis_cap = 2.0
    rl.overlong_buffer = 4096  # sampled tokens below the limit from which the penalty grows
    rl.overlong_limit = 16_384  # sampled tokens at which it is 1
    rl.kl = 0.0  # factor on the k3 divergence from the starting weights; 0: they are not kept
    rl.min_std = 1e-4  # groups whose rewards deviate less are dropped
    rl.draw_limit = 8.0  # prompts drawn for a step, at most, over prompts_per_step
    rl.when_short = "stop"  # or "train": with what there is when the limit is reached
    # (tokens, patches, trained tokens) of a row, rising: one program each.
    rl.shapes = ((16_384, 65_536, 8192), (32_768, 131_072, 16_384), (65_536, 131_072, 32_768))
    rl.align = 128  # leaves begin on multiples of it
    rl.tree = True  # a group is one row, its prefix computed once; False: every rollout has the prefix again
    rl.rollout = ml_collections.ConfigDict(
        {
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "max_turns": 6,
            "max_new_tokens": 8192,
            "max_length": 32_768,
            "max_videos": 12,
            "reserve": -1,  # tokens kept free at the end; -1: as RolloutPolicy says
            "tensor": 0,  # devices of a process that share the policy's weights; 0: as many as its key-value heads can be split over
            "slots": 2,  # groups under way at a time, on each such set of devices
            "lanes": 1,  # batches that the slots are dealt out to and that take turns on the device
            "workers": 8,  # videos that a process reads at a time
            # Compile every program of rl.buckets before the first step; else each when it is first needed.
            "warm_up": False,
        }
    )
    # Static shapes of the rollout, rising: new tokens and vision patches of a call, slots of a group's prefix and of what a leaf adds.
    rl.buckets = ml_collections.ConfigDict(
        {
            "tokens": (64, 256, 2048),
            "patches": (256, 1024, 4096, 16_384),
            "prefix": (512, 2048, 8192, 20_480),
            "suffix": (512, 2048, 8192, 32_768),
        }
    )
    rl.reward = ml_collections.ConfigDict(
        {
            "recipe": "qwen2_5_vl",
            "accuracy_weight": 1.0,
            "format_weight": 1.0,
            "bonus_weight": 1.0,
            "decay": 0.05,
            # (data_source, rule) pairs; see vo3.rewards.trajectory_guided.
            "data_sources": tuple(RewardPolicy().data_sources.items()),
            "free_form": "letter",  # how rows without options are scored: letter, rouge or numeric
            "time_limit": 5.0,  # seconds for the numeric check of one answer
            "workers": 1,  # processes for it
        }
    )
    # (data_source, share) pairs; empty: all rows once an epoch.
    rl.mix = ()
    rl.curriculum = "off"
    # Tasks on the fly, for data.source="clueworld".
    rl.clueworld = ml_collections.ConfigDict(
        {
            "scale": "clueworld",  # of the worlds: vo3.clueworld.scales
            "worlds": 64,  # videos
            "shortest": 120,  # seconds
            "longest": 600,
            "tool_share": 0.6,  # questions that a clip must answer
            "grounding_share": 0.0,  # questions that seconds answer, in one turn; the rest is answered by the overview
            "options_share": 0.5,
        }
    )
    rl.trajectories_every = 10  # steps between files of trajectories; 0: never
    rl.alarms = True
    return c.lock()


def base(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The part that every training run has."""
    plain = ml_collections.ConfigDict(config).copy_and_resolve_references()
    with plain.unlocked():
        del plain.rl
    return plain


def resolve(
    config: ml_collections.ConfigDict, *, devices: int | None = None, prompts: int | None = None
) -> ml_collections.ConfigDict:
    """A validated, locked copy with the mesh filled in, and `steps`, where they are 0 and the data ends.

    Args:
      config: of `defaults()`.
      devices: of the run.
      prompts: of an epoch; None where the data does not end.

    Raises:
      ConfigError: every fault found, one a line.
    """
    validate(config)
    per_epoch = None if prompts is None else max(1, prompts // config.rl.prompts_per_step)
    resolved = config_lib.resolve(
        base(config), devices=devices, steps_per_epoch=per_epoch, needs_data=False
    )
    result = ml_collections.ConfigDict(resolved)
    with result.unlocked():
        result.rl = ml_collections.ConfigDict(config.rl)
    if not result.steps:
        raise ConfigError("steps=0 with data that does not end; set --config.steps")
    return result.lock()


def for_optimizer(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with `steps` and `optim.warmup` counted in optimiser steps, as schedules count."""
    each = updates(config)
    return config_lib.override(
        config, **{"steps": config.steps * each, "optim.warmup": config.optim.warmup * each}
    )


def updates(config: ml_collections.ConfigDict) -> int:
    """Optimiser steps of an RL step."""
    return config.rl.mini_batches * config.rl.epochs


def validate(config: ml_collections.ConfigDict) -> None:
    """Refuses values outside of their sets, and keys that contradict each other.

    Raises:
      ConfigError: every fault found, one a line.
    """
    if "rl" not in config:
        raise ConfigError("config.rl is missing; start from vo3.train.rl_config.defaults()")
    known, given = config_lib.flatten(defaults().rl), config_lib.flatten(config.rl)
    for key in sorted(set(known) ^ set(given)):
        if key in given:
            near = config_lib.nearest(key, known)
            raise ConfigError(f"unknown key config.rl.{key}; the nearest is config.rl.{near}")
        raise ConfigError(f"config.rl.{key} is missing; start from vo3.train.rl_config.defaults()")
    rl = config.rl
    faults = [
        *config_lib.no_tuples("rl.shapes", rl.shapes, (32_768, 131_072, 16_384)),
        *config_lib.no_tuples("rl.mix", rl.mix, ("NAME", 0.5)),
        *config_lib.no_tuples("rl.reward.data_sources", rl.reward.data_sources, ("NAME", "look")),
    ]
    if faults:  # what follows takes them apart
        raise ConfigError("\n".join(faults))
    try:
        config_lib.validate(base(config), needs_data=True)
    except ConfigError as error:
        faults += str(error).splitlines()
    faults += [*_bad_values(config.rl), *_contradictions(config)]
    for make in (rollout_policy, buckets, sampling, reward_policy):
        try:
            make(config)
        except ValueError as error:
            faults.append(f"rl.{make.__name__}: {error}")
    try:
        require(config.rl.reward.free_form)
    except ImportError as error:  # every reward would raise it, and its rollout be lost
        faults.append(f"rl.reward.{error}")
    if faults:
        raise ConfigError("\n".join(faults))


def _bad_values(rl: ml_collections.ConfigDict) -> Iterable[str]:
    choices = {
        "aggregation": AGGREGATIONS,
        "curriculum": CURRICULA,
        "when_short": WHEN_SHORT,
    }
    for key, allowed in choices.items():
        if rl[key] not in allowed:
            yield f"rl.{key}={rl[key]!r}; one of {', '.join(allowed)}"
    at_least = {
        "prompts_per_step": 1, "group": 2, "mini_batches": 1, "epochs": 1, "kl": 0, "min_std": 0, "draw_limit": 1,
        "align": 1, "overlong_buffer": 1, "trajectories_every": 0,
    }  # fmt: skip
    for key, low in at_least.items():
        if not rl[key] >= low:
            yield f"rl.{key}={rl[key]} is below {low}"
    if not rl.tis_cap > 0:
        yield f"rl.tis_cap={rl.tis_cap} is not above 0"
    if len(rl.clip) != 2 or not all(x > 0 for x in rl.clip) or not rl.clip[0] < 1:
        yield f"rl.clip={rl.clip}: two positive numbers, the first below 1"
    if min(rl.rollout.slots, rl.rollout.lanes, rl.rollout.workers) < 1:
        yield "rl.rollout.slots, lanes and workers are at least 1"
    elif rl.rollout.slots % rl.rollout.lanes:
        yield f"rl.rollout.slots={rl.rollout.slots} is no multiple of rl.rollout.lanes={rl.rollout.lanes}"
    if unknown := [x for x in rl.options if x not in OPTIONS]:
        yield f"rl.options names {unknown}; known are {', '.join(OPTIONS)}"
    if not rl.shapes or any(min(s) < 1 for s in rl.shapes):
        yield f"rl.shapes={rl.shapes}: triples (tokens, patches, trained tokens)"
    elif any(not Shape(*b).holds(Shape(*a)) for a, b in zip(rl.shapes, rl.shapes[1:])):
        yield f"rl.shapes={rl.shapes}: each must hold the one before it"
    for shape in rl.shapes:
        if rl.align < 1:
            break  # said above
        if shape[0] % rl.align or shape[1] % 4:
            yield f"rl.shapes: {shape} needs tokens in multiples of rl.align={rl.align} and patches of 4"
    for name, share in rl.mix:
        if not (share >= 0 and math.isfinite(share)):
            yield f"rl.mix: {name!r} has the share {share!r}"
    world = rl.clueworld
    if world.scale not in SCALES:
        yield f"rl.clueworld.scale={world.scale!r}; one of {', '.join(SCALES)}"
    else:
        least, most = SCALES[world.scale].world.shortest, SCALES[world.scale].world.longest
        if not (world.worlds >= 1 and least <= world.shortest <= world.longest <= most):
            yield f"rl.clueworld: worlds from 1, and {least} <= shortest <= longest <= {most}, got {world.to_dict()}"
    for key in ("tool_share", "grounding_share", "options_share"):
        if not 0 <= world[key] <= 1:
            yield f"rl.clueworld.{key}={world[key]} lies outside of [0, 1]"
    if world.tool_share + world.grounding_share > 1:
        yield f"rl.clueworld: tool_share={world.tool_share} and grounding_share={world.grounding_share} are more than 1"


def _contradictions(c: ml_collections.ConfigDict) -> Iterable[str]:
    rl = c.rl
    for (one, other), why in _EXCLUDE.items():
        if one in rl.options and other in rl.options:
            yield f"rl.options={tuple(rl.options)}: {one!r} and {other!r} exclude each other: {why}"
    if "gspo" in rl.options and rl.aggregation == "token-mean":
        yield "rl.options names 'gspo', whose ratio is of a sequence, with rl.aggregation='token-mean'; use seq-mean-token-mean"
    if "overlong" in rl.options and rl.overlong_buffer >= rl.overlong_limit:
        yield f"rl.overlong_buffer={rl.overlong_buffer} is not below rl.overlong_limit={rl.overlong_limit}"
    if rl.mini_batches >= 1 and rl.prompts_per_step % rl.mini_batches:
        yield f"rl.prompts_per_step={rl.prompts_per_step} is no multiple of rl.mini_batches={rl.mini_batches}"
    if rl.shapes and rl.shapes[-1][0] < rl.rollout.max_length + rl.align:
        yield (
            f"rl.shapes ends at rows of {rl.shapes[-1][0]} tokens; a rollout of rl.rollout.max_length={rl.rollout.max_length} and "
            f"the border of its leaf need {rl.rollout.max_length + rl.align}"
        )
    # Patches depend on the videos and on the model: a rollout that has too many ends the run by the name of the key.
    turn = min(rl.rollout.max_new_tokens, rl.rollout.max_length)
    if rl.shapes and rl.shapes[-1][2] < turn:
        yield (
            f"rl.shapes ends at rows of {rl.shapes[-1][2]} trained tokens; a turn of "
            f"rl.rollout.max_new_tokens={rl.rollout.max_new_tokens} has up to {turn}"
        )
    if rl.curriculum != "off" and rl.mix:
        yield f"rl.curriculum={rl.curriculum!r} orders an epoch of rows, and rl.mix draws them; leave one of them out"
    if rl.curriculum != "off" and c.data.source == "clueworld":
        yield f"rl.curriculum={rl.curriculum!r} is of rows; ClueWorld draws every prompt by rl.clueworld.tool_share"
    if rl.mix and c.data.source == "clueworld":
        yield "rl.mix is of rows; ClueWorld's is rl.clueworld.tool_share"
    if rl.reward.free_form != "letter" and c.data.source == "clueworld":
        yield f"rl.reward.free_form={rl.reward.free_form!r}: ClueWorld's answers are letters and words; use 'letter'"
    if c.tdam.policy != "off":
        yield f"tdam.policy={c.tdam.policy!r} is of fine-tuning; leave it 'off'"
    if c.data.feature_cache or c.data.clip_cache:
        yield "data.feature_cache and data.clip_cache are of fine-tuning; leave them empty"
    if c.data.source == "tfds":
        yield "data.source='tfds' holds fine-tuning rows; use 'rows' or 'clueworld'"
    if c.mesh.context > 1 and any(s[0] % c.mesh.context for s in rl.shapes):
        yield f"rl.shapes: tokens must be multiples of mesh.context={c.mesh.context}"


# ---------------------------------------------------------------- what the sections mean


def rollout_policy(config: ml_collections.ConfigDict) -> RolloutPolicy:
    """Limits of the rollouts."""
    r = config.rl.rollout
    return RolloutPolicy(
        mode="rl",
        max_turns=r.max_turns,
        max_new_tokens=r.max_new_tokens,
        max_videos=r.max_videos,
        max_length=r.max_length,
        reserve=None if r.reserve < 0 else r.reserve,
    )


def buckets(config: ml_collections.ConfigDict) -> GroupBuckets:
    """Static shapes of the rollouts."""
    return GroupBuckets(**{name: tuple(sizes) for name, sizes in config.rl.buckets.items()})


def sampling(config: ml_collections.ConfigDict) -> Sampling:
    """How tokens are drawn; the seed is each rollout's own.

    Raises:
      ValueError: a temperature of 0, which gives equal rollouts.
    """
    r = config.rl.rollout
    if not r.temperature > 0:
        raise ValueError(f"rollout.temperature={r.temperature} gives equal rollouts; use 1.0")
    return Sampling(temperature=r.temperature, top_p=r.top_p, top_k=r.top_k)


def reward_policy(config: ml_collections.ConfigDict) -> RewardPolicy:
    """Weights and tables of the reward.

    Raises:
      ValueError: they contradict each other.
    """
    r = config.rl.reward
    for source, rule in dict(r.data_sources).items():
        if rule == "segment" and source != "temporal_grounding":
            raise ValueError(
                f"data_sources rewards {source!r} by the rule 'segment', but only rows of 'temporal_grounding' are asked for a segment; "
                "name the rows so"
            )
    return RewardPolicy(
        recipe=r.recipe,
        accuracy_weight=r.accuracy_weight,
        format_weight=r.format_weight,
        bonus_weight=r.bonus_weight,
        decay=r.decay,
        data_sources=dict(r.data_sources),
        free_form=r.free_form,
        time_limit=r.time_limit,
        workers=r.workers,
    )


def policy_loss(config: ml_collections.ConfigDict) -> PolicyLoss:
    """The loss."""
    rl = config.rl
    return PolicyLoss(
        clip_low=rl.clip[0],
        clip_high=rl.clip[1],
        sequence_ratio="gspo" in rl.options,
        correction=rl.tis_cap if "tis" in rl.options else 0.0,
        kl=rl.kl,
    )


def shapes(config: ml_collections.ConfigDict) -> tuple[Shape, ...]:
    """The table of row shapes."""
    return tuple(Shape(*shape) for shape in config.rl.shapes)
