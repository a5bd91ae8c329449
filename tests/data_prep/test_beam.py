"""Beam's direct runner makes the same rows as the in-process engine, byte for byte."""

from __future__ import annotations

import pytest

pytest.importorskip("apache_beam", reason="Apache Beam (extra `beam`) is not installed")

from configs.data_prep import get_config
from data_prep.models.base import ModelError
from data_prep.models.oracle import OracleClient
from data_prep.sources import clueworld
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


def test_a_missing_video_costs_its_own_rows(tmp_path, monkeypatch):
    real = OracleClient.complete

    async def complete(self, request, *, key):
        if request.inputs["id"] == lost and lost_now:
            raise ModelError("storage", "lost.mp4 does not exist")
        return await real(self, request, key=key)

    monkeypatch.setattr(OracleClient, "complete", complete)
    config = get_config()
    config.source.limit, config.engine, config.beam.batch = 6, "beam", 4
    config.beam.folder = str(tmp_path / "exchange")
    lost = list(clueworld.triplets(limit=6))[2].id
    lost_now = True
    first = synthesize(config, tmp_path / "run")
    assert (first.progress.done, first.progress.failed) == (5, 1)
    assert "config.videos" in first.progress.failure and first.files["rejected.jsonl"] == 0
    lost_now = False
    assert synthesize(config, tmp_path / "run").progress.done == 6


@pytest.mark.soak
def test_two_workers(tmp_path):
    made = pair(tmp_path, ("--direct_num_workers=2", "--direct_running_mode=multi_processing"))
    assert made["beam"] == made["local"]
