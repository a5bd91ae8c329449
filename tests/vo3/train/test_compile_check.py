"""What compile_check says: by hand where nothing needs compiling, one tiny step for a real chip, the 7B under `soak`."""

import importlib.util
import json
import os
import types

import pytest

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.gcs_fake import fake_gcs
from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig
from vo3.train import ahead_of_time as aot
from vo3.train import chips, flops, hlo
from vo3.train import compile_check as cc
from vo3.train import config as c
from vo3.train.chips import GIB, topology
from vo3.train.compile_report import Report, Shapes, render
from vo3.train.config import ConfigError

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install libtpu"
)


# ---------------------------------------------------------------- chips


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("v5p:2x2x4", "v5p:2x2x4", 16),
        ("v5p-32", "v5p:2x2x4", 16),
        ("v6e-64", "v6e:8x8", 64),
        ("v5litepod-256", "v5e:16x16", 256),
        ("v4-8", "v4:2x2x1", 4),
    ],
)
def test_a_slice_has_two_names(text, name, count):
    found = topology(text)
    assert (found.name, found.chips) == (name, count)


@pytest.mark.parametrize("text", ["v9:2x2", "v5p:2", "v5p", "v5p-31", "v6e-3", "h100-8"])
def test_an_unknown_slice_is_refused(text):
    with pytest.raises(ValueError, match="topology"):
        topology(text)


# ---------------------------------------------------------------- FLOPs


def test_matrix_products_are_counted_through_scans_choices_and_recomputation():
    a, b = jnp.zeros((4, 8)), jnp.zeros((8, 16))
    product = 2 * 4 * 8 * 16

    def scanned(a, b):
        return jax.lax.scan(lambda x, _: (x + (a @ b).sum(), None), 0.0, None, length=5)[0]

    def chosen(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: (a @ b).sum(), lambda: a.sum())

    assert flops.matmul_flops(jax.make_jaxpr(scanned)(a, b)) == 5 * product
    assert flops.matmul_flops(jax.make_jaxpr(chosen)(a, b)) == product
    # Backward: da and db. Recomputed: one forward more.
    loss = lambda a, b: jnp.sin(a @ b).sum()
    assert flops.matmul_flops(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(a, b)) == 3 * product
    again = jax.grad(
        jax.checkpoint(lambda a, b: jnp.sin(jnp.sin(a @ b) @ b.T).sum()), argnums=(0, 1)
    )
    assert flops.matmul_flops(jax.make_jaxpr(jax.jit(again))(a, b)) >= (4 + 2) * product


def test_a_product_on_every_device_counts_on_every_device():
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spec = PartitionSpec("x")
    mapped = jax.shard_map(
        lambda a, b: a @ b, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec
    )
    jaxpr = jax.make_jaxpr(mapped)(jnp.zeros((32, 8)), jnp.zeros((8, 16)))
    assert flops.matmul_flops(jaxpr) == 2 * 32 * 8 * 16


def test_attention_by_hand():
    config = Qwen2_5_VLConfig.tiny(remat="full")
    got = flops.attention_flops(config, rows=2, length=100, patches=0, vision_trained=False)
    # 2 forward, 2 again, 7 backward; 2 rows of 100 * 101 / 2 pairs; 4 heads of 16, 3 layers.
    assert got == 2 * 11 * (2 * 5050) * (4 * 16 * 3)
    with_vision = flops.attention_flops(
        config, rows=2, length=100, patches=64, vision_trained=False, frame_patches=64
    )
    # Two windowed blocks (8 x 8 patches) and a full one, forward only; 3 heads of 16.
    assert with_vision - got == 2 * 2 * 2 * 64 * (64 + 2 * 64) * 48


def test_six_flops_per_weight_of_the_published_decoder():
    weights = flops.model_flops_per_token(aot.PUBLISHED["Qwen2.5-VL-7B-Instruct"]) / 6
    # 7,615,616,512 parameters less the input embedding, the biases of q, k, v and the norms.
    assert weights == 7_615_616_512 - 152_064 * 3584 - 28 * (3584 + 2 * 512) - (2 * 28 + 1) * 3584


# ---------------------------------------------------------------- the report


def report(**changes):
    values = {
        "topology": topology("v5p:2x2x1"), "slices": 2, "mesh": {"fsdp": 8}, "shapes": Shapes(8, 1000, 4000),
        "params": 1.0 * GIB, "optimizer": 2.0 * GIB, "batch": 0.0, "gradients": 0.0, "activations": 3.0 * GIB,
        "total": 6.0 * GIB, "flops": 459e12 * 0.6, "model_flops": 8 * 459e12 * 0.5, "largest": (), "square": (),
        "collectives": (hlo.Collective("all-gather", False, 2, 300e9), hlo.Collective("all-reduce", True, 1, 3.125e9)),
        "unknown_loops": (), "micro_batches": 3, "trajectories": 16, "compile_seconds": 1.0, **changes,
    }  # fmt: skip
    return Report(**values)


def test_predicted_times_by_hand():
    got = report()
    # 600 GB/s over ICI, 3.125 GB/s a chip between slices.
    assert got.seconds() == pytest.approx({"compute": 1.0, "ici": 0.5, "dcn": 1.0})
    text = render(got)
    assert "1.00 s if communication hides behind compute, 2.50 s if none does" in text
    assert "3,200 to 8,000 tokens/s" in text
    assert "MFU 20% to 50%" in text
    assert "predicted step: 3 micro-batches, 3 to 8 s" in text
    assert "459 TFLOP/s bf16 of which 60% are reached" in text
    assert text.endswith("\nfits")


def test_what_does_not_fit_says_so():
    assert report(total=95.5 * GIB).fits is False
    assert render(report(total=95.5 * GIB)).endswith("does not fit")


def config(**changes):
    return c.override(c.load("configs/sft_stage2.py"), **changes)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (report(), 0),
        (report(total=96.0 * GIB), 1),
        (aot.DoesNotFit("Used 20G of 15.75G hbm"), 1),
        (ConfigError("mesh fsdp=3 does not fit 16 devices"), 2),
        (ValueError("topology 'x'"), 2),
    ],
)
def test_exit_codes(outcome, code, monkeypatch, capsys):
    def check(*_, **__):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(cc, "check", check)
    values = {
        "config": config(),
        "topology": "v5p-32",
        "num_slices": 1,
        "length": 0,
        "patches": 0,
        "dump": None,
    }
    monkeypatch.setattr(cc, "flags", types.SimpleNamespace(FLAGS=types.SimpleNamespace(**values)))
    with pytest.raises(SystemExit) as stopped:
        cc.main([])
    assert stopped.value.code == code
    captured = capsys.readouterr()
    assert (
        str(outcome).splitlines()[0] in captured.out + captured.err
        if isinstance(outcome, Exception)
        else captured.out
    )


def test_the_largest_micro_batch_is_full_rows_of_video():
    resolved = c.resolve(config(**{"mesh.tensor": 4}), devices=64, needs_data=False)
    # 40,000 up to a multiple of 128; 16 groups of chips share a row.
    assert cc.shapes_of(resolved) == Shapes(16, 40_064, 160_256)


def test_bytes_of_a_device_are_those_of_its_shards():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    of = lambda spec: NamedSharding(mesh, PartitionSpec(*spec))
    tree = {
        "a": jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=of(("x", "y"))),
        "b": jax.ShapeDtypeStruct((8,), jnp.bfloat16, sharding=of(())),
    }
    assert aot.device_bytes(tree) == 2 * 3 * 4 + 8 * 2


def test_architectures_are_known_by_directory_name_or_read(tmp_path):
    assert cc.model_config(config()).text.num_hidden_layers == 28
    remat = config(model="checkpoints/Qwen2.5-VL-3B-Instruct", remat="dots")
    assert cc.model_config(remat).remat == "dots"
    with pytest.raises(ConfigError, match="without a checkpoint one of"):
        cc.model_config(config(model=str(tmp_path / "unknown")))
    (tmp_path / "config.json").write_text(json.dumps(Qwen2_5_VLConfig.tiny().to_hf()))
    assert cc.model_config(config(model=str(tmp_path))).text.hidden_size == 64


def test_a_checkpoint_in_a_bucket_is_read():
    with fake_gcs():
        folder = epath.Path("gs://bucket/tiny")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(Qwen2_5_VLConfig.tiny().to_hf()))
        assert cc.model_config(config(model=str(folder))).text.hidden_size == 64


def test_a_mesh_that_does_not_fit_ends_before_anything_compiles():
    with pytest.raises(ConfigError, match="does not fit 16 devices"):
        cc.check(config(**{"mesh.tensor": 3}), "v5p-32")
    with pytest.raises(ValueError, match="no such size"):
        cc.check(config(), "v5p-31")


# ---------------------------------------------------------------- for real chips


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:9x9", "v5p:3x1x1"])
def test_a_slice_that_no_one_builds_is_refused(name):
    with pytest.raises(ValueError, match=f"topology {name}: .*whole hosts"):
        aot.devices_of(topology(name))


SMALL = Qwen2_5_VLConfig.tiny(
    vocab=640,
    text={
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "mrope_section": (8, 12, 12),
    },
    vision={
        "depth": 1,
        "fullatt_block_indexes": (0,),
        "out_hidden_size": 128,
        "hidden_size": 64,
        "num_heads": 1,
    },
)


def test_a_step_on_kept_features_can_be_traced():
    """What a feature cache keeps is the tower's output before its merger."""
    changes = {"data.feature_cache": "kept", "data.tokens_per_row": 128, "loss.chunk": 128}
    resolved = c.resolve(config(**changes), devices=1, steps_per_epoch=10, needs_data=False)
    mesh = cc.sharding.make_mesh(resolved, jax.devices()[:1])
    run = cc.trainable(resolved, mesh, model=SMALL)
    batch = cc.abstract_batch(run, Shapes(1, 128, 64))
    assert batch.patches is None and batch.features.shape == (1, 16, 4 * 64)
    cc.Programs(run).update.trace(run.state, run.part(frozen=True), batch)


@needs_libtpu
@pytest.mark.usefixtures("no_compilation_cache")
def test_a_small_step_compiles_and_adds_up(monkeypatch):
    monkeypatch.setitem(aot.PUBLISHED, "small", SMALL)
    small = config(
        **{
            "model": "small",
            "data.tokens_per_row": 512,
            "data.trajectories_per_step": 1,
            "loss.chunk": 128,
        }
    )
    got = cc.check(small, "v5e:2x2", patches=256)
    assert got.fits and got.unknown_loops == () and got.square == ()
    assert got.shapes == Shapes(4, 512, 256)
    # Arguments, and what the program needs beside them.
    parts = got.params + got.optimizer + got.batch + got.gradients
    assert got.total > parts + got.activations
    # AdamW: two moments of what is trained, in f32.
    assert got.params < got.optimizer < 2 * got.params + 4096
    # At least: every weight but the frozen tower's is gathered for the forward pass.
    assert got.sent(between_slices=False) > 0 and got.sent(between_slices=True) == 0
    # 8 per weight and token: forward, again, twice back; attention and vision on top.
    assert got.flops * 4 > got.model_flops * 8 / 6
    assert render(got).endswith("fits")


SLICES = {"v5p-32": 1, "v6e-64": 2, "v5litepod-256": 4}


@pytest.mark.soak
@needs_libtpu
@pytest.mark.usefixtures("no_compilation_cache")
@pytest.mark.parametrize("slice_", SLICES)
def test_the_7b_at_40k_tokens_a_row_fits(slice_):
    got = cc.check(config(**{"mesh.tensor": SLICES[slice_]}), slice_)
    assert got.fits and got.square == () and got.unknown_loops == ()
    # Nothing of the loss is sent per chunk: each weight moves a few times, not once per 512 tokens.
    gathered = sum(x.bytes for x in got.collectives if x.kind in ("all-gather", "reduce-scatter"))
    assert gathered < 120 * GIB


@pytest.mark.soak
@needs_libtpu
@pytest.mark.usefixtures("no_compilation_cache")
def test_the_7b_does_not_fit_where_it_cannot():
    with pytest.raises(aot.DoesNotFit, match="hbm"):
        cc.check(config(), "v5e:4x4")


@needs_libtpu
def test_slices_are_joined_by_the_slow_axis():
    devices = aot.topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x2", num_slices=2
    ).devices
    resolved = c.resolve(config(**{"mesh.dcn_data": 2}), devices=8, needs_data=False)
    mesh = cc.sharding.make_mesh(resolved, devices)
    assert mesh.shape["dcn_data"] == 2
    # Device order follows the slices: what `hlo.collectives` takes for granted.
    assert [d.slice_index for d in mesh.devices.flat] == [0] * 4 + [1] * 4


@needs_libtpu
@pytest.mark.usefixtures("no_compilation_cache")
def test_gradients_between_slices_are_counted():
    """Data parallel over two slices: the gradient of a [1024, 2048] matrix, a quarter a chip, is reduced between them."""
    devices = aot.topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x2", num_slices=2
    ).devices
    mesh = Mesh(np.array(devices).reshape(2, 4), ("dcn_data", "fsdp"))
    place = lambda shape, *axes: jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes))
    )
    weight, x = place((1024, 2048), "fsdp"), place((64, 1024), ("dcn_data", "fsdp"))
    gradient = jax.grad(lambda w, x: (jnp.tanh(x @ w) ** 2).sum())
    lowered = jax.jit(gradient, out_shardings=weight.sharding).lower(weight, x)
    _, text = aot.compile_lowered(lowered, None)
    found = hlo.collectives(hlo.parse(text), devices=8, slices=2)
    between = [(c.kind, c.bytes) for c in found if c.between_slices]
    assert between == [("all-reduce", 1024 * 2048 * 4 / 4)]


def test_every_chip_that_kernels_know_has_its_peaks():
    from pallas_kernels import tuning

    assert set(tuning.DEVICE_KINDS.values()) <= set(chips.CHIPS)
