"""Every implementation against dense float64: out, lse, dq, dk, dv apart, over random layouts of every kind."""

import dataclasses
import functools
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import BlockSizes, Visibility, splash_attention, tuning
from pallas_kernels.splash import api, tpu
from tests.pallas_kernels.layouts import KINDS, layout

TOLERANCE = 2e-5
NAMES = ("out", "lse", "dq", "dk", "dv")


def oracle(q, k, v, mask, scale, d_out, d_lse):
    """Attention and its gradients in NumPy float64, by the textbook; q [B, N, L, H], mask [B, L, S]."""
    q, k, v, d_out, d_lse = (np.asarray(x, np.float64) for x in (q, k, v, d_out, d_lse))
    groups = q.shape[1] // k.shape[1]
    k_all, v_all = np.repeat(k, groups, 1), np.repeat(v, groups, 1)
    mask = np.broadcast_to(np.asarray(mask), (q.shape[0], *mask.shape[-2:]))[:, None]
    scores = np.where(mask, np.einsum("bnlh,bnsh->bnls", q, k_all) * scale, -np.inf)
    seen = mask.any(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        top = np.where(seen, scores.max(-1), 0)
        weights = np.exp(scores - top[..., None])
        lse = np.where(seen, top + np.log(weights.sum(-1)), -np.inf)
        p = np.where(seen[..., None], weights / weights.sum(-1, keepdims=True), 0)
    out = np.einsum("bnls,bnsh->bnlh", p, v_all)
    dp = np.einsum("bnlh,bnsh->bnls", d_out, v_all)
    delta = (d_out * out).sum(-1) - np.where(seen, d_lse, 0)
    ds = p * (dp - delta[..., None]) * scale
    fold = lambda x: x.reshape(x.shape[0], k.shape[1], groups, *x.shape[2:]).sum(2)
    dq = np.einsum("bnls,bnsh->bnlh", ds, k_all)
    dk = fold(np.einsum("bnls,bnlh->bnsh", ds, q))
    dv = fold(np.einsum("bnls,bnlh->bnsh", p, d_out))
    return dict(zip(NAMES, (out, lse, dq, dk, dv), strict=True))


def inputs(rng, rows, heads, kv_heads, length, keys, dim, dtype=np.float32):
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    q, d_out = make(rows, heads, length, dim), make(rows, heads, length, dim)
    k, v = make(rows, kv_heads, keys, dim), make(rows, kv_heads, keys, dim)
    return q, k, v, d_out, jnp.asarray(rng.normal(size=q.shape[:3]), jnp.float32)


@functools.partial(jax.jit, static_argnames=("causal", "implementation", "blocks", "scale"))
def run(q, k, v, d_out, d_lse, q_vis, kv_vis, *, causal, implementation, blocks=None, scale=None):
    def attend(q, k, v):
        return splash_attention(
            q,
            k,
            v,
            q_vis,
            kv_vis,
            causal=causal,
            scale=scale,
            return_lse=True,
            block_sizes=blocks,
            implementation=implementation,
        )

    (out, lse), pull = jax.vjp(attend, q, k, v)
    return dict(zip(NAMES, (out, lse, *pull((d_out, d_lse))), strict=True))


def compare(got, want, tolerance=TOLERANCE):
    """Asserts every result on its own: NaN-free, minus infinity at the same places, close elsewhere."""
    for name in NAMES:
        a, b = np.asarray(got[name], np.float64), want[name]
        assert a.shape == b.shape, name
        np.testing.assert_array_equal(np.isneginf(a), np.isneginf(b), err_msg=name)
        finite = np.isfinite(b)
        assert np.isfinite(a[finite]).all(), name
        error = np.abs(a[finite] - b[finite]).max(initial=0)
        assert error <= tolerance, f"{name} is off by {error:.2e}"


IMPLEMENTATIONS = {
    "reference": {"implementation": "reference"},
    "one chunk": {"implementation": "xla"},
    "chunks": {"implementation": "xla", "blocks": BlockSizes(40, 24)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_portable_implementations(name, kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for causal in (True, False):
        rows = [layout(rng, kind, 100) for _ in range(2)]
        vis = jax.tree.map(lambda *x: np.stack(x), *rows)
        args = inputs(rng, 2, 4, 2, 100, 100, 16)
        got = run(*args, vis, vis, causal=causal, **IMPLEMENTATIONS[name])
        want = oracle(*args[:3], vis.dense(causal=causal), 16**-0.5, *args[3:])
        compare(got, want)


@pytest.fixture
def interpret():
    with pallas_kernels.target("interpret"):
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_kernel(kind, interpret):
    """The TPU kernels in interpret mode, padded lengths, blocks of unequal size."""
    rng = np.random.default_rng(KINDS.index(kind))
    rows = [layout(rng, kind, 330) for _ in range(2)]
    vis = jax.tree.map(lambda *x: np.stack(x), *rows)
    causal = kind != "windows"
    args = inputs(rng, 2, 4, 2, 330, 330, 64)
    got = run(*args, vis, vis, causal=causal, implementation="splash", blocks=BlockSizes(128, 256))
    compare(got, oracle(*args[:3], vis.dense(causal=causal), 64**-0.5, *args[3:]))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(3, 1, 128), (2, 2, 80), (1, 1, 64)], ids=str
)
@pytest.mark.parametrize("unroll", [False, True])
def test_kernel_heads_and_variants(heads, kv_heads, dim, unroll, interpret, monkeypatch):
    variant = tuning.KernelTuning(unroll)
    variants = dict.fromkeys(("forward", "dkv", "dq"), variant)
    monkeypatch.setattr(tpu, "_INTERPRET", dataclasses.replace(tpu._INTERPRET, **variants))
    rng = np.random.default_rng(dim)
    vis = layout(rng, "tdam", 256)
    args = inputs(rng, 1, heads, kv_heads, 256, 256, dim)
    run.clear_cache()
    got = run(*args, vis, vis, causal=True, implementation="splash", scale=0.2)
    compare(got, oracle(*args[:3], vis.dense(causal=True), 0.2, *args[3:]))


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_queries_of_their_own_length_and_order(implementation, interpret):
    """Chunked prefill and striped context parallelism: queries are a permuted part of the keys' row."""
    rng = np.random.default_rng(3)
    vis = layout(rng, "tree", 256)
    picks = np.r_[192:256, 0:64, 128:160]
    q_vis = jax.tree.map(lambda x: x[picks], vis)
    args = inputs(rng, 1, 2, 1, picks.size, 256, 64)
    got = run(*args, q_vis, vis, causal=True, implementation=implementation)
    compare(got, oracle(*args[:3], q_vis.dense(causal=True, kv=vis), 0.125, *args[3:]))


@pytest.mark.parametrize("shared", ["both", "keys"])
def test_rows_may_share_fields(shared, interpret):
    rng = np.random.default_rng(4)
    vis = layout(rng, "packed", 128)
    q_vis = vis if shared == "both" else jax.tree.map(lambda x: np.stack([x, x[::-1]]), vis)
    args = inputs(rng, 2, 2, 1, 128, 128, 64)
    mask = q_vis.dense(
        causal=True, kv=vis if shared == "both" else jax.tree.map(lambda x: x[None], vis)
    )
    want = oracle(*args[:3], mask, 0.125, *args[3:])
    for implementation in ("xla", "splash"):
        compare(run(*args, q_vis, vis, causal=True, implementation=implementation), want)


@pytest.mark.parametrize("implementation", ["reference", "xla", "splash"])
def test_one_flipped_mask_bit_is_noticed(implementation, interpret):
    """The comparison above is strict enough to see a single wrong pair."""
    rng = np.random.default_rng(5)
    vis = layout(rng, "packed", 128)
    args = inputs(rng, 1, 2, 1, 128, 128, 64)
    mask = vis.dense(causal=True).copy()
    got = run(*args, vis, vis, causal=True, implementation=implementation)
    compare(got, oracle(*args[:3], mask, 0.125, *args[3:]))
    row, column = np.argwhere(mask)[mask.sum() // 2]
    mask[row, column] = False
    wrong = oracle(*args[:3], mask, 0.125, *args[3:])
    for name in NAMES:
        with pytest.raises(AssertionError):
            compare({**wrong, name: got[name]}, wrong)


@pytest.mark.parametrize("implementation", ["reference", "xla", "splash"])
def test_rows_that_see_nothing(implementation, interpret):
    vis = Visibility.causal(128, valid=0)
    args = inputs(np.random.default_rng(6), 1, 2, 1, 128, 128, 64)
    got = run(*args, vis, vis, causal=True, implementation=implementation)
    assert np.isneginf(got["lse"]).all()
    for name in ("out", "dq", "dk", "dv"):
        np.testing.assert_array_equal(got[name], 0)


def test_small_blocks_finish_all_heads_together(interpret, monkeypatch):
    """Blind rows, padding, NaN and several query heads of several kv heads in the code that unrolled small blocks take."""
    unrolled = dict.fromkeys(("forward", "dkv", "dq"), tuning.KernelTuning(True))
    monkeypatch.setattr(tpu, "_INTERPRET", dataclasses.replace(tpu._INTERPRET, **unrolled))
    rng = np.random.default_rng(12)
    vis = Visibility.windows([60, 0, 70, 100], 270)
    args = inputs(rng, 1, 6, 3, 270, 270, 80)
    run.clear_cache()
    blocks = BlockSizes(128, 128)
    got = run(*args, vis, vis, causal=False, implementation="splash", blocks=blocks)
    compare(got, oracle(*args[:3], vis.dense(causal=False), 80**-0.5, *args[3:]))
    q, *rest = args
    bad = q.at[0, 4, 65, 3].set(np.nan)
    got = run(bad, *rest, vis, vis, causal=False, implementation="splash", blocks=blocks)
    np.testing.assert_array_equal(np.argwhere(np.isnan(got["lse"][0])), [[4, 65]])
    assert np.isneginf(got["lse"][..., 230:]).all()


@pytest.mark.parametrize("implementation", ["reference", "xla", "splash"])
def test_a_nan_goes_on_and_is_not_taken_for_a_row_that_sees_nothing(implementation, interpret):
    vis = Visibility.packed([100, 20], 128)
    q, *rest = inputs(np.random.default_rng(10), 1, 2, 1, 128, 128, 64)
    got = run(
        q.at[0, 1, 30, 5].set(np.nan), *rest, vis, vis, causal=True, implementation=implementation
    )
    for name in ("out", "lse"):
        bad = np.isnan(got[name]).reshape(2, 128, -1).any(-1)
        np.testing.assert_array_equal(np.argwhere(bad), [[1, 30]], err_msg=name)
    for name in ("dk", "dv"):
        assert np.isnan(got[name]).any(), name


@pytest.mark.parametrize("length", [512, 256])
def test_a_promise_of_reach_broken_inside_jit_gives_nan(length, interpret):
    """One window where 64 was promised: the pairs of 512 tokens find no room; those of 256 do, and nothing is lost."""
    vis = jax.tree.map(jnp.asarray, Visibility.windows([length]))
    args = inputs(np.random.default_rng(11), 1, 2, 1, length, length, 64)

    @jax.jit
    def broken(q, k, v, vis):
        plan = pallas_kernels.attention_plan(
            vis, vis, causal=False, q_heads=2, kv_heads=1, dtype=q.dtype, reach=64
        )
        return splash_attention(q, k, v, vis, vis, causal=False, plan=plan, return_lse=True)

    (out, lse), pull = jax.vjp(lambda q, k, v: broken(q, k, v, vis), *args[:3])
    got = dict(zip(NAMES, (out, lse, *pull(args[3:])), strict=True))
    if length == 512:
        for name, x in got.items():
            assert np.isnan(x).all(), name
    else:
        compare(got, oracle(*args[:3], vis.dense(causal=False), 0.125, *args[3:]))


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_bfloat16(implementation, interpret):
    """Inputs and probabilities are rounded to 8 bits: about 1e-2 on values of size 1."""
    rng = np.random.default_rng(7)
    vis = layout(rng, "tdam", 256)
    args = inputs(rng, 1, 4, 2, 256, 256, 64, jnp.bfloat16)
    got = run(*args, vis, vis, causal=True, implementation=implementation)
    assert all(got[name].dtype == jnp.bfloat16 for name in ("out", "dq", "dk", "dv"))
    assert got["lse"].dtype == jnp.float32
    want = oracle(*args[:3], vis.dense(causal=True), 0.125, *args[3:])
    for name in NAMES:
        scale = np.abs(want[name][np.isfinite(want[name])]).max()
        compare({**want, name: got[name]}, want, 0.02 * scale)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_inside_scan_remat_vmap_and_strict_promotion(implementation, interpret):
    rng = np.random.default_rng(8)
    vis = jax.tree.map(jnp.asarray, layout(rng, "packed", 128))
    q, k, v, *_ = inputs(rng, 1, 2, 1, 128, 128, 64)
    plan = pallas_kernels.attention_plan(
        vis, vis, causal=True, q_heads=2, kv_heads=1, dtype=q.dtype, implementation=implementation
    )
    assert (plan is None) == (implementation == "xla")

    def loss(q, plan):
        def layer(x, _):
            attend = functools.partial(
                splash_attention, causal=True, implementation=implementation, plan=plan
            )
            return attend(x, k, v, vis, vis), None

        return (jax.lax.scan(jax.checkpoint(layer), q, None, length=2)[0] ** 2).sum()

    with jax.numpy_dtype_promotion("strict"):
        with_plan = jax.jit(jax.grad(loss))(q, plan)
        without = jax.jit(jax.grad(loss))(q, None)
    np.testing.assert_array_equal(with_plan, without)
    assert np.isfinite(with_plan).all() and np.abs(with_plan).max() > 0


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_sharded_over_rows_and_heads_equals_whole(implementation, interpret):
    """Inside shard_map every device plans from the fields of its own rows."""
    rng = np.random.default_rng(9)
    rows = [layout(rng, kind, 128) for kind in ("packed", "tree")]
    vis = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows)
    q, k, v, *_ = inputs(rng, 2, 4, 2, 128, 128, 64)
    attend = functools.partial(splash_attention, causal=True, implementation=implementation)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "heads"))
    spec, row = jax.P("data", "heads"), jax.P("data")
    sharded = jax.shard_map(
        lambda q, k, v, vis: attend(q, k, v, vis, vis),
        mesh=mesh,
        in_specs=(spec, spec, spec, row),
        out_specs=spec,
        check_vma=False,
    )
    loss = lambda f: jax.jit(jax.grad(lambda q, k, v: (f(q, k, v, vis) ** 2).sum(), (0, 1, 2)))
    got = loss(sharded)(q, k, v)
    want = loss(lambda q, k, v, vis: attend(q, k, v, vis, vis))(q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_memory_of_the_xla_path_is_linear():
    """No buffer of the compiled gradient grows with L times S."""

    def temp_bytes(length):
        x = jax.ShapeDtypeStruct((1, 2, length, 32), jnp.float32)
        vis = Visibility.causal(length)
        attend = functools.partial(splash_attention, causal=True, implementation="xla")
        loss = lambda q, k, v: attend(q, k, v, vis, vis).sum()
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temp_bytes(8192), temp_bytes(16384)
    assert long < 2.2 * short
    assert long < 16384 * 16384


def test_auto_picks_by_platform_and_logs_once(caplog):
    api._logged.clear()
    x, vis = jnp.ones((1, 1, 8, 64)), Visibility.causal(8)
    with caplog.at_level(logging.INFO, logger=api.__name__):
        for choice in (None, "auto", None):
            splash_attention(x, x, x, vis, vis, causal=True, implementation=choice)
    assert [r.getMessage() for r in caplog.records] == ["attention: implementation 'xla' on 'cpu'"]
    with pallas_kernels.target("v5e"):
        assert api.choose(None) == "splash"
        assert api.choose(None, "head dim is 48") == "xla"
        assert api.choose("splash", "head dim is 48") == "splash"


def test_a_tpu_that_is_not_known_runs_xla_unless_the_kernel_was_named(monkeypatch):
    kind = types.SimpleNamespace(device_kind="TPU v3")
    monkeypatch.setattr(tuning.jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(tuning.jax, "devices", lambda: [kind])
    assert api.choose(None) == "xla"
    assert api.choose("splash") == "splash"
    with pytest.raises(NotImplementedError, match="'TPU v3' is not known"):
        tpu.device_tuning()


def test_what_the_kernel_cannot_do_falls_to_xla_only_when_left_open(caplog, interpret):
    api._logged.clear()
    x, vis = jnp.ones((1, 1, 8, 48)), Visibility.causal(8)
    with caplog.at_level(logging.INFO, logger=api.__name__):
        splash_attention(x, x, x, vis, vis, causal=True)
    assert "'xla' on 'interpret', as head dim is 48" in caplog.text
    with pytest.raises(NotImplementedError, match="head dim is 48"):
        splash_attention(x, x, x, vis, vis, causal=True, implementation="splash")


def test_the_kernel_says_why_it_cannot():
    x, vis = jnp.ones((1, 1, 8, 64)), Visibility.causal(8)
    attend = functools.partial(splash_attention, causal=True, implementation="splash")
    with pytest.raises(NotImplementedError, match="runs on TPU and this is cpu"):
        attend(x, x, x, vis, vis)
    with pytest.raises(NotImplementedError, match="nothing is tuned for device 'v9'"):
        with pallas_kernels.target("v9"):
            pass
    with pallas_kernels.target("interpret"):
        odd = jnp.ones((1, 1, 8, 48))
        with pytest.raises(NotImplementedError, match="head dim is 48"):
            attend(odd, odd, odd, vis, vis)
        half = x.astype(jnp.float16)
        with pytest.raises(NotImplementedError, match="dtype float16"):
            attend(half, half, half, vis, vis)
        with pytest.raises(ValueError, match=r"block_sizes.kv is 96; wanted a multiple of 128"):
            attend(x, x, x, vis, vis, block_sizes=BlockSizes(128, 96))
        plan = pallas_kernels.attention_plan(vis, vis, causal=False, q_heads=1, kv_heads=1)
        with pytest.raises(ValueError, match=r"plan is of 1 rows .* wanted 1 or 1 rows"):
            attend(x, x, x, vis, vis, plan=plan)


def bad(**change):
    shapes = {"q": (2, 4, 8, 16), "k": (2, 2, 8, 16), "v": (2, 2, 8, 16)} | change
    arrays = {n: jnp.ones(shapes[n], shapes.get(n + "_dtype", jnp.float32)) for n in "qkv"}
    vis = Visibility.causal(8)
    return {**arrays, "q_vis": shapes.get("q_vis", vis), "kv_vis": shapes.get("kv_vis", vis)}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": (4, 8, 16)}, r"q has shape \(4, 8, 16\)"),
        ({"k": (3, 2, 8, 16), "v": (3, 2, 8, 16)}, r"k has shape \(3, 2, 8, 16\)"),
        ({"v": (2, 2, 9, 16)}, r"v has shape \(2, 2, 9, 16\), k has"),
        ({"q": (2, 3, 8, 16)}, "q has 3 heads, k has 2; wanted a multiple"),
        ({"k_dtype": jnp.bfloat16}, "k has dtype bfloat16, q has float32"),
        ({"q_dtype": jnp.int32}, "q has dtype int32"),
        ({"q_vis": Visibility.causal(9)}, r"q_vis has fields \(9,\); wanted \(8,\) or \(2, 8\)"),
        ({"kv_vis": Visibility.padding(3, 8)}, r"kv_vis has fields \(3, 8\)"),
        ({"k": (2, 2, 0, 16), "v": (2, 2, 0, 16)}, "wanted at least 1"),
    ],
)
def test_bad_arguments_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        splash_attention(**bad(**change), causal=True)


def test_bad_choices_are_named():
    with pytest.raises(ValueError, match="implementation is 'cuda'; wanted one of"):
        splash_attention(**bad(), causal=True, implementation="cuda")
    with pytest.raises(ValueError, match="wanted at least 1"):
        splash_attention(**bad(), causal=True, block_sizes=BlockSizes(0, 128))
