"""The whole pipeline on the synthetic world: rows, faults, engines, commands."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest

from configs.data_prep import get_config
from data_prep import config as configs
from data_prep.models.oracle import FAULTS, OracleClient, OracleSettings
from data_prep.schema import QUADRANTS
from data_prep.sources import clueworld
from data_prep.store import Store
from data_prep.synthesize import synthesize
from vo3.chat import PromptPack
from vo3.clueworld import trajectories
from vo3.clueworld.views import crop_policy
from vo3.trajectory import Trajectory


def small(limit: int = 12):
    config = get_config()
    config.source.limit = limit
    return config


def read(path):
    return [Trajectory.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run without faults, replies untidy."""
    workdir = tmp_path_factory.mktemp("sound")
    config = small(40)
    config.oracle.mess = 0.5
    outcome = synthesize(config, workdir)
    return workdir, outcome


def test_every_sound_triplet_becomes_a_row_in_every_quadrant(sound):
    workdir, outcome = sound
    rows = read(workdir / "trajectories.jsonl")
    assert len(rows) == 40 and outcome.progress.accepted == 40
    landed = collections.Counter(t.task.target.data_source for t in rows)
    assert set(landed) == set(QUADRANTS)
    for row in rows:
        tool = row.task.target.data_source.endswith("_w_tool")
        assert bool(row.calls) == tool
        assert len(row.calls) == (len(row.task.target.clues) if tool else 0)
        assert row.outcome == "answered" and row.answer == row.task.target.answer


def test_rows_equal_the_ground_truth_trajectories_turn_by_turn(sound):
    """What SFT sees of a made row is, byte for byte, what it would see of the world's own trajectory."""
    workdir, _ = sound
    pack, policy = PromptPack.load("clueworld"), crop_policy()
    compared = 0
    for row in read(workdir / "trajectories.jsonl"):
        case = clueworld.case(row.task.id.removeprefix("clueworld/"))
        truth = trajectories.make_trajectory(
            case.world, case.question, case.task, pack=pack, policy=policy
        )
        assert row.turns == truth.turns
        compared += 1
    assert compared == 40


def test_provenance_names_votes_models_prompts_and_calls(sound):
    workdir, _ = sound
    row = next(t for t in read(workdir / "trajectories.jsonl") if len(t.calls) == 2)
    meta = row.meta["synthesis"]
    assert meta["votes"]["clip_right"] == 3 and meta["votes"]["overview_right"] == 0
    assert set(meta["prompts"]) >= {"localise", "verify", "generate", "judge"}
    assert meta["models"] == ["clueworld-oracle"]
    assert meta["calls"] >= 9


def test_rl_rows_carry_answer_clues_and_quadrant(sound):
    workdir, _ = sound
    rows = [json.loads(text) for text in (workdir / "rl.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    for row in rows:
        assert row["data_source"] in QUADRANTS
        assert all(b > a for a, b in (c["timestamp"] for c in row["solution"]["clue"]))


def test_a_second_run_makes_no_call_and_the_same_rows(sound):
    workdir, first = sound
    before = (workdir / "trajectories.jsonl").read_bytes()
    config = small(40)
    config.oracle.mess = 0.5
    again = synthesize(config, workdir)
    assert again.tally.calls == 0 and first.tally.calls > 0
    assert (workdir / "trajectories.jsonl").read_bytes() == before
    # And without the finished records, from the stored replies alone.
    (workdir / "rows.sqlite").unlink()
    replayed = synthesize(config, workdir)
    assert replayed.tally.calls == 0
    assert (workdir / "trajectories.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        ("window", "verify"), ("answer", "verify"), ("times", "check"), ("audio", "check"),
        ("circular", "check"), ("slip", "check"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("judge", [True, False])
def test_each_fault_is_caught_by_its_stage(fault, stage, judge, tmp_path):
    """The oracle's judge knows what was planted; the rules must find it without."""
    config = small(24)
    config.stages.check.judge = judge
    if fault == "answer":
        config.source.wrong_answers = 0.5
    else:
        config.oracle.faults[fault] = 0.5
    synthesize(config, tmp_path)
    oracle = OracleClient(configs.struct(OracleSettings, config.oracle, "oracle"))
    store = Store(tmp_path)
    planted, lost = [], []
    for record in store.records():
        name = record.triplet.id
        faulty = any(oracle.planted(f, name) for f in FAULTS) or clueworld.has_wrong_answer(
            name, rate=config.source.wrong_answers, seed=0
        )
        (planted if faulty else lost).append(record)
    assert len(planted) >= 5 and len(lost) >= 5
    assert {r.rejection.stage if r.rejection else "kept" for r in planted} == {stage}
    assert {r.rejection for r in lost} == {None}


def test_fault_shares_are_as_set():
    oracle = OracleClient(OracleSettings(faults={"audio": 0.2}))
    hits = [oracle.planted("audio", f"{70_000 + n}-digit") for n in range(500)]
    assert np.isclose(np.mean(hits), 0.2, atol=0.06)
