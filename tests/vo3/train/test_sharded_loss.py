"""The loss on a mesh equals the loss on one device, and nothing is sent per chunk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from vo3.train import hlo
from vo3.train.losses import summed_cross_entropy
from vo3.train.sharded_loss import sharded_cross_entropy

LENGTH, CHUNK = 64, 16


@pytest.fixture(scope="module", params=[False, True], ids=["own matrix", "tied"])
def case(request):
    config = Qwen2_5_VLConfig.tiny(tie_word_embeddings=request.param)
    model = Qwen2_5_VL(config, rngs=nnx.Rngs(0))
    keys = jax.random.split(jax.random.key(1), 3)
    hidden = jax.random.normal(keys[0], (8, LENGTH, config.text.hidden_size))
    targets = jax.random.randint(keys[1], (8, LENGTH), 0, config.text.vocab_size)
    # Rows of unequal weight: a mean of means would be seen.
    weight = (jax.random.uniform(keys[2], (8, LENGTH)) < jnp.linspace(0.1, 0.9, 8)[:, None]).astype(
        jnp.float32
    )
    return model, hidden, targets, weight


def on(mesh, model):
    """Objective and gradient with the rows over (data, fsdp) and the matrix split as in training."""
    graph, params = nnx.split(model)

    def objective(params, hidden, targets, weight):
        sums = sharded_cross_entropy(
            hidden,
            targets,
            weight,
            nnx.merge(graph, params),
            mesh=mesh,
            axes=("data", "fsdp"),
            chunk=CHUNK,
            z_loss=1e-3,
        )
        return sums.loss, sums

    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)), params


def mesh_of(data, fsdp, tensor):
    devices = np.array(jax.devices()[: data * fsdp * tensor]).reshape(data, fsdp, tensor)
    return Mesh(devices, ("data", "fsdp", "tensor"))


@pytest.mark.parametrize("shape", [(2, 4, 1), (2, 2, 2), (1, 1, 2)])
def test_loss_and_gradients_are_those_of_one_device(case, shape):
    model, *arrays = case
    (loss, sums), gradient = on(None, model)[0](nnx.split(model)[1], *arrays)
    run, params = on(mesh_of(*shape), model)
    (got, got_sums), got_gradient = run(params, *arrays)
    assert float(got) == pytest.approx(float(loss), rel=1e-6)
    for field in dataclasses.fields(sums):
        np.testing.assert_allclose(
            getattr(got_sums, field.name), getattr(sums, field.name), rtol=1e-6
        )
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(got_gradient), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6 * float(jnp.abs(a).max() + 1))


def test_rows_that_the_mesh_does_not_divide_are_left_to_the_compiler(case):
    model, hidden, targets, weight = case
    part = (hidden[:3], targets[:3], weight[:3])
    plain = summed_cross_entropy(*part, model.unembed, chunk=CHUNK)
    run, params = on(mesh_of(2, 4, 1), model)
    (_, sums), _ = run(params, *part)
    np.testing.assert_allclose(sums.entropy, plain.entropy, rtol=1e-6)


def sent_in_loops(step, *arguments):
    """Collectives of the compiled program that run more than once."""
    program = hlo.parse(step.lower(*arguments).compile().as_text())
    assert not program.unknown_loops
    return [
        i.opcode
        for name, instructions in program.computations.items()
        for i in instructions
        if i.opcode.removesuffix("-start") in hlo.COLLECTIVES and program.counts.get(name, 0) > 1
    ]


def test_nothing_is_sent_per_chunk(case):
    model, *arrays = case
    mesh = mesh_of(1, 8, 1)
    graph, params = nnx.split(model)
    place = lambda x, *spec: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec))
    )
    params = jax.tree.map(
        lambda x: place(x, *(("fsdp",) if x.ndim and x.shape[0] % 8 == 0 else ())), params
    )
    arrays = [place(x, "fsdp") for x in arrays]
    assert sent_in_loops(on(mesh, model)[0], params, *arrays) == []

    # The check finds what the compiler does when left alone.
    def plain(params, hidden, targets, weight):
        unembed = nnx.merge(graph, params).unembed
        return summed_cross_entropy(hidden, targets, weight, unembed, chunk=CHUNK).loss

    assert sent_in_loops(jax.jit(jax.grad(plain)), params, *arrays)
