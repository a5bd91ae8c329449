"""Beam's direct runner makes the same rows as the in-process engine, byte for byte."""

from __future__ import annotations

import pytest

pytest.importorskip("apache_beam", reason="Apache Beam (extra `beam`) is not installed")

from configs.data_prep import get_config
from data_prep.synthesize import synthesize


def pair(tmp_path, args: tuple[str, ...]):
    made = {}
    for engine in ("local", "beam"):
        config = get_config()
        config.source.limit = 12
        config.oracle.mess = 0.3
        config.oracle.faults.audio = 0.2
        config.engine = engine
        config.beam.args, config.beam.batch = args, 4
        config.beam.folder = str(tmp_path / "exchange")
        outcome = synthesize(config, tmp_path / engine)
        assert outcome.progress.done == 12
        assert not list((tmp_path / "exchange").glob("*"))  # what passed through is gone
        names = ("trajectories.jsonl", "rl.jsonl", "rejected.jsonl")
        made[engine] = [(tmp_path / engine / name).read_bytes() for name in names]
    return made


def test_one_process(tmp_path):
    made = pair(tmp_path, ())
    assert made["beam"] == made["local"]


@pytest.mark.soak
def test_two_workers(tmp_path):
    made = pair(tmp_path, ("--direct_num_workers=2", "--direct_running_mode=multi_processing"))
    assert made["beam"] == made["local"]
