"""The trainer end to end on ClueWorld: both forms of the configuration, resume, logs, faults, the command itself."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

import vo3.models
from configs import clueworld, debug
from vo3.clueworld.config import model_config
from vo3.models import hf_io
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.train import sft
from vo3.train.config import ConfigError, override
from vo3.train.feed import ClueWorldFeed, MicroBatch
from vo3.train.sharding import make_mesh
from vo3.train.state import initial_params, trainable
from vo3.train.work import Work

ROOT = pathlib.Path(__file__).resolve().parents[3]


def short_form(**changes):
    config = clueworld.get_config("finish")
    config.update({"init_from": "", "workers": 0, "steps": 4, "warmup": 1, "log_every": 1})
    config.save_every = 2
    config.data.update({"worlds": 2, "patches": 6, "length": 960})
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return sft.train(short_form(), workdir), workdir


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_resumed_run_is_bitwise_the_uninterrupted_one(whole, tmp_path):
    result, workdir = whole
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")  # as if killed after step 2 was saved
    resumed = sft.train(short_form(), tmp_path / "run")
    assert (resumed.step, resumed.finished) == (4, True)
    assert_same(result.params, resumed.params)


def test_the_log_tells_loss_and_speed(whole):
    _, workdir = whole
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"seconds_per_step", "data_wait", "gradient_norm", "accuracy", "padding"} <= set(rows[0])
    assert 0 < rows[0]["padding"] < 1 and rows[-1]["eta"] == 0
    assert rows[1]["programs"] == rows[-1]["programs"] == 1


def test_a_step_trains_on_what_processes_settled_on():
    used = []
    programs = types.SimpleNamespace(
        update=lambda state, frozen, batch: (state, used.append(batch))
    )
    feed = types.SimpleNamespace(single=True)
    settled = MicroBatch(0, True, "settled", Work())
    for settle, expected in ((None, "placed"), (lambda: None, "placed"), (lambda: settled, "put settled")):  # fmt: skip
        item = MicroBatch(0, True, "made", Work(), settle=settle)
        put = lambda batch: f"put {batch}"
        hosts, *_ = sft._step(programs, feed, None, {}, iter([(item, "placed")]), put)
        assert used.pop() == expected
        assert hosts == [settled if expected == "put settled" else item]


def test_the_next_stage_starts_from_the_last_one(whole, tmp_path):
    result, workdir = whole
    model = Qwen2_5_VL(model_config(), rngs=nnx.Rngs(1))
    started = sft.latest_params(model, workdir)
    assert_same(
        result.params, {".".join(map(str, p)): v.get_value() for p, v in nnx.to_flat_state(started)}
    )
    config = sft.from_short_form(short_form(init_from=str(workdir)))
    config = sft._resolved(config, 1, ClueWorldFeed(config))
    run = trainable(config, make_mesh(config, jax.devices()[:1]))
    assert_same(result.params, initial_params(run))


@pytest.mark.parametrize("layout", ["hf", "orbax"])
def test_a_runs_workdir_converts_to_a_directory_that_loads(whole, tmp_path, layout):
    from vo3 import cli

    result, workdir = whole
    made = tmp_path / layout
    assert cli.main(["convert", str(workdir), str(made), "--to", layout]) == 0
    loaded = vo3.models.load(made)
    assert_same(result.params, hf_io.flatten(nnx.state(loaded)))
    assert loaded.tokenizer is not None
    # Such a directory starts a run, too.
    config = sft.from_short_form(short_form(init_from=str(made)))
    config = sft._resolved(config, 1, ClueWorldFeed(config))
    run = trainable(config, make_mesh(config, jax.devices()[:1]))
    assert_same(result.params, initial_params(run))


@pytest.mark.parametrize("view", ["agent", "middle"])
def test_a_baseline_trains_all_but_the_vision_tower(view):
    config = clueworld.get_config(f"finish.{view}")
    config.init_from = ""
    config = sft.from_short_form(config)
    run = trainable(
        sft._resolved(config, 1, ClueWorldFeed(config)), make_mesh(config, jax.devices()[:1])
    )
    trained, kept = run.part(frozen=False), run.part(frozen=True)
    tower = {name for name in {**trained, **kept} if name.startswith("vision.")}
    assert tower and set(kept) == (set() if view == "agent" else tower)


def test_a_stage_without_its_predecessor_says_so(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint in .*none; give the workdir of a run"
    ):
        sft.train(short_form(init_from=str(tmp_path / "none")), tmp_path / "run")


def test_a_workdir_of_another_configuration_is_refused(whole):
    _, workdir = whole
    with pytest.raises(ConfigError, match=r"optim\.rate=0\.02, now 0\.5"):
        sft.train(short_form(rate=0.5), workdir)
    sft.train(short_form(log_every=2), workdir)  # what is only seen of a run may change


def test_the_debug_configuration_runs_by_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vo3.train.sft", "--config=configs/debug.py", f"--workdir={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 4/4  loss " in done.stderr and "data wait" in done.stderr
    assert "optim.rate: 0.001" in done.stderr  # the resolved configuration is printed
    assert "orbax" not in done.stderr
    assert json.loads((tmp_path / "config.json").read_text())["optim.rate"] == 0.001


def one_device():
    return jax.devices()[:1]


def test_contradictions_end_the_run_before_anything_is_written(tmp_path):
    config = override(debug.get_config(), **{"tdam.mask_ratio": 0.5})
    with pytest.raises(ConfigError, match="mask_ratio"):
        sft.train(config, tmp_path / "run", devices=one_device())
    assert not (tmp_path / "run").exists()
