"""Rows of the pipeline as SFT data: the trainer sees in them what it sees in the world's own trajectories."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from configs.data_prep import get_config
from data_prep.sources import clueworld
from data_prep.synthesize import synthesize
from vo3.trajectory import Trajectory

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 3


def test_the_videos_and_the_truth_of_a_run_are_written(tmp_path, monkeypatch):
    filmed = []
    monkeypatch.setattr("vo3.clueworld.film.write_video", lambda world, path: filmed.append(path.name))  # fmt: skip
    rows = made(tmp_path, limit=8)
    first, *others = rows.read_text().split("\n")
    first = first.replace('"meta": {', '"meta": {"note": "a line\u2028of another kind", ')
    assert "\u2028" in first  # a teacher may write one, and JSON leaves it as it is
    rows.write_text("\n".join([first, *others]))
    truth = tmp_path / "truth.jsonl"
    assert clueworld.main([str(rows), "--videos", str(tmp_path / "v"), "--truth", str(truth)]) == 0
    pairs = [[Trajectory.loads(t) for t in p.read_text().split("\n") if t] for p in (rows, truth)]
    assert [t.turns for t in pairs[0]] == [t.turns for t in pairs[1]]
    assert [t.task for t in pairs[0]] == [t.task for t in pairs[1]]
    assert sorted(filmed) == sorted({t.task.video for t in pairs[0]}) and len(filmed) == 2


def made(folder: pathlib.Path, *, limit: int) -> pathlib.Path:
    config = get_config()
    config.source.limit, config.source.longest = limit, 200
    config.oracle.mess = 0.3
    synthesize(config, folder / "run")
    return folder / "run" / "trajectories.jsonl"


@pytest.mark.soak
def test_the_same_losses_as_on_the_worlds_own_trajectories(tmp_path):
    """To the last digit of the log."""
    rows, videos, truth = made(tmp_path, limit=12), tmp_path / "videos", tmp_path / "truth.jsonl"
    assert clueworld.main([str(rows), "--videos", str(videos), "--truth", str(truth)]) == 0
    losses = {}
    for name, path in (("made", rows), ("truth", truth)):
        command = [
            sys.executable, "-m", "vo3.train.sft", "--config=configs/tiny.py", f"--workdir={tmp_path / name}", f"--config.steps={STEPS}",
            f"--config.data.rows={path}", f"--config.data.videos={videos}", "--config.checkpoint.export_hf=False",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        log = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses[name] = [line["loss"] for line in log if "loss" in line]
    assert len(losses["made"]) == STEPS and losses["made"] == losses["truth"]
