"""Which context does a checkpoint have room for on a TPU? The programs of evaluation and `vo3 ask`, compiled for it without one.

    python -m vo3.evals.compile_check --config=configs/eval.py --config.checkpoint=Qwen2.5-VL-7B-Instruct --config.quantize=int8 --topology=v5litepod-1

As `vo3.train.compile_check`: nothing runs, memory is what the compiler assigned, and the published architectures need no checkpoint. The
overview is as large as its quota allows and the context full, whatever the number of clips: `--config.max_length=73728` holds an overview of
16,384 tokens and eight fine clips. Exit code 1 when one of the programs does not fit.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any

# It sets what compilation for a topology needs, before anything imports jax.
from vo3.train import ahead_of_time as aot  # isort: skip

import jax
import jax.numpy as jnp
import ml_collections
from absl import app, flags
from etils import epath
from flax import nnx
from ml_collections import config_flags

from pallas_kernels import tuning
from vo3.attention import AttentionMesh
from vo3.evals import config as config_lib
from vo3.models import NAMES, CheckpointError, hf_io
from vo3.models.hf_table import default_sharding
from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from vo3.rollout.buckets import PROMPT, Buckets, GroupBuckets, smallest
from vo3.rollout.group_programs import GroupPrograms
from vo3.rollout.programs import Programs
from vo3.rollout.setting import longest
from vo3.train import chips, sharding
from vo3.train.chips import GIB, Chip
from vo3.train.config import ConfigError, parse_flags
from vo3.train.program_memory import Part, compiled, table
from vo3.video import CropPolicy


@dataclasses.dataclass(frozen=True)
class AskReport:
    """What a device holds.

    Attributes:
      chip, chips: of the slice, and how many.
      context, overview, clip: tokens: of the whole conversation, of the overview's and a fine clip's quota.
      batch: questions under way.
      weights: bytes of the parameters.
      cache: bytes of a conversation's keys and values; of all of a batch.
      parts: the programs.
    """

    chip: Chip
    chips: int
    context: int
    overview: int
    clip: int
    batch: int
    weights: float
    cache: float
    parts: tuple[Part, ...]

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return all(part.total <= self.chip.hbm_bytes for part in self.parts)


def model_config(checkpoint: str) -> Qwen2_5_VLConfig:
    """The architecture: the checkpoint's, or, where that directory is not there, the published one of its name.

    Raises:
      ConfigError: neither.
    """
    name = epath.Path(checkpoint).name
    if name in aot.PUBLISHED and not epath.Path(checkpoint).exists():
        return aot.PUBLISHED[name]
    try:
        return hf_io.read_config(NAMES.get(checkpoint, checkpoint))
    except CheckpointError as error:
        raise ConfigError(
            f"checkpoint: {error}; without a checkpoint one of {', '.join(aot.PUBLISHED)} can be compiled"
        ) from error


def check(config: ml_collections.ConfigDict, topology: str) -> AskReport:
    """Compiles the programs of `config` for `topology`, each at its largest shape.

    Args:
      config: of an evaluation; needs no data.
      topology: `v5e:1x1`, or an accelerator type, `v5litepod-1`.

    Raises:
      ConfigError: a contradiction, or a mesh that does not fit the slice.
      ValueError: an unknown topology.
      DoesNotFit: the compiler gave up for lack of memory.
    """
    config_lib.validate(config)
    slice_ = chips.topology(topology)
    devices = aot.devices_of(slice_)
    spread = config_lib.sharded(config)
    if slice_.chips > 1 and not spread:
        raise ConfigError(
            f"{topology} has {slice_.chips} chips and the model is on one; set --config.mesh.tensor or fsdp"
        )
    architecture = model_config(config.checkpoint)
    mesh = sharding.make_mesh(config, devices) if spread else None
    model, weights = _abstract(config, architecture, mesh, devices[0])
    context = longest(model, config_lib.rollout_policy(config))
    own = CropPolicy(recipe="eval")
    crop = config_lib.crop_policy(config, own, architecture.vision.token_size)
    overview = min(crop.overview_quota, context - PROMPT)
    batched = spread or config.batch > 1
    plan = functools.partial(_groups, crop) if batched else _one
    with tuning.target(tuning.DEVICE_KINDS[devices[0].device_kind]):
        cache, programs = plan(model, config, context, overview, devices[0])
        parts = []
        for name, lowered, kept in programs:
            pictures = name.startswith("encode")
            unused = sum(
                size
                for path, size in weights.items()
                if path.startswith("vision.") != pictures or name.startswith("resize")
            )
            parts.append(compiled(name, lowered, resident=unused + kept))
    batch = config.batch if batched else 1
    return AskReport(
        slice_.chip,
        slice_.chips,
        context,
        overview,
        crop.fine_quota,
        batch,
        sum(weights.values()),
        cache,
        tuple(parts),
    )


def _abstract(
    config: ml_collections.ConfigDict, architecture: Qwen2_5_VLConfig, mesh: Any, device: Any
) -> tuple[Qwen2_5_VL, dict[str, float]]:
    """The model as shapes with their places, and the bytes of its parameters on a device by path."""
    dtype = jnp.dtype(config.dtype or "bfloat16")
    graph, shapes = hf_io.abstract(
        architecture,
        quantize=config.quantize or None,
        dtype=dtype,
        param_dtype=dtype,
        mesh=None if mesh is None else AttentionMesh(mesh),
    )
    place = default_sharding(mesh, device)
    laid = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(path, x.shape))
        for path, x in shapes.items()
    }
    model = nnx.merge(graph, hf_io.unflatten(shapes, laid))
    return model, {path: aot.device_bytes(x) for path, x in laid.items()}


# A program with its name, and the bytes of caches and features that lie beside it.
Planned = tuple[str, jax.stages.Lowered, float]


def _one(
    model: Qwen2_5_VL,
    config: ml_collections.ConfigDict,
    context: int,
    overview: int,
    device: jax.Device,
) -> tuple[float, Iterator[Planned]]:
    """The engine for one question. Bytes of the largest cache, and the programs.

    The overview's cache is kept for more questions on the video, and while the next video is prefilled.
    """
    text = model.config.text
    buckets = Buckets().limit(context)
    slot = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    slot *= jnp.dtype(model.dtype).itemsize
    room = min(overview + PROMPT, context)
    prefix = slot * smallest(room, buckets.capacity, what="tokens of the overview")
    features = overview * text.hidden_size * jnp.dtype(model.dtype).itemsize
    cache = slot * buckets.capacity[-1]
    sizes = {
        "patches": buckets.patches[-1], "tokens": buckets.tokens[-1], "capacity": buckets.capacity[-1],
    }  # fmt: skip
    lowered = Programs(model).lowered(**sizes, device=device)
    beside = {
        f"encode {sizes['patches']:,} patches": prefix + cache + features,
        f"prefill {sizes['tokens']:,} tokens": prefix + features,
        "decode": prefix,
        "resize": prefix,
    }
    planned = ((n, lowered[n.split()[0]], float(kept)) for n, kept in beside.items())
    return float(cache), planned


def _groups(
    crop: CropPolicy,
    model: Qwen2_5_VL,
    config: ml_collections.ConfigDict,
    context: int,
    overview: int,
    device: jax.Device,
) -> tuple[float, Iterator[Planned]]:
    """The engine for many questions. Bytes of all caches at their largest, and the programs."""
    sizes = GroupBuckets().showing(crop).limit(context)
    programs = GroupPrograms(model, groups=config.batch, leaves=1)
    largest = {
        "tokens": sizes.tokens[-1],
        "prefix": smallest(
            min(overview + PROMPT, context), sizes.prefix, what="tokens of the overview"
        ),
        "suffix": sizes.suffix[-1],
    }
    lowered = programs.lowered(**largest, features=sizes.features, method="greedy")
    told = ", ".join(f"{key} {size:,}" for key, size in largest.items())
    cache = programs.cache_bytes(prefix=largest["prefix"], suffix=largest["suffix"])
    return float(cache), ((f"{name}, {told}", one, 0.0) for name, one in lowered.items())


def render(report: AskReport, checkpoint: str, quantize: str) -> str:
    """The report as text."""
    room = report.context - report.overview - PROMPT
    count, kind = report.chips, f"{report.chip.name}, {report.chips} chip{'s' * (report.chips > 1)}"
    shared = " on each" if count > 1 else ""
    lines = [
        f"{epath.Path(checkpoint).name}{', ' + quantize if quantize else ''} on {kind}: compiled for it, nothing ran",
        f"context of {report.context:,} tokens: an overview of {report.overview:,}, {PROMPT:,} around it and {max(room, 0):,} for turns and "
        f"clips ({max(room, 0) // report.clip} fine ones of {report.clip:,}); {report.batch} question{'s' * (report.batch > 1)} at a time",
        f"weights {report.weights / GIB:.2f} GiB{shared}, keys and values {report.cache / GIB:.2f} GiB{shared}",
        "",
        *table(report.parts, report.chip),
    ]
    return "\n".join([*lines, "", "fits" if report.fits else "does not fit"])


def define_flags() -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file("config", None, "Evaluation configuration.", lock_config=True)
    flags.DEFINE_string("topology", None, "v5e:1x1, v6e:2x2, ... or v5litepod-1, v6e-4, ...")
    flags.mark_flags_as_required(["config", "topology"])


def main(_: list[str]) -> None:
    """Entry point of `python -m vo3.evals.compile_check`."""
    config = flags.FLAGS.config
    try:
        report = check(config, flags.FLAGS.topology)
    except aot.DoesNotFit as error:
        print(f"{error}\n\ndoes not fit")
        sys.exit(1)
    except ValueError as error:
        print(f"compile_check: {error}", file=sys.stderr)
        sys.exit(2)
    print(render(report, config.checkpoint, config.quantize))
    sys.exit(0 if report.fits else 1)


if __name__ == "__main__":
    aot.pretend_worker()
    define_flags()
    app.run(main, flags_parser=parse_flags)
