"""What must not change loss and gradients: packing, padding, the mesh, accumulation. And what a step may do besides."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny_rows import (
    PATCHES,
    TOKENS,
    assert_close,
    document,
    fresh,
    layout,
    rows,
)  # fmt: skip

from vo3.train.config import ConfigError
from vo3.train.sharding import batch_shardings, place
from vo3.train.step import NORM_DECAY, NOT_FINITE, SPIKE, Programs

DOCS = [document(seed) for seed in range(8)]
# Eight unpadded rows of one document each.
ALONE = rows([[d] for d in DOCS], length=TOKENS, patches=PATCHES)


@functools.cache
def one_device():
    run = layout(spike_factor=3.0)
    return run, Programs(run), *fresh(run)


@functools.cache
def _compiled(programs):
    return jax.jit(programs.gradients)


def gradients(batch, programs=None, state=None, frozen=None):
    if programs is None:
        _, programs, state, frozen = one_device()
    partial = _compiled(programs)(state, frozen, place(batch, programs.run.mesh))
    return jax.device_get(partial)


@functools.cache
def expected():
    return gradients(ALONE)


def assert_same_step(partial, reference):
    for name in ("loss", "entropy", "weight"):
        a, b = getattr(partial.sums, name), getattr(reference.sums, name)
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)
    assert_close(partial.gradient, reference.gradient)


def test_packed_is_unpacked():
    packs = [DOCS[0:3], DOCS[3:6], DOCS[6:8]]
    assert_same_step(gradients(rows(packs, length=3 * TOKENS, patches=3 * PATCHES)), expected())


def test_bucketed_is_unpadded():
    # An empty row too, as the plan adds them.
    packs = [*[[d] for d in DOCS], []]
    assert_same_step(gradients(rows(packs, length=48, patches=64)), expected())


def test_a_leak_between_documents_is_noticed():
    """The two above can fail: one document that sees another moves loss and gradients."""
    packed = rows([DOCS[0:3], DOCS[3:6], DOCS[6:8]], length=3 * TOKENS, patches=3 * PATCHES)
    enter = packed.visibility.enter
    seen = dataclasses.replace(
        packed.visibility, enter=np.minimum(enter, 0), leave=np.minimum(enter, 0) + (enter >= 0)
    )
    leaking = gradients(dataclasses.replace(packed, visibility=seen))
    assert abs(float(leaking.sums.loss) / float(expected().sums.loss) - 1) > 1e-3


@pytest.mark.parametrize(
    "axes",
    [
        {"fsdp": 2, "tensor": 2, "context": 2},
        pytest.param({"fsdp": 4, "tensor": 2}, marks=pytest.mark.soak),
        pytest.param({"dcn_data": 2, "data": 2, "fsdp": 2}, marks=pytest.mark.soak),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.soak),
    ],
    ids=str,
)
def test_eight_devices_are_one(axes):
    run = layout(8, **{f"mesh.{axis}": size for axis, size in axes.items()})
    programs = Programs(run)
    state, frozen = fresh(run)
    # The same random parameters on any mesh, and really split.
    assert_close(jax.device_get(state.params), jax.device_get(one_device()[2].params))
    kernel = state.params["decoder.layers.q.kernel"]
    split = axes["fsdp"] * axes.get("tensor", 1)
    assert kernel.addressable_shards[0].data.size * split == kernel.size
    # Patches are split by rows, not copied to every device.
    ways = 8 // axes.get("tensor", 1) // axes.get("context", 1)
    patches = place(ALONE, run.mesh).patches
    assert patches.addressable_shards[0].data.shape[0] * ways == len(DOCS)
    # Padded to a length that every axis divides.
    padded = rows([[d] for d in DOCS], length=48, patches=64)
    assert_same_step(gradients(padded, programs, state, frozen), expected())
    mu = next(
        leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state.optimizer)[0]
        if "mu" in jax.tree_util.keystr(path) and "decoder.layers.q.kernel" in jax.tree_util.keystr(path)
    )  # fmt: skip
    assert mu.sharding == kernel.sharding


def test_rows_that_the_mesh_does_not_divide_lie_whole():
    run = layout(8, **{"mesh.fsdp": 8})
    three = jax.tree.map(lambda x: x[:3], ALONE)
    assert batch_shardings(run.mesh, three).ids.is_fully_replicated


def copy(state):
    return jax.tree.map(jax.numpy.copy, state)


def at(state, **fields):
    """A copy of the state with other scalars, placed as they were: else it would be another program."""
    moved = {
        name: jax.device_put(
            np.asarray(value, getattr(state, name).dtype), getattr(state, name).sharding
        )
        for name, value in fields.items()
    }
    return dataclasses.replace(copy(state), **moved)


def test_accumulation_over_unequal_packs_is_one_batch():
    run, programs, state, frozen = one_device()
    put = lambda batch: place(batch, run.mesh)
    together, whole = programs.update(copy(state), frozen, put(ALONE))
    parts = [
        rows([DOCS[0:3], DOCS[3:6]], length=3 * TOKENS, patches=3 * PATCHES),
        rows([DOCS[6:8], []], length=3 * TOKENS, patches=3 * PATCHES),
    ]
    apart, summed = programs.step(copy(state), frozen, map(put, parts))
    for name in ("loss", "accuracy", "weight", "gradient_norm"):
        np.testing.assert_allclose(
            getattr(summed, name), getattr(whole, name), rtol=1e-5, err_msg=name
        )
    assert int(together.step) == int(apart.step) == 1
    # Adam divides by the gradient's own size, so noise of 1e-7 in a tiny gradient is seen in full: compare the moments.
    first, second = (jax.device_get(s.optimizer) for s in (together, apart))
    moments = lambda s: {
        jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_flatten_with_path(s)[0] if "mu" in str(p)
    }  # fmt: skip
    assert_close(moments(second), moments(first))


def test_frozen_parameters_have_no_gradient_and_no_optimiser_state():
    run = layout(frozen=(r"^vision\.(?!merger\.)", r"^embed\."), dtype="bfloat16")
    state, frozen = fresh(run)
    assert any(n.startswith("vision.merger") for n in state.params)
    assert {n.split(".")[0] for n in frozen} == {"vision", "embed"}
    names = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_flatten_with_path(run.state.optimizer)[0]
    ]
    assert not [n for n in names if "vision.blocks" in n or "embed.table" in n]
    # Master weights in f32; what is frozen needs no more bits than the computation takes.
    assert {str(x.dtype) for x in state.params.values()} == {"float32"}
    assert {str(x.dtype) for x in frozen.values()} == {"bfloat16"}
    partial = jax.eval_shape(Programs(run).gradients, state, frozen, ALONE)
    assert set(partial.gradient) == set(state.params)


def test_scales_of_the_rate_reach_the_parameters_they_name():
    tower = r"^vision\.(?!merger\.)"
    after = {}
    for scales in ((), ((tower, 0.5),)):
        run = layout(**{"optim.scales": scales, "optim.warmup": 0.0})
        state, frozen = fresh(run)
        before = copy(state).params
        moved = Programs(run).update(state, frozen, place(ALONE, run.mesh))[0].params
        after[bool(scales)] = {n: np.asarray(moved[n]) - np.asarray(before[n]) for n in moved}
    names = [n for n in after[True] if n.startswith("vision.") and ".merger." not in n]
    assert names and any(np.abs(after[False][n]).max() > 0 for n in names)
    for n in after[True]:
        factor = 0.5 if n in names else 1.0
        np.testing.assert_allclose(after[True][n], factor * after[False][n], atol=1e-7, err_msg=n)


def test_a_scale_that_finds_nothing_trained_is_refused():
    with pytest.raises(ConfigError, match="'tower' is found in no parameter"):
        layout(**{"optim.scales": (("tower", 0.5),)})
    with pytest.raises(ConfigError, match="in no parameter that is trained"):
        layout(**{"optim.scales": ((r"^vision\.", 0.5),), "frozen": (r"^vision\.",)})


def test_the_mask_is_drawn_once_a_step_from_the_steps_own_key():
    run = layout(**{"tdam.policy": "turn", "tdam.mask_ratio": 0.5})
    programs = Programs(run)
    _, _, state, frozen = one_device()
    steps = jax.numpy.arange(40)
    drawn = jax.vmap(lambda i: programs._masked(dataclasses.replace(state, step=i)))(steps).tolist()
    key = jax.random.key(run.config.seed)
    uniform = [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(40)]
    assert drawn == [u < 0.5 for u in uniform] and 8 < sum(drawn) < 32
    # The draw decides whether `hide` counts.
    mean = lambda partial: float(partial.sums.loss) / float(partial.sums.weight)
    masked, causal = (
        mean(gradients(ALONE, programs, at(state, step=drawn.index(which)), frozen))
        for which in (True, False)
    )
    nothing = ALONE.visibility.with_kinds(ALONE.visibility.kind, 0 * ALONE.visibility.hide)
    plain = dataclasses.replace(ALONE, visibility=nothing)
    np.testing.assert_allclose(masked, mean(expected()), rtol=1e-5)
    np.testing.assert_allclose(causal, mean(gradients(plain)), rtol=1e-5)
    assert abs(masked - causal) > 1e-3


def test_a_step_that_is_not_finite_leaves_no_trace():
    run, programs, state, frozen = one_device()
    broken = dataclasses.replace(
        ALONE, weight=np.where(ALONE.weight > 0, np.nan, 0).astype(np.float32)
    )
    before = jax.device_get(state)
    after, metrics = programs.update(copy(state), frozen, place(broken, run.mesh))
    assert int(metrics.fault) == NOT_FINITE and int(after.step) == 1
    kept = dataclasses.replace(jax.device_get(after), step=before.step)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_spike_of_the_gradient_norm_is_skipped_once_a_mean_is_known():
    run, programs, state, frozen = one_device()
    batch = place(ALONE, run.mesh)
    _, metrics = programs.update(copy(state), frozen, batch)
    norm = float(metrics.gradient_norm)
    faults = {}
    for step, mean in ((3, norm / 10), (30, norm / 10), (30, norm / 2)):
        after, metrics = programs.update(at(state, step=step, norm=mean), frozen, batch)
        faults[step, mean] = int(metrics.fault)
        # A spike raises the bar as much as what just is none.
        if metrics.fault:
            seen = run.config.spike_factor * mean
            assert float(after.norm) == pytest.approx(NORM_DECAY * mean + (1 - NORM_DECAY) * seen)
    assert list(faults.values()) == [0, SPIKE, 0]
    # So norms that have risen for good are taken again after a while.
    after, steps = at(state, step=30, norm=norm / 10), 0
    while steps < 20:
        after, metrics = programs.update(after, frozen, batch)
        if not metrics.fault:
            break
        steps += 1
    assert 2 < steps < 20


def test_one_program_per_shape():
    run, programs, state, frozen = one_device()
    batch = place(ALONE, run.mesh)
    programs.update(copy(state), frozen, batch)
    known = programs.compiled()
    programs.update(copy(state), frozen, batch)
    assert programs.compiled() == known >= 1
