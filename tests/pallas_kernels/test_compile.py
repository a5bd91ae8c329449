"""The kernels compile through libtpu for real chips, at the project's shapes, without a buffer of size L x L.

`make test` compiles one shape per kernel for three chips, `make soak` every shape. Nothing runs: interpret mode covers values,
this covers what only the TPU compiler knows (VMEM, SMEM, layouts, lowering).
"""

import dataclasses
import importlib.util
import os
import pathlib
import re
import tempfile

import pytest

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# libtpu takes a lock file; several test processes compile at once.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import attention_cases as cases

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed: pip install libtpu",
    ),
    pytest.mark.usefixtures("no_compilation_cache"),
]

TOPOLOGIES = {
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "v4": "v4:2x2x1",
    "tpu7x": "tpu7x:2x2x1",
}
QUICK = ("v5e", "v5p", "v6e")
VISION = {"length": 65536, "q_heads": 16, "kv_heads": 16, "head_dim": 80, "causal": 0}
SHAPES = {
    "32k": {"length": 32768},
    "40k": {"length": 40960},
    # 48 GB of residuals do not fit a 16 GB chip: with all heads the gradient at 128k is for larger ones.
    "128k forward": {"length": 131072, "gradient": 0},
    "128k, heads split four ways": {"length": 131072, "q_heads": 7, "kv_heads": 1},
    "vision frames 65k": VISION,
    "vision windows 65k": {**VISION, "reach": 64},
    "head dim 64, odd length, batch": {"length": 1000, "head_dim": 64, "rows": 2},
    "float32": {"length": 4096, "dtype": "float32"},
}


@dataclasses.dataclass(frozen=True)
class Program:
    """What the TPU compiler made: the optimised HLO with its buffers assigned, and the bytes of its temporaries."""

    text: str
    temp_bytes: int


def compile_on_one(chip, fn, args):
    """The program for one device of the chip's smallest slice.

    The text is the compiler's own dump. `compiled.as_text()` gives the same, but reads it back from the executable, and XLA
    refuses what newer libtpu writes there (0.0.52 under jax 0.10.2: "async-update instruction should have 1 operands").
    """
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    mesh = Mesh(np.array(topology.devices[:1]), ("x",))
    here = NamedSharding(mesh, PartitionSpec())
    lowered = jax.jit(fn, in_shardings=here, out_shardings=here).lower(*args)
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        dumps = list(pathlib.Path(folder).glob("*.after_optimizations.txt"))
        assert len(dumps) == 1, sorted(x.name for x in pathlib.Path(folder).iterdir())
        text = dumps[0].read_text()
    return Program(text, compiled.memory_analysis().temp_size_in_bytes)


def square_buffers(hlo, length):
    """Shapes in the program with two axes of at least `length`."""
    found = set()
    for shape in re.findall(r"\w+\[([\d,]+)\]", hlo):
        sizes = [int(x) for x in shape.split(",")]
        if sum(size >= length for size in sizes) > 1:
            found.add(shape)
    return found


def check_linear(program, length):
    """No L x L buffer, by name or hidden in the total."""
    assert not square_buffers(program.text, length)
    assert program.temp_bytes < length * length


@pytest.mark.parametrize("chip", QUICK)
def test_attention_and_its_gradient_compile(chip):
    program = compile_on_one(chip, *cases.attention(length=2048, device=chip))
    for name in ("forward", "dkv", "dq"):
        assert f"visibility_splash_{name}" in program.text
    check_linear(program, 2048)


@pytest.mark.parametrize("chip", QUICK)
def test_prefix_decode_compiles(chip):
    sizes = {"groups": 2, "rollouts": 8, "prefix": 4096, "suffix": 512}
    program = compile_on_one(chip, *cases.prefix_decode(**sizes, device=chip))
    assert "visibility_prefix_decode" in program.text
    # The prefix is not repeated: temporaries stay under one copy of it.
    prefix_bytes = 2 * 2 * 4 * 4096 * 128 * 2
    assert program.temp_bytes < prefix_bytes


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_every_shape_compiles(chip, shape):
    options = SHAPES[shape]
    program = compile_on_one(chip, *cases.attention(**options, device=chip))
    if options["length"] > 1000:
        check_linear(program, options["length"])


@pytest.mark.soak
@pytest.mark.parametrize("chip", [chip for chip in TOPOLOGIES if chip not in QUICK])
def test_prefix_decode_compiles_for_the_others(chip):
    test_prefix_decode_compiles(chip)


def test_the_check_finds_a_dense_mask():
    """Dense attention at the same shape fails the check that the kernels pass."""

    def dense(q, k):
        return jax.nn.softmax(q @ k.T, axis=-1)

    x = jax.ShapeDtypeStruct((2048, 128), np.float32)
    program = compile_on_one("v5e", dense, (x, x))
    assert square_buffers(program.text, 2048)
    with pytest.raises(AssertionError):
        check_linear(program, 2048)
