"""Does a config fit a TPU slice, and how fast can it be? The real train step, compiled for the slice without one.

    python -m vo3.train.compile_check --config=configs/sft_stage1.py --topology=v5p:2x2x4 [--num_slices=2] [--config.mesh.tensor=2 ...]

An RL config goes to `vo3.train.rl_compile_check`: update, rollout prefill and decode. libtpu compiles ahead of time on any x86 Linux machine. Nothing runs, so nothing here is a measurement: memory is what the
compiler assigned, FLOPs and bytes are counted, the time is predicted from named peaks. Exit code 1 when the step does not fit.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

# Before anything imports jax: no chip of this machine is wanted, and libtpu must not look for one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
if __name__ == "__main__":
    # Else libtpu complains at length that this machine is no TPU worker.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")

import jax
import ml_collections
import numpy as np
from absl import app, flags
from etils import epath
from jax.experimental import topologies
from ml_collections import config_flags

from pallas_kernels import tuning
from pallas_kernels.visibility import Visibility
from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig, VisionInputs
from vo3.models.qwen2_5_vl.config import TextConfig, VisionConfig
from vo3.train import chips, flops, hlo, sharding
from vo3.train import config as config_lib
from vo3.train.batch import RowBatch
from vo3.train.chips import GIB, Chip, Topology
from vo3.train.config import ConfigError
from vo3.train.features import spec_of
from vo3.train.state import Trainable, architecture, trainable
from vo3.train.step import Programs

# Rows of Seeker-173K, where no plan says how many steps an epoch has; only the learning-rate schedule depends on it.
SEEKER_ROWS = 173_000
# Assumed for the time of a whole step: tokens of an average trajectory (an overview of up to 16,384 and a clip or two), and the
# share of the matrix units' peak that large bf16 products reach.
TOKENS_PER_TRAJECTORY = 18_000
EFFICIENCY = 0.6

# Published architectures by directory name, so that a step can be compiled before a checkpoint is there.
PUBLISHED: dict[str, Qwen2_5_VLConfig] = {
    "Qwen2.5-VL-7B-Instruct": Qwen2_5_VLConfig(
        text=TextConfig(152_064, 3584, 18_944, 28, 28, 4),
        vision=VisionConfig(32, 1280, 3420, 16, 3584),
    ),
    "Qwen2.5-VL-3B-Instruct": Qwen2_5_VLConfig(
        text=TextConfig(151_936, 2048, 11_008, 36, 16, 2),
        vision=VisionConfig(32, 1280, 3420, 16, 2048),
        tie_word_embeddings=True,
    ),
}


class DoesNotFit(RuntimeError):
    """The compiler found no place for the step in the chip's memory; the message is its own."""


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Of a micro-batch: rows over all devices, tokens and vision patches of a row."""

    rows: int
    length: int
    patches: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What one device of the slice holds, does and sends in a micro-batch; bytes unless named otherwise.

    Attributes:
      topology, slices, mesh: where.
      shapes: of the micro-batch.
      params, optimizer, batch: arguments of the step: trained and frozen parameters, optimiser state, the micro-batch.
      gradients: of accumulation, where the step has several micro-batches.
      activations: the compiler's temporaries: activations, gradients, gathered weights, buffers of collectives.
      total: the program's peak.
      flops: of matrix products and attention, recomputation included.
      model_flops: 6 per weight and token, all devices.
      collectives: by kind, empty where the compiler left no text.
      square: buffers of L x L or L x V.
      unknown_loops: loops whose trips were not found; what they send counts once.
      micro_batches, trajectories: of an average step.
      compile_seconds: of this compilation.
    """

    topology: Topology
    slices: int
    mesh: dict[str, int]
    shapes: Shapes
    params: float
    optimizer: float
    batch: float
    gradients: float
    activations: float
    total: float
    flops: float
    model_flops: float
    collectives: tuple[hlo.Collective, ...]
    largest: tuple[tuple[float, str, str], ...]
    square: tuple[str, ...]
    unknown_loops: tuple[str, ...]
    micro_batches: int
    trajectories: int
    compile_seconds: float

    @property
    def chip(self) -> Chip:
        """The slice's chip."""
        return self.topology.chip

    @property
    def devices(self) -> int:
        """Chips of all slices."""
        return self.topology.chips * self.slices

    @property
    def fits(self) -> bool:
        """Whether the peak is within the memory a program may use."""
        return self.total <= self.chip.hbm_bytes

    def sent(self, *, between_slices: bool) -> float:
        """Bytes a device sends in a micro-batch, over ICI or between slices."""
        return sum(c.bytes for c in self.collectives if c.between_slices == between_slices)

    def seconds(self) -> dict[str, float]:
        """Predicted parts of a micro-batch's time."""
        return {
            "compute": self.flops / (self.chip.flops * EFFICIENCY),
            "ici": self.sent(between_slices=False) / self.chip.ici_bandwidth,
            "dcn": self.sent(between_slices=True) / self.chip.dcn_bandwidth,
        }


# ---------------------------------------------------------------- what is compiled


def model_config(config: ml_collections.ConfigDict) -> Qwen2_5_VLConfig:
    """The architecture: of `config.model`, or, where that directory is not there, the published one of its name.

    Raises:
      ConfigError: neither.
    """
    name = epath.Path(config.model).name
    if config.model != "clueworld" and not epath.Path(config.model).exists() and name in PUBLISHED:
        return PUBLISHED[name].replace(remat=config.remat, scan_unroll=config.scan_unroll)
    try:
        return architecture(config)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"model={config.model!r}: {error}; without a checkpoint one of {', '.join(PUBLISHED)} can be compiled"
        ) from error


def shapes_of(config: ml_collections.ConfigDict, *, length: int = 0, patches: int = 0) -> Shapes:
    """The largest micro-batch of a resolved config: full rows, and every token a video token.

    Args:
      length: tokens of a row; 0: the largest bucket.
      patches: vision patches of a row; 0: four for each token.
    """
    multiple = config.data.length_multiple
    length = length or math.ceil(config.data.tokens_per_row / multiple) * multiple
    rows = config_lib.row_ways(config) * config.data.rows_per_device
    return Shapes(rows, length, patches or 4 * length)


def abstract_batch(run: Trainable, shapes: Shapes) -> RowBatch:
    """The micro-batch as shapes with shardings."""
    b, length, p = shapes.rows, shapes.length, shapes.patches
    of = jax.ShapeDtypeStruct
    ints = lambda *shape: of(shape, np.int32)
    fields = lambda n: Visibility(*[ints(b, n)] * len(dataclasses.fields(Visibility)))
    unit = run.model.vision.merge_unit
    cached = bool(run.config.data.feature_cache)
    vision = VisionInputs(
        positions=ints(b, p, 2),
        windows=fields(p),
        frames=fields(p),
        order=ints(b, p // unit),
        inverse=ints(b, p // unit),
        count=ints(b),
    )
    kept = spec_of(run.model.vision, run.config.dtype)
    batch = RowBatch(
        ids=ints(b, length),
        positions=ints(b, 3, length),
        visibility=fields(length),
        weight=of((b, length), np.float32),
        feature_index=ints(b, length),
        patches=None if cached else of((b, p, run.model.vision.patch_dim), np.uint8),
        vision=None if cached else vision,
        features=of((b, p // unit, kept.width), jax.numpy.dtype(kept.dtype)) if cached else None,
    )
    where = sharding.batch_shardings(run.mesh, batch)
    return jax.tree.map(lambda x, s: of(x.shape, x.dtype, sharding=s), batch, where)


def device_bytes(tree: Any) -> float:
    """Bytes of one device's shards of a tree of shapes with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def check(
    config: ml_collections.ConfigDict,
    topology: str,
    *,
    num_slices: int = 1,
    length: int = 0,
    patches: int = 0,
    dump: str | None = None,
) -> Report:
    """Compiles the step of `config` for `topology` and reads what the compiler made.

    Args:
      config: of the run; needs no data.
      topology: `v5p:2x2x4`, or an accelerator type, `v5p-32`.
      num_slices: slices joined by network; `config.mesh.dcn_data` is set to it.
      length, patches: see `shapes_of`.
      dump: where the compiler writes its text; None: a folder that is removed.

    Raises:
      ConfigError: a contradiction, or a mesh that does not fit the slice or the hosts of it.
      ValueError: an unknown topology.
      DoesNotFit: the compiler gave up for lack of memory.
    """
    slice_ = chips.topology(topology)
    # The resolved copy carries the schedule of a whole epoch; nothing else of the data matters.
    config = config_lib.override(config, **{"mesh.dcn_data": num_slices})
    trajectories = config.data.trajectories_per_step
    config = config_lib.resolve(
        config,
        devices=slice_.chips * num_slices,
        steps_per_epoch=math.ceil(SEEKER_ROWS / trajectories),
        needs_data=False,
    )
    model = model_config(config)
    shapes = shapes_of(config, length=length, patches=patches)
    devices = devices_of(slice_, num_slices)
    mesh = sharding.make_mesh(config, devices)
    sharding.process_groups(mesh)  # what a run asks of the mesh before its first step
    run = trainable(config, mesh, model=model)
    programs, state, frozen = Programs(run), run.state, run.part(frozen=True)
    batch = abstract_batch(run, shapes)
    places = shapes.rows * shapes.length
    micro_batches = max(1, math.ceil(trajectories * TOKENS_PER_TRAJECTORY / places))
    partial = jax.eval_shape(programs.zero) if micro_batches > 1 else None
    if partial is not None:
        where = sharding.like_params(
            partial, run.shapes, lambda name, _: run.shapes[name].sharding, mesh
        )
        partial = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), partial, where
        )
    begin = time.monotonic()
    with tuning.target(tuning.DEVICE_KINDS[devices[0].device_kind]):
        if partial is None:
            traced = programs.update.trace(state, frozen, batch)
        else:
            traced = programs.add.trace(partial, state, frozen, batch)
        lowered = traced.lower()
    memory, text = compile_lowered(lowered, dump)
    program = hlo.parse(text) if text else None
    count = len(devices)
    context = mesh.shape["context"]
    rows, length, tensor = shapes.rows, shapes.length, mesh.shape["tensor"]
    return Report(
        topology=slice_,
        slices=num_slices,
        mesh=dict(mesh.shape),
        shapes=shapes,
        params=device_bytes((state.params, frozen)),
        optimizer=device_bytes(state.optimizer),
        batch=device_bytes(batch),
        gradients=device_bytes(partial) if partial is not None else 0.0,
        activations=float(memory.temp_size_in_bytes),
        total=float(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes
        ),
        flops=(
            flops.matmul_flops(traced.jaxpr)
            + flops.attention_flops(
                model,
                rows=rows,
                length=length,
                patches=0 if batch.patches is None else shapes.patches,
                vision_trained="vision.blocks.attn.qkv.kernel" not in run.frozen,
            )
        )
        / count,
        model_flops=flops.model_flops_per_token(model) * places,
        collectives=tuple(hlo.collectives(program, devices=count, slices=num_slices))
        if program
        else (),
        largest=tuple(hlo.largest_buffers(program)) if program else (),
        square=tuple(
            hlo.square_buffers(
                program,
                length=length // context,
                vocabulary=(model.text.vocab_size, model.text.vocab_size // tensor),
            )
        )
        if program
        else (),
        unknown_loops=program.unknown_loops if program else (),
        micro_batches=micro_batches,
        trajectories=trajectories,
        compile_seconds=time.monotonic() - begin,
    )


def devices_of(slice_: Topology, num_slices: int = 1) -> list[Any]:
    """The devices of a slice that need not be there."""
    options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if slice_.chips == 1:  # else libtpu divides it by a host's four chips
        options["chips_per_host_bounds"] = [1, 1, 1]
    return topologies.get_topology_desc(
        platform="tpu", topology_name=slice_.name, **options
    ).devices


def compile_lowered(lowered: Any, dump: str | None) -> tuple[Any, str]:
    """Memory figures and the text of the optimised module.

    The text is the compiler's own dump: `compiled.as_text()` reads the executable back, which XLA refuses for what newer libtpu
    writes there.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(dump or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        before = set(folder.glob("*.after_optimizations.txt"))
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": str(folder)})
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise DoesNotFit(_short(str(error))) from error
            raise
        dumps = sorted(set(folder.glob("*.after_optimizations.txt")) - before)
        text = max(dumps, key=lambda p: p.stat().st_size).read_text() if dumps else ""
        return compiled.memory_analysis(), text


def _short(message: str) -> str:
    """The lines of the compiler's complaint that say how much, and the largest allocations."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    kept = [x for x in lines if re.search(r"Used |Exceeded|Size:|Operator:|Shape:|exceeds", x)]
    return "\n".join((kept or lines)[:16])


# ---------------------------------------------------------------- what is printed


def render(report: Report) -> str:
    """The report as text."""
    chip, shapes = report.chip, report.shapes
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items() if size > 1) or "1"
    tokens = shapes.rows * shapes.length
    lines = [
        f"{report.topology.name} x {report.slices}: {report.devices} chips, mesh {mesh}; compiled in {report.compile_seconds:.0f} s",
        f"micro-batch: {shapes.rows} rows of {shapes.length:,} tokens and {shapes.patches:,} patches",
        "",
        "per device                       GiB",
    ]
    parts = {
        "parameters": report.params,
        "optimiser state": report.optimizer,
        "accumulated gradients": report.gradients,
        "batch": report.batch,
        "activations and temporaries": report.activations,
        "total": report.total,
        f"usable on {chip.name}": chip.hbm_bytes,
    }
    lines += [f"  {name:<28}{size / GIB:8.2f}" for name, size in parts.items()]
    if report.unknown_loops:
        lines += [f"loops counted once, their trips are unknown: {', '.join(report.unknown_loops)}"]
    lines += ["", "largest buffers"]
    lines += [
        f"  {size / GIB:8.2f} GiB  {shape}  {opcode}" for size, shape, opcode in report.largest
    ]
    lines += [f"L x L or L x V buffers: {', '.join(report.square) or 'none'}", ""]
    lines += [
        f"FLOPs per device and micro-batch: {report.flops:.3e} (recomputation and vision included)"
    ]
    if report.collectives:
        lines += ["sent per device and micro-batch"]
        lines += [
            f"  {c.kind:<20}{'between slices' if c.between_slices else 'ici':<16}{c.bytes / GIB:8.2f} GiB  {c.times:.0f} times"
            for c in report.collectives
        ]
    else:
        lines += ["sent per device: unknown, the compiler left no text"]
    seconds = report.seconds()
    most, total = max(seconds.values()), sum(seconds.values())
    mfu = report.model_flops / report.devices / chip.flops
    lines += [
        "",
        f"predicted time of a micro-batch: {most:.2f} s if communication hides behind compute, {total:.2f} s if none does",
        f"  compute {seconds['compute']:.2f} s, ici {seconds['ici']:.2f} s, between slices {seconds['dcn']:.2f} s",
        f"  {tokens / total:,.0f} to {tokens / most:,.0f} tokens/s, MFU {mfu / total:.0%} to {mfu / most:.0%} (6 FLOPs per decoder weight)",
        f"predicted step: {report.micro_batches} micro-batches, {report.micro_batches * most:.0f} to {report.micro_batches * total:.0f} s",
        "assumed: "
        f"{chip.flops / 1e12:.0f} TFLOP/s bf16 of which {EFFICIENCY:.0%} are reached, {chip.ici_bandwidth / 1e9:.0f} GB/s over all ICI links, "
        f"{chip.dcn_bandwidth / 1e9:.1f} GB/s per chip between slices;",
        f"  {report.trajectories} trajectories of {TOKENS_PER_TRAJECTORY:,} tokens a step; one trajectory a row (the dearest attention); data never waited for.",
        "",
        "fits" if report.fits else "does not fit",
    ]
    return "\n".join(lines)


def define_flags() -> None:
    """The command's flags. Defined by the program alone, so that modules of several commands can be imported together."""
    config_flags.DEFINE_config_file("config", None, "Training configuration.", lock_config=True)
    topologies = "v5p:2x2x4, v6e:8x8, ... or v5p-32, v6e-64, ..."
    flags.DEFINE_string("topology", None, topologies)
    flags.DEFINE_integer("num_slices", 1, "Slices joined by network.", lower_bound=1)
    length = "Tokens of a row; 0: the largest bucket."
    flags.DEFINE_integer("length", 0, length, lower_bound=0)
    patches = "Patches of a row; 0: four per token."
    flags.DEFINE_integer("patches", 0, patches, lower_bound=0)
    flags.DEFINE_string("dump", None, "Keep the compiler's text in this folder.")
    flags.mark_flags_as_required(["config", "topology"])


def main(_: list[str]) -> None:
    """Entry point of `python -m vo3.train.compile_check`; an RL configuration goes to `vo3.train.rl_compile_check`."""
    given = flags.FLAGS
    if "rl" in given.config:
        from vo3.train import rl_compile_check

        if given.length or given.patches or given.dump:
            print(
                "compile_check: --length, --patches and --dump are of fine-tuning; rows of RL have the sizes of rl.shapes",
                file=sys.stderr,
            )
            sys.exit(2)
        return rl_compile_check.main([])
    try:
        report = check(
            given.config,
            given.topology,
            num_slices=given.num_slices,
            length=given.length,
            patches=given.patches,
            dump=given.dump,
        )
    except DoesNotFit as error:
        print(f"{error}\n\ndoes not fit")
        sys.exit(1)
    except ValueError as error:
        print(f"compile_check: {error}", file=sys.stderr)
        sys.exit(2)
    print(render(report))
    sys.exit(0 if report.fits else 1)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=config_lib.parse_flags)
