"""The policy's weights on their way to the rollout: the same values, where the rollout wants them."""

import fake_groups
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import rl_clueworld
from vo3.models import hf_io
from vo3.train.config import ConfigError, override
from vo3.train.publish import Publisher, _splitting
from vo3.train.sharding import make_mesh
from vo3.train.state import trainable


def laid_out(devices, **changes):
    config = override(rl_clueworld.get_config(), **{"init_from": "random", **changes})
    mesh = make_mesh(config, jax.devices()[:devices])
    return trainable(config, mesh, model=fake_groups.architecture())


def filled(run):
    rng = np.random.default_rng(0)
    return {
        n: jax.device_put(rng.normal(size=s.shape).astype(np.float32), s.sharding)
        for n, s in run.shapes.items()
    }


def test_one_device_shares_the_trainers_arrays():
    run = laid_out(1)
    publish, params = Publisher(run), filled(run)
    model = publish(*run.split(params))
    assert publish.shared and publish.sets == 1
    for name, value in hf_io.flatten(nnx.state(model)).items():
        assert value is params[name]


def test_a_mesh_is_resharded_and_cast_without_the_host():
    run = laid_out(
        8, **{"mesh.fsdp": 4, "mesh.tensor": 2, "dtype": "bfloat16", "rl.rollout.tensor": 2}
    )
    publish, params = Publisher(run), filled(run)
    assert not publish.shared and publish.sets == 4
    with jax.transfer_guard("disallow"):
        model = publish(*run.split(params))
    assert model.decoder.mesh.mesh.shape["data"] == 4
    split = 0
    for name, value in hf_io.flatten(nnx.state(model)).items():
        want = np.asarray(params[name].astype(jnp.bfloat16), np.float32)
        np.testing.assert_array_equal(np.asarray(value, np.float32), want, err_msg=name)
        assert value.sharding.mesh == publish.mesh
        split += "tensor" in str(value.sharding.spec)
        assert "fsdp" not in str(value.sharding.spec)
    assert split > 5
    publish.release()
    assert all(value.is_deleted() for value in hf_io.flatten(nnx.state(model)).values())
    assert not any(value.is_deleted() for value in params.values())
    # The next model is made as the first one was.
    publish(*run.split(params))


@pytest.mark.parametrize("tensor", [1, 2])
def test_what_is_moved_and_not_cast_is_given_up_too(tensor):
    """A LoRA run's base is held in the rollout's dtype: its copies are most of the memory."""
    run = laid_out(8, **{"mesh.fsdp": 4, "mesh.tensor": 2, "rl.rollout.tensor": tensor})
    publish, params = Publisher(run), filled(run)
    before = {name: np.asarray(value) for name, value in params.items()}
    made = hf_io.flatten(nnx.state(publish(*run.split(params))))
    sharded = [n for n, s in run.shapes.items() if "fsdp" in str(s.sharding.spec)]
    publish.release()
    assert len(sharded) > 5 and all(made[name].is_deleted() for name in sharded)
    for name, value in params.items():
        np.testing.assert_array_equal(np.asarray(value), before[name], err_msg=name)
    publish(*run.split(params))


def test_weights_are_shared_by_as_many_devices_as_heads_can_be_split_over():
    """More would hold all caches each. The tiny model has two key-value heads; Qwen2.5-VL-7B four."""
    run = laid_out(8)
    heads = run.model.text.num_key_value_heads
    assert heads == 2
    assert Publisher(run).mesh.shape["tensor"] == heads
    assert [_splitting(4, n) for n in (1, 4, 8)] == [1, 4, 4]
    assert _splitting(2, 4) == 2 and _splitting(4, 3) == 1


def test_devices_must_divide():
    with pytest.raises(ConfigError, match=r"rl\.rollout\.tensor=3 does not divide the 8"):
        Publisher(laid_out(8, **{"rl.rollout.tensor": 3}))
