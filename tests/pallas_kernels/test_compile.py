"""The kernels compile through libtpu for real chips, at the project's shapes, without a buffer of size L x L.

`make test` compiles one shape per kernel for three chips, `make soak` every shape. Nothing runs: interpret mode covers values,
this covers what only the TPU compiler knows (VMEM, SMEM, layouts, lowering).
"""

import importlib.util
import os
import re

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

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
VISION = {"length": 65536, "q_heads": 16, "kv_heads": 16, "head_dim": 80, "causal": 0}
SHAPES = {
    "32k": {"length": 32768},
    "40k": {"length": 40960},
    # 48 GB of residuals do not fit a 16 GB chip: the gradient at 128k is sharded in real life.
    "128k forward": {"length": 131072, "gradient": 0},
    "vision 65k": VISION,
    "head dim 64, odd length, batch": {"length": 1000, "head_dim": 64, "rows": 2},
    "float32": {"length": 4096, "dtype": "float32"},
}


def compile_on_one(chip, fn, args):
    """The executable for one device of the chip's smallest slice."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    mesh = Mesh(np.array(topology.devices[:1]), ("x",))
    here = NamedSharding(mesh, PartitionSpec())
    return jax.jit(fn, in_shardings=here, out_shardings=here).lower(*args).compile()


def square_buffers(hlo, length):
    """Shapes in the program with two axes of at least `length`."""
    found = set()
    for shape in re.findall(r"\w+\[([\d,]+)\]", hlo):
        sizes = [int(x) for x in shape.split(",")]
        if sum(size >= length for size in sizes) > 1:
            found.add(shape)
    return found


def check_linear(compiled, length):
    """No L x L buffer, by name or hidden in the total."""
    assert not square_buffers(compiled.as_text(), length)
    assert compiled.memory_analysis().temp_size_in_bytes < length * length


@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_attention_and_its_gradient_compile(chip):
    compiled = compile_on_one(chip, *cases.attention(length=2048, device=chip))
    text = compiled.as_text()
    for name in ("forward", "dkv", "dq"):
        assert f"visibility_splash_{name}" in text
    check_linear(compiled, 2048)


@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_prefix_decode_compiles(chip):
    sizes = {"groups": 2, "rollouts": 8, "prefix": 4096, "suffix": 512}
    compiled = compile_on_one(chip, *cases.prefix_decode(**sizes, device=chip))
    assert "visibility_prefix_decode" in compiled.as_text()
    # The prefix is not repeated: temporaries stay under one copy of it.
    prefix_bytes = 2 * 2 * 4 * 4096 * 128 * 2
    assert compiled.memory_analysis().temp_size_in_bytes < prefix_bytes


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_every_shape_compiles(chip, shape):
    options = SHAPES[shape]
    compiled = compile_on_one(chip, *cases.attention(**options, device=chip))
    if options["length"] > 1000:
        check_linear(compiled, options["length"])


def test_the_check_finds_a_dense_mask():
    """Dense attention at the same shape fails the check that the kernels pass."""

    def dense(q, k):
        return jax.nn.softmax(q @ k.T, axis=-1)

    x = jax.ShapeDtypeStruct((2048, 128), np.float32)
    compiled = compile_on_one("v5e", dense, (x, x))
    assert square_buffers(compiled.as_text(), 2048)
    with pytest.raises(AssertionError):
        check_linear(compiled, 2048)
