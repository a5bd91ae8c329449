"""Groups over several devices and processes say what one device says."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import group_runs
import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from vo3.rollout.group_programs import GroupPrograms

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.fixture(scope="module")
def alone(model, tokenizer):
    """What one device says on four tasks."""
    return group_runs.roll(model, tokenizer, "abcd", slots=2)


def test_four_devices(alone, model, tokenizer):
    """Groups over two devices, heads over two."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    spread = group_runs.over(model, mesh)
    assert group_runs.roll(spread, tokenizer, "abcd", slots=4) == alone


def test_slots_that_the_mesh_cannot_split(model, tokenizer):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    with pytest.raises(
        ValueError, match="3 groups in each of 1 processes cannot be dealt out to 2"
    ):
        group_runs.roll(group_runs.over(model, mesh), tokenizer, "a", slots=3)


def test_programs_for_devices_that_are_not_there(model):
    """Shapes and layouts alone are enough to lower what a pod would run, and to say what its caches take."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    spread = group_runs.over(model, mesh)
    real = GroupPrograms(spread, groups=2, leaves=2)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), nnx.state(spread)
    )
    programs = GroupPrograms(nnx.merge(nnx.graphdef(spread), abstract), groups=2, leaves=2)
    sizes = {"prefix": 64, "suffix": 32}
    lowered = programs.lowered(tokens=16, features=16, **sizes)
    assert sorted(lowered) == ["decode", "extend", "prompt"]
    state = real.empty(features=4, **sizes)
    held = sum(
        x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((state.prefix, state.suffix))
    )
    assert programs.cache_bytes(**sizes) == held
    whole = jax.tree.leaves((state.prefix, state.suffix))
    assert held == sum(x.nbytes for x in whole) // 4


@pytest.mark.parametrize(
    "tasks", [("ab", "cd"), pytest.param(("ab", "c", "", "d"), marks=pytest.mark.soak)]
)
def test_several_processes(alone, tmp_path, tasks):
    """Each has tasks of its own, one maybe none; all run the same programs in the same order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "group_runs.py"), str(tmp_path), *tasks],
            env={
                **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{HERE}", "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
                "VO3_COORDINATOR": f"127.0.0.1:{port}", "VO3_PROCESSES": str(len(tasks)), "VO3_PROCESS": str(index),
            },
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(len(tasks))
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=900)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    said = {}
    for index, own in enumerate(tasks):
        part = json.loads((tmp_path / f"{index}.json").read_text())
        assert list(part) == list(own)
        said |= part
    assert said == alone
