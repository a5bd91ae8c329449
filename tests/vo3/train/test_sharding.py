"""Which rows each process holds: on the device meshes of real slices, on two processes whose devices interleave, and by hand."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vo3.train import ahead_of_time as aot
from vo3.train import config as c
from vo3.train import rl_compile_check, sharding
from vo3.train.chips import topology
from vo3.train.config import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[3]
HERE = pathlib.Path(__file__).parent

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install libtpu"
)


def mesh_of(name, slices=1, **axes):
    """The device mesh of a published config on a slice that need not be there."""
    changes = {f"mesh.{axis}": size for axis, size in axes.items()}
    config = c.override(c.load("configs/sft_stage1.py"), **{"mesh.dcn_data": slices, **changes})
    return sharding.make_mesh(config, aot.devices_of(topology(name), slices))


# ---------------------------------------------------------------- real slices


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "axes", "processes", "groups"),
    [
        ("v5p:2x2x4", {}, 4, 4),
        ("v5p:2x2x4", {"tensor": 2}, 4, 4),
        ("v5p:2x2x4", {"context": 8}, 4, 1),
        ("v5p:2x2x2", {}, 2, 2),
        ("v5p:4x4x4", {}, 16, 16),
        ("v6e:4x4", {}, 4, 4),
        ("v6e:4x4", {"tensor": 4}, 4, 2),
        ("v6e:8x8", {}, 16, 16),
        ("v6e:8x8", {"tensor": 2}, 16, 16),
        ("v5e:16x16", {}, 64, 64),
        ("v5e:16x16", {"tensor": 4}, 64, 32),
    ],
)
def test_every_process_of_a_slice_has_its_rows(name, axes, processes, groups):
    mesh = mesh_of(name, **axes)
    found = sharding.process_groups(mesh)
    assert sorted(found) == list(range(processes))
    assert sorted(set(found.values())) == list(range(groups))
    assert sharding.rows_shared(mesh) == (groups < processes)
    # As JAX places rows: those of a group are on the same places, and every place is of one group.
    ways = sharding.row_ways(mesh)
    spec = PartitionSpec(sharding.row_axes(mesh) or None)
    held: dict[int, set] = {}
    for device, (rows,) in NamedSharding(mesh, spec).devices_indices_map((ways,)).items():
        held.setdefault(device.process_index, set()).update(range(*rows.indices(ways)))
    for process, rows in held.items():
        assert len(rows) == ways // groups
        assert {p for p in held if held[p] & rows} == {
            p for p in found if found[p] == found[process]
        }


@needs_libtpu
def test_rows_made_by_each_process_need_rows_of_its_own():
    sharding.refuse_shared_rows(mesh_of("v6e:8x8", tensor=2))
    with pytest.raises(ConfigError, match=r"mesh\.tensor=4 .* 4 processes hold 2 sets of rows"):
        sharding.refuse_shared_rows(mesh_of("v6e:4x4", tensor=4))
    with pytest.raises(ConfigError, match="sets of rows"):
        rl_compile_check.check(c.override(c.load("configs/rl.py"), **{"mesh.tensor": 4}), "v6e:4x4")


@needs_libtpu
def test_slices_are_an_axis_whatever_lies_within_them():
    mesh = mesh_of("v6e:8x8", slices=2, tensor=2)
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
    assert sharding.row_groups(mesh)[1] == 32


@needs_libtpu
@pytest.mark.parametrize(("said", "there"), [(1, 2), (2, 1)])
def test_another_number_of_slices_than_there_is_ends_in_one_line(said, there):
    config = c.override(c.load("configs/sft_stage1.py"), **{"mesh.dcn_data": said})
    with pytest.raises(
        ConfigError, match=rf"form {there} slices; set --config\.mesh\.dcn_data={there}"
    ):
        sharding.make_mesh(config, aot.devices_of(topology("v5e:2x2"), there))


# ---------------------------------------------------------------- what no slice of today has


def owned(*processes):
    """Four rows of two devices each, which belong to these processes."""
    devices = np.array([types.SimpleNamespace(process_index=p) for p in processes])
    shape = {"dcn_data": 1, "data": 1, "fsdp": 4, "tensor": 2, "context": 1}
    return types.SimpleNamespace(shape=shape, devices=devices.reshape(*shape.values()))


def test_groups_by_hand():
    # Process 0 holds rows 0 and 2, process 1 rows 1 and 3; then processes 0 and 1 share rows 0 and 3.
    assert sharding.process_groups(owned(0, 0, 1, 1, 0, 0, 1, 1)) == {0: 0, 1: 1}
    assert sharding.process_groups(owned(0, 1, 2, 3, 2, 3, 0, 1)) == {0: 0, 1: 0, 2: 1, 3: 1}


@pytest.mark.parametrize(
    "processes",
    [(0, 1, 1, 2, 2, 3, 3, 0), (0, 1, 1, 0, 1, 1, 0, 0), (0, 0, 0, 0, 0, 0, 1, 1)],
)
def test_rows_shared_in_part_or_unevenly_are_refused(processes):
    with pytest.raises(ConfigError, match=r"fsdp=4, tensor=2.*overlap or differ"):
        sharding.process_groups(owned(*processes))


# ---------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes of two devices tell of the mesh in the order of their devices, and with every second place each."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = [
        subprocess.Popen(
            [sys.executable, str(HERE / "row_processes.py"), str(folder)],
            env={
                **os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                "VO3_COORDINATOR": f"127.0.0.1:{port}", "VO3_PROCESSES": "2", "VO3_PROCESS": str(i),
            },
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    for process in made:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output[-3000:]
    return [json.loads((folder / f"{i}.json").read_text()) for i in range(2)]


def test_interleaved_processes_train_on_the_same_rows(found):
    assert found[0]["held"] == {"ordered": [0, 1], "interleaved": [0, 2]}
    assert found[1]["held"] == {"ordered": [2, 3], "interleaved": [1, 3]}
    losses = [one["loss"] for one in found]
    assert losses[0] == losses[1]
    assert losses[0]["interleaved"] == pytest.approx(losses[0]["ordered"], rel=1e-6)
    # The rows of process 0 stand first in both orders, in places that are its own.
    for i, one in enumerate(found):
        assert one["ids"]["interleaved"] == one["ids"]["ordered"], i


def test_processes_that_share_rows_learn_what_the_others_lost(found):
    for one in found:
        assert one["lost"] == [[[3, 5, 8], False], [[3], True], [[], True]]
    assert [one["apart"] for one in found] == [[3, 5], [8]]
