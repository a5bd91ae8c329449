"""The thin trainer end to end: a debug configuration, two steps, resume to four."""

import json

import jax
import numpy as np
import pytest

from configs.clueworld import get_config
from vo3.train import sft


def debug_config(**changes):
    config = get_config("dense")
    config.update({"init_from": "", "workers": 0, "steps": 4, "warmup": 1, "log_every": 1})
    config.save_every = 2
    config.data.update({"worlds": 2, "patches": 6, "length": 448})
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return sft.train(debug_config(), workdir), workdir


def test_resumed_run_is_bitwise_the_uninterrupted_one(whole, tmp_path):
    params, _ = whole
    # The schedule belongs to the whole run: stop after two of four steps by running out of batches.
    config = debug_config()
    stop_after(2, config, tmp_path)
    resumed = sft.train(config, tmp_path)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def stop_after(steps, config, workdir):
    original = sft.prefetch

    def short(make, *, start, stop, workers):
        return original(make, start=start, stop=steps, workers=workers)

    sft.prefetch = short
    try:
        sft.train(config, workdir)
    finally:
        sft.prefetch = original


def test_the_log_tells_loss_and_speed(whole):
    _, workdir = whole
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"seconds_per_step", "data_wait", "gradient_norm", "accuracy"} <= set(rows[0])


def test_the_next_stage_starts_from_the_last_one(whole):
    params, workdir = whole
    from flax import nnx

    from vo3.clueworld.config import model_config
    from vo3.models.qwen2_5_vl.model import Qwen2_5_VL

    model = Qwen2_5_VL(model_config(), rngs=nnx.Rngs(1))
    started = sft.initial_params(model, debug_config(init_from=str(workdir)))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(started), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_stage_without_its_predecessor_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="train that stage first"):
        sft.train(debug_config(init_from=str(tmp_path / "none")), tmp_path / "run")
