"""The pieces of the trainer against independent references."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from vo3.data.items import patchify_levels
from vo3.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from vo3.train.losses import chunked_cross_entropy, summed_cross_entropy
from vo3.train.optim import make_optimizer, muon_dimensions, schedule
from vo3.train.pixels import normalize, patchify_traced
from vo3.video import patchify


@pytest.mark.parametrize("chunk", [3, 8, 64])
def test_chunked_cross_entropy_against_float64(strict_dtypes, chunk):
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(2, 11, 8)), rng.normal(size=(8, 13))
    targets, weight = rng.integers(0, 13, (2, 11)), rng.uniform(0, 2, (2, 11))
    logp = log_softmax(hidden @ table, -1)
    at = np.take_along_axis(logp, targets[..., None], -1)[..., 0]
    expected = -(at * weight).sum() / weight.sum()
    hits = ((logp.argmax(-1) == targets) * weight).sum() / weight.sum()
    # d loss / d hidden = weight (softmax - onehot) table' / sum of weights
    gradient = (np.exp(logp) - np.eye(13)[targets]) * (weight / weight.sum())[..., None] @ table.T

    def loss(h):
        return chunked_cross_entropy(
            h,
            jnp.asarray(targets, jnp.int32),
            jnp.asarray(weight, jnp.float32),
            lambda x: x @ jnp.asarray(table, jnp.float32),
            chunk=chunk,
        )

    (value, accuracy), grad = jax.value_and_grad(loss, has_aux=True)(
        jnp.asarray(hidden, jnp.float32)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(accuracy, hits, rtol=1e-5)
    np.testing.assert_allclose(grad, gradient, atol=1e-6)


def test_z_loss_and_label_smoothing_against_float64():
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(2, 5, 13)), rng.integers(0, 13, (2, 5))
    weight = rng.uniform(0, 2, (2, 5))
    logp, norm = log_softmax(logits, -1), np.log(np.exp(logits).sum(-1))
    label = 0.9 * np.eye(13)[targets] + 0.1 / 13
    loss = -(logp * label).sum(-1) + 0.01 * norm**2
    sums = summed_cross_entropy(
        jnp.asarray(logits, jnp.float32),
        jnp.asarray(targets, jnp.int32),
        jnp.asarray(weight, jnp.float32),
        lambda x: x,
        chunk=2,
        z_loss=0.01,
        label_smoothing=0.1,
    )
    np.testing.assert_allclose(sums.loss, (loss * weight).sum(), rtol=1e-5)
    plain = -np.take_along_axis(logp, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(sums.entropy, (plain * weight).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.weight, weight.sum(), rtol=1e-6)


def test_grey_levels_normalised_on_the_device_are_the_hosts_patches(strict_dtypes):
    frames = np.random.default_rng(0).integers(0, 256, (2, 28, 56, 3), dtype=np.uint8)
    ours = jax.jit(normalize)(patchify_levels(frames))
    np.testing.assert_allclose(ours, patchify(frames)[0], atol=1e-6)


def test_nothing_to_learn_gives_zero_loss_and_no_nan():
    zero = jnp.zeros((1, 4, 2))
    loss, accuracy = chunked_cross_entropy(
        zero, jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4)), lambda x: x
    )
    assert (float(loss), float(accuracy)) == (0.0, 0.0)


def test_patches_on_the_device_equal_patches_on_the_host(strict_dtypes):
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 56, 84, 3), dtype=np.uint8)
    traced = jax.jit(patchify_traced, static_argnums=1)(frames, Qwen2_5_VLConfig.tiny().vision)
    for video, ours in zip(frames, traced, strict=True):
        expected, grid = patchify(video)
        assert ours.shape[:2] == (grid[0], grid[1] * grid[2])
        np.testing.assert_allclose(ours.reshape(expected.shape), expected, atol=1e-5)


def test_muon_takes_matrices_and_adamw_the_rest():
    params = {
        "layer": {"kernel": jnp.ones((2, 4, 3)), "bias": jnp.ones((2, 3))},
        "table": jnp.ones((5, 4)),
    }
    numbers = muon_dimensions(params)
    assert (numbers["layer"]["kernel"].reduction_axis, numbers["layer"]["kernel"].output_axis) == (
        1,
        2,
    )
    assert numbers["layer"]["bias"] is None and numbers["table"] is None


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_all_that_is_trained_decays(name):
    params = {"kernel": jnp.ones((2, 6, 4)), "scale": jnp.ones((4,))}
    optimizer = make_optimizer(name, lambda _: 0.1, weight_decay=0.5)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.05, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_first_scale_that_is_found_multiplies_the_rate_and_the_decay(name):
    rng = np.random.default_rng(0)
    sizes = {"vision.fc1.kernel": (6, 4), "vision.norm.scale": (4,), "decoder.q.kernel": (6, 4)}
    params = {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in sizes.items()}
    gradient = jax.tree.map(lambda x: x + 1, params)

    def step(**changes):
        optimizer = make_optimizer(name, lambda _: 0.1, weight_decay=0.5, **changes)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    plain = step()
    found = step(scales=((r"norm", 0.5), (r"^vision\.", 0.1)))
    for path, factor in zip(sizes, (0.1, 0.5, 1.0), strict=True):
        np.testing.assert_allclose(found[path], factor * plain[path], rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizers_go_downhill(name):
    target = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4)), jnp.float32)
    params = {"kernel": jnp.zeros_like(target), "bias": jnp.zeros((4,))}
    optimizer = make_optimizer(name, schedule("cosine", 0.05, steps=200, warmup=5))
    state = optimizer.init(params)

    def loss(p):
        return jnp.mean((p["kernel"] - target) ** 2) + jnp.mean((p["bias"] - 1) ** 2)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    first = None
    for _ in range(200):
        params, state, value = step(params, state)
        first = value if first is None else first
    assert value < 0.1 * first


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match="unknown optimizer"):
        make_optimizer("sgd", optax.constant_schedule(0.1))
    with pytest.raises(ValueError, match="unknown schedule"):
        schedule("square", 0.1, steps=10, warmup=1)
    with pytest.raises(ValueError, match="warmup of 10"):
        schedule("cosine", 0.1, steps=10, warmup=10)
