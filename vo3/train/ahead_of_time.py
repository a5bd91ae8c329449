"""Compiling for a TPU that is not there: the devices of a slice, what the compiler assigned, the architectures known by name.

Import it before anything imports jax: no chip of this machine is wanted, and libtpu must not look for one.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import tempfile
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
from jax.experimental import topologies

from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig
from vo3.models.qwen2_5_vl.config import TextConfig, VisionConfig
from vo3.train.chips import Topology

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


def pretend_worker() -> None:
    """For a program that does nothing else: without this libtpu complains at length that this machine is no TPU worker."""
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")


def devices_of(slice_: Topology, num_slices: int = 1) -> list[Any]:
    """The devices of a slice that need not be there.

    Raises:
      ValueError: the compiler knows no slice of that shape.
    """
    options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if slice_.chips == 1:  # else libtpu divides it by a host's four chips
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=slice_.name, **options
        ).devices
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise ValueError(
            f"topology {slice_.name}: {error}; the sides of a slice are whole hosts, as in v5e:4x4 or v5p:2x2x4"
        ) from error


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


def device_bytes(tree: Any) -> float:
    """Bytes of one device's shards of a tree of shapes with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
