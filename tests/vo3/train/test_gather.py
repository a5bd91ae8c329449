"""Parameters of several hosts: brought to one host's memory piece by piece, and written from there."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny_rows import layout

from vo3.models import hf_io
from vo3.train import finished, gather, processes


@pytest.fixture(scope="module")
def spread():
    """A run on four devices, and its parameters, in two dtypes as under LoRA."""
    run = layout(
        4, **{"mesh.fsdp": 2, "mesh.tensor": 2, "dtype": "bfloat16", "frozen": ("vision",)}
    )
    rng = np.random.default_rng(0)
    draw = lambda s: jax.device_put(rng.normal(size=s.shape).astype(s.dtype), s.sharding)
    return run, {name: draw(shape) for name, shape in run.shapes.items()}


def test_pieces_of_one_layer_make_up_the_parameters(spread, monkeypatch):
    run, params = spread
    assert any(not x.sharding.is_fully_replicated for x in params.values())
    on_devices, same = [], gather._same
    monkeypatch.setattr(gather, "_same", lambda x: on_devices.append(x.ndim) or same(x))
    gathered = gather.gather(run, params)
    assert set(gathered) == set(params)
    for name, value in gathered.items():
        assert type(value) is np.ndarray and value.dtype == params[name].dtype
        np.testing.assert_array_equal(value, params[name], err_msg=name)
    assert (
        max(on_devices) == 2 < max(x.ndim for x in params.values())
    )  # never all layers of a kernel


def test_a_layer_is_picked_where_it_lies(spread):
    run, params = spread
    name = "decoder.layers.mlp.gate.kernel"
    _, piece = next(gather._layers(params[name], run.shapes[name].sharding))
    assert piece.sharding.spec == PartitionSpec(*run.shapes[name].sharding.spec[1:])
    assert {s.data.size for s in piece.addressable_shards} == {piece.size // 4}
    program = jax.jit(gather._layer, out_shardings=piece.sharding).lower(params[name], 0).compile()
    assert "all-gather" not in program.as_text()


def test_others_than_the_first_process_take_part_and_hold_nothing(spread, monkeypatch):
    monkeypatch.setattr(processes, "first", lambda: False)
    run, params = spread
    assert gather.gather(run, {n: x for n, x in params.items() if "mlp.gate" in n}) == {}


def test_several_processes_export_from_host_memory_what_one_exports(spread, tmp_path, monkeypatch):
    run, params = spread
    finished.export(run, params, tmp_path / "one")
    saved = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "barrier", lambda name: None)
    write = hf_io.save
    monkeypatch.setattr(hf_io, "save", lambda m, *a, **k: saved.append(m) or write(m, *a, **k))
    finished.export(run, params, tmp_path / "two")
    kinds = {type(x) for x in hf_io.flatten(hf_io.nnx.state(saved[0])).values()}
    assert kinds == {np.ndarray}
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()
