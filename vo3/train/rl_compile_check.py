"""Does an RL config fit a TPU slice? Update, rollout prefill and decode, compiled for the slice without one.

    python -m vo3.train.rl_compile_check --config=configs/rl.py --topology=v5p:2x2x4 [--config.rl.rollout.tensor=1 ...]

As `vo3.train.compile_check`: nothing runs, memory is what the compiler assigned. While rollouts are made a device holds the trainer's state too,
the reference of `rl.kl`, and the caches of every lane; while the policy is updated the rollout's weights and caches are gone. Exit code 1 when one of the programs does not fit.
"""

from __future__ import annotations

import dataclasses
import sys

# It sets what compilation for a topology needs, before anything imports jax.
from vo3.train import ahead_of_time as aot  # isort: skip

import jax
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from pallas_kernels import tuning
from vo3.rollout.group_programs import GroupPrograms
from vo3.train import chips, rl_config, sharding
from vo3.train import config as config_lib
from vo3.train.chips import GIB, Chip
from vo3.train.compile_check import abstract_batch, model_config
from vo3.train.compile_report import Shapes
from vo3.train.group_rows import PolicyBatch
from vo3.train.group_trees import Shape
from vo3.train.policy_loss import Scored
from vo3.train.policy_step import PolicyPrograms
from vo3.train.program_memory import Part, compiled, table
from vo3.train.publish import Publisher
from vo3.train.state import Trainable, trainable

# Rows of the published mix, where no data say how many there are; only schedules depend on it.
ROWS = 185_000


@dataclasses.dataclass(frozen=True)
class RLReport:
    """What a device of the slice holds.

    Attributes:
      chip: of the slice.
      mesh: of the trainer.
      sets, tensor: sets of devices of a process that roll out, devices that share the weights.
      cache: bytes of the key-value caches of all lanes on a device, at the largest buckets.
      parts: the programs.
    """

    chip: Chip
    mesh: dict[str, int]
    sets: int
    tensor: int
    cache: float
    parts: tuple[Part, ...]

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return all(part.total <= self.chip.hbm_bytes for part in self.parts)


def abstract_rows(run: Trainable, shape: Shape) -> PolicyBatch:
    """A micro-batch of rows of this shape, as shapes with shardings."""
    count = config_lib.row_ways(run.config) * run.config.data.rows_per_device
    rows = abstract_batch(run, Shapes(count, shape.tokens, shape.patches))
    of = lambda dtype, *more: jax.ShapeDtypeStruct((count, *more), dtype)
    ints, floats = of(np.int32, shape.scored), of(np.float32, shape.scored)
    scored = Scored(ints, ints, ints, floats, floats, floats, of(np.float32))
    where = sharding.batch_shardings(run.mesh, scored)
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return PolicyBatch(rows, jax.tree.map(place, scored, where))


def check(config: ml_collections.ConfigDict, topology: str, *, num_slices: int = 1) -> RLReport:
    """Compiles the programs of `config` for `topology`, each at its largest shape.

    Raises:
      ConfigError: a contradiction, or a mesh that does not fit the slice or the hosts of it.
      ValueError: an unknown topology.
      DoesNotFit: the compiler gave up for lack of memory.
    """
    slice_ = chips.topology(topology)
    # Nothing is read; any name passes for the rows.
    changes = {"mesh.dcn_data": num_slices}
    changes |= {"data.rows": config.data.rows or "rows.jsonl"}
    config = config_lib.override(config, **changes)
    config = rl_config.resolve(config, devices=slice_.chips * num_slices, prompts=ROWS)
    devices = aot.devices_of(slice_, num_slices)
    mesh = sharding.make_mesh(config, devices)
    sharding.refuse_shared_rows(mesh)  # what a run asks of the mesh before its first step
    run = trainable(rl_config.for_optimizer(config), mesh, model=model_config(config))
    state, frozen = run.state, run.part(frozen=True)
    programs = PolicyPrograms(
        run, rl_config.policy_loss(config), temperature=config.rl.rollout.temperature
    )
    shape = rl_config.shapes(config)[-1]
    partial = jax.eval_shape(programs.zero)
    where = sharding.like_params(
        partial, run.shapes, lambda name, _: run.shapes[name].sharding, mesh
    )
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    partial = jax.tree.map(place, partial, where)
    reference = None
    if config.rl.kl:
        # As `Updater` keeps it: in the dtype of the computation.
        cast = lambda x: jax.ShapeDtypeStruct(x.shape, config.dtype, sharding=x.sharding)
        reference = {name: cast(x) for name, x in state.params.items()}
    publish = Publisher(run)
    lanes = config.rl.rollout.lanes
    groups = config.rl.rollout.slots // lanes * publish.sets
    sizes = rl_config.buckets(config).limit(config.rl.rollout.max_length)
    beside = aot.device_bytes((state, frozen, reference))
    with tuning.target(tuning.DEVICE_KINDS[devices[0].device_kind]):
        name = f"update, rows of {shape.tokens:,} tokens and {shape.patches:,} patches"
        batch = abstract_rows(run, shape)
        lowered = programs.add.lower(partial, state, frozen, batch, reference)
        parts = [compiled(name, lowered, resident=0.0)]
        rollout = GroupPrograms(publish.abstract(), groups=groups, leaves=config.rl.group)
        largest = {
            "tokens": sizes.tokens[-1], "prefix": sizes.prefix[-1], "suffix": sizes.suffix[-1],
        }  # fmt: skip
        told = ", ".join(f"{key} {size:,}" for key, size in largest.items())
        room = {"prefix": largest["prefix"], "suffix": largest["suffix"]}
        cache = rollout.cache_bytes(**room)
        for name, lowered in rollout.lowered(**largest, features=sizes.features).items():
            # Of the lane that runs, a prompt is given the prefixes alone.
            given = {**room, "suffix": 0} if name == "prompt" else room
            waiting = lanes * cache - rollout.cache_bytes(**given)
            parts.append(compiled(f"{name}, {told}", lowered, resident=beside + waiting))
    return RLReport(
        slice_.chip,
        dict(mesh.shape),
        publish.sets,
        publish.mesh.shape["tensor"],
        float(lanes * cache),
        tuple(parts),
    )


def render(report: RLReport) -> str:
    """The report as text."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items() if size > 1) or "1"
    lines = [
        f"trainer's mesh {mesh}; rollout: {report.sets} sets of {report.tensor} devices in each process",
        f"key-value caches: {report.cache / GIB:.2f} GiB per device at the largest buckets",
        "",
        *table(report.parts, report.chip),
    ]
    return "\n".join([*lines, "", "fits" if report.fits else "does not fit"])


def define_flags() -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file("config", None, "RL configuration.", lock_config=True)
    flags.DEFINE_string("topology", None, "v5p:2x2x4, v6e:8x8, ... or v5p-32, v6e-64, ...")
    flags.DEFINE_integer("num_slices", 1, "Slices joined by network.", lower_bound=1)
    flags.mark_flags_as_required(["config", "topology"])


def main(_: list[str]) -> None:
    """Entry point of `python -m vo3.train.rl_compile_check`."""
    given = flags.FLAGS
    try:
        report = check(given.config, given.topology, num_slices=given.num_slices)
    except aot.DoesNotFit as error:
        print(f"{error}\n\ndoes not fit")
        sys.exit(1)
    except ValueError as error:
        print(f"rl_compile_check: {error}", file=sys.stderr)
        sys.exit(2)
    print(render(report))
    sys.exit(0 if report.fits else 1)


if __name__ == "__main__":
    aot.pretend_worker()
    define_flags()
    app.run(main, flags_parser=config_lib.parse_flags)
