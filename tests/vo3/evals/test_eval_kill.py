"""kill -9 at random moments of an evaluation: the same card in the end, and nothing that was recorded is asked again."""

from __future__ import annotations

import collections
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import eval_samples
import pytest
import rollout_fakes

from vo3.evals import cards

TESTS = pathlib.Path(eval_samples.__file__).parent

# An evaluation of MLVU in small whose model says B after 20 ms; every question is logged before it is answered.
_DRIVER = """
import sys, time, types
import numpy as np
import eval_samples
from vo3.chat import PromptPack
from vo3.evals import config, runner
from vo3.train.config import override
from vo3.video import CropPolicy

data, workdir, log = sys.argv[1:]

class Slow:
    def ask(self, videos):
        for asked in videos:
            for task in asked.tasks:
                with open(log, "a") as file:
                    file.write(task.id + "\\n")
                time.sleep(0.02)
                yield eval_samples.answered(task, "B")

model = types.SimpleNamespace(crop_policy=CropPolicy("eval"), config=types.SimpleNamespace(mrope_time="constant", vision=types.SimpleNamespace(token_size=28)),
                              embed=types.SimpleNamespace(table=np.zeros((2, 2), np.float32)), source=data)
runner.load = lambda config: (model, PromptPack.load("default"))
runner.askers = lambda modes, model, config: [Slow() for _ in modes]
runner.evaluate(override(config.defaults(), benchmarks="mlvu", data_root=data, partial=True), workdir)
"""


@pytest.mark.soak
def test_ten_kills(tmp_path):
    data, log = tmp_path / "data", tmp_path / "asked"
    eval_samples.mlvu(data / "mlvu")
    rollout_fakes.write_mp4(data / "mlvu" / "plain.mp4", seconds=2)
    environment = dict(os.environ, PYTHONPATH=str(TESTS), JAX_PLATFORMS="cpu")

    def start(workdir):
        command = [sys.executable, "-c", _DRIVER, str(data), str(workdir), str(log)]
        return subprocess.Popen(command, env=environment, cwd=TESTS.parent)

    assert start(tmp_path / "whole").wait() == 0
    log.unlink()
    rng = random.Random(0)
    kills = 0
    for _ in range(10):
        before = log.stat().st_size if log.exists() else 0
        process = start(tmp_path / "killed")
        while process.poll() is None and (not log.exists() or log.stat().st_size == before):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.03))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert start(tmp_path / "killed").wait() == 0
    asked = collections.Counter(log.read_text().split())
    assert len(asked) == 14
    # Each kill may cost the one question that was under way.
    assert sum(asked.values()) <= 14 + kills
    whole, killed = (cards.load(tmp_path / name / "mlvu" / "tools") for name in ("whole", "killed"))
    assert {k: v for k, v in whole.items() if k != "measured"} == {
        k: v for k, v in killed.items() if k != "measured"
    }
    lines = (tmp_path / "killed" / "mlvu" / "tools" / "trajectories.jsonl").read_text().splitlines()
    assert len(lines) == 14
