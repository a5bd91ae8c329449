"""Attention on a mesh is attention on one device: rows, heads and sequence split, forward and gradients, plans handed down."""

import dataclasses
import functools
import importlib.util
import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import pallas_kernels
from pallas_kernels import Visibility, schedule
from pallas_kernels.visibility import CLIP, OVERVIEW
from vo3.attention import AttentionMesh, EitherMask, attention, prepare, striping
from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig, stack_vision_inputs, vision_inputs

pytestmark = pytest.mark.usefixtures("strict_dtypes")

SCALE = 0.3


def mesh(**axes) -> AttentionMesh:
    return AttentionMesh(Mesh(np.array(jax.devices()).reshape(*axes.values()), tuple(axes)))


@dataclasses.dataclass(frozen=True)
class Problem:
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    vis: Visibility

    @classmethod
    def of(cls, vis: Visibility, *, rows=1, q_heads=4, kv_heads=2, dim=8, seed=0):
        """Rows that share `vis` [L] or have fields of their own [rows, L]."""
        rng = np.random.default_rng(seed)
        if vis.order.ndim == 1:
            vis = jax.tree.map(lambda f: np.tile(f, (rows, 1)), vis)
        make = lambda heads: rng.normal(size=(rows, heads, vis.order.shape[-1], dim))
        q, k, v = (make(n).astype(np.float32) for n in (q_heads, kv_heads, kv_heads))
        return cls(q, k, v, vis)

    def dense(self, causal=True):
        """An independent result: every score in float64, no kernel of ours."""
        k, v = (x.repeat(self.q.shape[1] // x.shape[1], axis=1) for x in (self.k, self.v))
        scores = np.einsum("bnlh,bnsh->bnls", self.q.astype(float), k.astype(float)) * SCALE
        seen = self.vis.dense(causal=causal)[:, None]
        weights = np.where(seen, np.exp(np.where(seen, scores, 0)), 0)
        total = weights.sum(axis=-1, keepdims=True)
        return np.einsum("bnls,bnsh->bnlh", weights / np.where(total > 0, total, 1), v)

    @functools.cached_property
    def weight(self):
        return np.random.default_rng(9).normal(size=self.q.shape).astype(np.float32)

    def run(self, *, on: AttentionMesh | None, causal=True, reach=None):
        """(out, gradients of a weighted sum of it by q, k, v)."""

        def loss(q, k, v, vis, weight):
            mask = prepare(
                vis,
                vis,
                causal=causal,
                q_heads=q.shape[1],
                kv_heads=k.shape[1],
                dtype=q.dtype,
                reach=reach,
                mesh=on,
            )
            out = attention(q, k, v, mask, scale=SCALE)
            return (out * weight).sum(), out

        call = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        gradients, out = call(self.q, self.k, self.v, self.vis, self.weight)
        return out, gradients


def check(problem: Problem, on: AttentionMesh, causal=True):
    """Split equals whole, in value and gradient, and the value is right."""
    out, gradients = problem.run(on=on, causal=causal)
    alone, alone_gradients = problem.run(on=None, causal=causal)
    np.testing.assert_allclose(out, problem.dense(causal), atol=1e-5)
    np.testing.assert_allclose(out, alone, atol=1e-5)
    for got, want in zip(gradients, alone_gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    return out


def axes_of(array) -> set[str]:
    parts = (p for p in array.sharding.spec if p)
    return {axis for p in parts for axis in ([p] if isinstance(p, str) else p)}


def tdam(length: int) -> Visibility:
    """An overview, a clip, queries that hide either, two documents and padding."""
    kind, hide = np.zeros(length, np.int32), np.zeros(length, np.int32)
    kind[4 : length // 4] = OVERVIEW
    kind[length // 3 : length // 2] = CLIP
    hide[length // 4 : length // 3] = CLIP
    hide[length // 2 : length // 2 + 5] = OVERVIEW
    first = length * 3 // 4
    vis = Visibility.packed([first, length - first - 3], total=length)
    return vis.with_kinds(kind, hide)


@pytest.mark.parametrize(("rows", "heads"), [(4, 4), (3, 4), (4, 3), (1, 1)])
def test_it_is_split_where_it_can_be(rows, heads):
    # With one kv head and more devices than that along the heads, the devices share it.
    problem = Problem.of(
        Visibility.packed([4, 3], total=9), rows=rows, q_heads=2 * heads, kv_heads=heads
    )
    out = check(problem, mesh(data=4, model=2))
    wanted = {"data": rows % 4 == 0, "model": heads % 2 == 0 or heads == 1}
    assert axes_of(out) == {axis for axis, can in wanted.items() if can}


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(8, 2), (16, 4), (8, 1)])
def test_kv_heads_are_shared_where_the_mesh_is_wider(q_heads, kv_heads):
    problem = Problem.of(tdam(24), q_heads=q_heads, kv_heads=kv_heads)
    assert axes_of(check(problem, mesh(data=1, tensor=8))) == {"tensor"}


def test_heads_that_fit_no_split_are_computed_everywhere(caplog):
    problem = Problem.of(tdam(24), q_heads=12, kv_heads=3)
    assert axes_of(check(problem, mesh(data=1, tensor=8))) == set()
    assert "3 kv heads cannot be split 8 ways" in caplog.text


# ---------------------------------------------------------------- context parallelism


def striped(problem: Problem, shards: int, run: int) -> Problem:
    order = striping(problem.q.shape[2], shards, run=run)
    tensors = (x[:, :, order] for x in (problem.q, problem.k, problem.v))
    return Problem(*tensors, jax.tree.map(lambda f: f[:, order], problem.vis))


@pytest.mark.parametrize(
    ("axes", "rows"),
    [({"context": 8}, 1), ({"data": 2, "tensor": 2, "context": 2}, 2)],
    ids=["8 ways", "with rows and heads"],
)
def test_a_split_sequence_is_the_whole_one(axes, rows):
    """Gathered keys, in order and striped; restored to the original order the striped result is the plain one."""
    on, shards = mesh(**axes), axes["context"]
    plain = Problem.of(tdam(128), rows=rows)
    assert axes_of(check(plain, on)) == set(axes)
    moved = striped(plain, shards, 8)
    out = check(moved, on)
    back = np.argsort(striping(128, shards, run=8))
    np.testing.assert_allclose(np.asarray(out)[:, :, back], plain.dense(), atol=1e-5)


def test_the_order_of_striped_tokens_matters():
    """The test above can fail: a row whose `order` is renewed after the move is another mask."""
    plain = Problem.of(tdam(128))
    moved = striped(plain, 4, 8)
    renewed = dataclasses.replace(moved.vis, order=plain.vis.order)
    out, _ = dataclasses.replace(moved, vis=renewed).run(on=None)
    back = np.argsort(striping(128, 4, run=8))
    assert np.abs(np.asarray(out)[:, :, back] - plain.dense()).max() > 1e-2


def test_a_sequence_that_cannot_be_split_is_computed_everywhere(caplog):
    problem = Problem.of(tdam(30))
    assert axes_of(check(problem, mesh(context=8))) == set()
    assert "30 queries cannot be split 8 ways" in caplog.text


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_stripes_give_every_device_the_same_work(shards):
    """Block pairs per shard under a causal mask: within 5 % striped, unlike contiguous shards."""
    length, block = 32768, 512
    vis = Visibility.causal(length)

    def work(order):
        pieces = np.split(order, shards)
        cut = lambda where: jax.tree.map(lambda f: f[where], vis)
        plans = [
            schedule.make_plan(cut(p), cut(order), block_q=block, block_kv=block, causal=True)
            for p in pieces
        ]
        return np.array([int(p.q_count) for p in plans])

    even, uneven = work(striping(length, shards, run=block)), work(np.arange(length))
    assert even.sum() == uneven.sum() == 64 * 65 // 2
    assert even.max() <= 1.05 * even.mean() < uneven.max()


def test_striping_is_a_permutation_of_whole_runs():
    order = striping(48, 3, run=4)
    np.testing.assert_array_equal(np.sort(order), np.arange(48))
    # Forth and back: device 0 holds runs 0, 5, 6, 11.
    np.testing.assert_array_equal(order[:16].reshape(4, 4)[:, 0], [0, 20, 24, 44])
    np.testing.assert_array_equal(
        order.reshape(-1, 4) - order[::4, None], np.arange(4)[None] + np.zeros((12, 1))
    )


@pytest.mark.parametrize("bad", [(100, 8, 8), (128, 0, 8), (128, 8, 32), (0, 1, 1)])
def test_rows_that_cannot_be_dealt_out_are_refused(bad):
    length, shards, run = bad
    with pytest.raises(ValueError, match="cannot be dealt out"):
        striping(length, shards, run=run)


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize(
    "axes", [None, {"data": 2, "context": 2, "tensor": 2}], ids=["one", "mesh"]
)
def test_the_kernels_take_the_prepared_plan(axes):
    """The TPU kernels, interpreted: one schedule per shard, made outside the layers, gives the same as none."""
    on = None if axes is None else mesh(**axes)
    problem = Problem.of(tdam(512), rows=2, dim=64)
    want, want_gradients = problem.run(on=None)
    with pallas_kernels.target("interpret"):
        out, gradients = problem.run(on=on)
        plan = jax.eval_shape(
            functools.partial(
                prepare, causal=True, q_heads=4, kv_heads=2, dtype=jnp.float32, mesh=on
            ),
            problem.vis,
            problem.vis,
        ).plan
    # 2 rows of 4 x 4 blocks; on the mesh 4 shards, each of 1 row and 2 x 4 blocks.
    assert plan.by_q.shape == ((32,) if axes is None else (4, 8))
    np.testing.assert_allclose(out, want, atol=2e-5)
    for got, expected in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("target", [None, "interpret"])
@pytest.mark.parametrize("which", [True, False])
def test_either_mask_is_the_chosen_one(target, which):
    windows, frames = Visibility.windows([60] * 4, 256), Visibility.windows([120, 120], 256)
    problem = Problem.of(windows, kv_heads=4, dim=64)
    batched = jax.tree.map(lambda f: f[None], frames)

    def run(q, k, v, which):
        make = functools.partial(prepare, causal=False, q_heads=4, kv_heads=4, dtype=q.dtype)
        mask = EitherMask(which, make(batched, batched), make(problem.vis, problem.vis, reach=60))
        return attention(q, k, v, mask, scale=SCALE)

    chosen = dataclasses.replace(problem, vis=batched if which else problem.vis)
    other = dataclasses.replace(problem, vis=problem.vis if which else batched)
    context = pallas_kernels.target(target) if target else jax.default_matmul_precision("highest")
    with context:
        out = jax.jit(run)(problem.q, problem.k, problem.v, which)
    np.testing.assert_allclose(out, chosen.dense(causal=False), atol=1e-5)
    assert np.abs(out - other.dense(causal=False)).max() > 1e-2


def test_no_window_of_the_tower_is_longer_than_it_promises():
    """`VisionTower.masks` promises a reach; the windows of every grid keep it."""
    config = Qwen2_5_VLConfig.tiny(vision={"window_size": 112}).vision
    rng = np.random.default_rng(0)
    longest = 0
    for _ in range(50):
        grids = [(1, *(2 * int(x) for x in rng.integers(1, 40, 2))) for _ in range(3)]
        ids = vision_inputs(grids, config).windows.enter
        runs = np.split(ids, np.flatnonzero(np.diff(ids)) + 1)
        assert len(runs) == len(np.unique(ids))  # contiguous
        longest = max(longest, *map(len, runs))
    assert longest == (config.window_size // config.patch_size) ** 2


@pytest.mark.soak
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install libtpu"
)
@pytest.mark.usefixtures("no_compilation_cache")
def test_tower_and_decoder_compile_for_a_slice(monkeypatch):
    """Both masks in one scan, heads shared, sequence split: the kernels and their gradients on four v5e chips."""
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # other tests may hold libtpu's lock
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    on = Mesh(np.array(devices).reshape(1, 2, 2), ("data", "tensor", "context"))
    config = Qwen2_5_VLConfig.tiny(
        text={
            "hidden_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "mrope_section": (8, 12, 12),
        },
        vision={"hidden_size": 320, "num_heads": 4, "out_hidden_size": 256},
        remat="full",
    )
    abstract = nnx.eval_shape(
        lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, mesh=AttentionMesh(on))
    )
    graph, params = nnx.split(abstract)
    length, patches = 1024, 2048
    inputs = stack_vision_inputs([vision_inputs([(4, 16, 32)], config.vision)])
    text = jax.tree.map(lambda f: f[None], Visibility.causal(length))
    ids = np.zeros((1, length), np.int32)
    positions = np.zeros((3, 1, length), np.int32)

    def loss(params, pixels, inputs, ids, positions, text):
        built = nnx.merge(graph, params)
        features = built.encode_vision(pixels, inputs)
        out = built(ids, positions, text, features=features, feature_index=ids, logits="none")
        return out.hidden.astype(jnp.float32).sum()

    here = NamedSharding(on, PartitionSpec())
    pixels = jax.ShapeDtypeStruct((1, patches, config.vision.patch_dim), jnp.bfloat16)
    with pallas_kernels.target("v5e"), tempfile.TemporaryDirectory() as folder:
        lowered = jax.jit(jax.grad(loss), in_shardings=here).lower(
            params, pixels, inputs, ids, positions, text
        )
        lowered.compile(compiler_options={"xla_dump_to": folder})
        (program,) = pathlib.Path(folder).glob("*.after_optimizations.txt")
        found = program.read_text()
    for name in ("forward", "dkv", "dq"):
        # Decoder, windows, frames: three kernels of each kind, forward once more for the recomputation.
        calls = re.findall(rf"= .* custom-call\(.*visibility_splash_{name}", found)
        assert len(calls) >= 3, (name, len(calls))
