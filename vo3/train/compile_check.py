"""Does a config fit a TPU slice, and how fast can it be? The real train step, compiled for the slice without one.

    python -m vo3.train.compile_check --config=configs/sft_stage1.py --topology=v5p:2x2x4 [--num_slices=2] [--config.mesh.tensor=2 ...]

An RL config goes to `vo3.train.rl_compile_check`: update, rollout prefill and decode. libtpu compiles ahead of time on any x86 Linux machine. Nothing runs, so nothing here is a measurement: memory is what the
compiler assigned, FLOPs and bytes are counted, the time is predicted from named peaks. Exit code 1 when the step does not fit.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time

# It sets what compilation for a topology needs, before anything imports jax.
from vo3.train import ahead_of_time as aot  # isort: skip

import jax
import ml_collections
import numpy as np
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from pallas_kernels import tuning
from pallas_kernels.visibility import Visibility
from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig, VisionInputs
from vo3.train import chips, flops, hlo, sharding
from vo3.train import config as config_lib
from vo3.train.batch import RowBatch
from vo3.train.compile_report import TOKENS_PER_TRAJECTORY, Report, Shapes, render
from vo3.train.config import ConfigError
from vo3.train.features import spec_of
from vo3.train.state import Trainable, architecture, trainable
from vo3.train.step import Programs

# Rows of Seeker-173K, where no plan says how many steps an epoch has; only the learning-rate schedule depends on it.
SEEKER_ROWS = 173_000


def model_config(config: ml_collections.ConfigDict) -> Qwen2_5_VLConfig:
    """The architecture: of `config.model`, or, where that directory is not there, the published one of its name.

    Raises:
      ConfigError: neither.
    """
    name = epath.Path(config.model).name
    if (
        config.model != "clueworld"
        and not epath.Path(config.model).exists()
        and name in aot.PUBLISHED
    ):
        return aot.PUBLISHED[name].replace(remat=config.remat, scan_unroll=config.scan_unroll)
    try:
        return architecture(config)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"model={config.model!r}: {error}; without a checkpoint one of {', '.join(aot.PUBLISHED)} can be compiled"
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
    devices = aot.devices_of(slice_, num_slices)
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
    memory, text = aot.compile_lowered(lowered, dump)
    program = hlo.parse(text) if text else None
    count = len(devices)
    context = mesh.shape["context"]
    rows, length, tensor = shapes.rows, shapes.length, mesh.shape["tensor"]
    return Report(
        topology=slice_,
        slices=num_slices,
        mesh=dict(mesh.shape),
        shapes=shapes,
        params=aot.device_bytes((state.params, frozen)),
        optimizer=aot.device_bytes(state.optimizer),
        batch=aot.device_bytes(batch),
        gradients=aot.device_bytes(partial) if partial is not None else 0.0,
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
    except aot.DoesNotFit as error:
        print(f"{error}\n\ndoes not fit")
        sys.exit(1)
    except ValueError as error:
        print(f"compile_check: {error}", file=sys.stderr)
        sys.exit(2)
    print(render(report))
    sys.exit(0 if report.fits else 1)


if __name__ == "__main__":
    aot.pretend_worker()
    define_flags()
    app.run(main, flags_parser=config_lib.parse_flags)
