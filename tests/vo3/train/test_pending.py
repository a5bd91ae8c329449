"""Rollouts that are kept between a stop and the update."""

from __future__ import annotations

import dataclasses

import fake_groups
import pytest
import rl_runs
from rl_runs import FakePrompts, FakeRoller
from rollout_fakes import NoiseVideo

from vo3.train.collect import Collector
from vo3.train.pending import Kept, Pending
from vo3.train.scoring import Scorer, with_reward
from vo3.video import VideoError


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x1c", "\r", "\n"])
@pytest.mark.parametrize("ended", [False, True])
def test_whatever_the_policy_wrote_comes_back(tmp_path, sign, ended):
    trajectory = fake_groups.rollout("a", 0, 1).trajectory
    *turns, last = trajectory.turns
    last = dataclasses.replace(last, text=f"one{sign}two")
    trajectory = dataclasses.replace(trajectory, turns=(*turns, last))
    kept = Kept((trajectory, trajectory), cursor=7, ended=ended)
    Pending(tmp_path).write("step 1", kept)
    assert Pending(tmp_path).read("step 1") == kept
    assert Pending(tmp_path).read("step 2") is None
    Pending(tmp_path).drop()
    assert Pending(tmp_path).read("step 1") is None


def test_a_video_that_is_gone_costs_its_rollouts_and_a_clip_its_rollout():
    """Rollouts 0 and 2 call, 1 does not. Of group b every video is gone; of group c the clip of rollout 2."""
    config = rl_runs.config(**{"rl.group": 3})
    groups = [Scorer(config).group(i, fake_groups.group(n, (0, 1, 2))) for i, n in enumerate("abc")]
    kept = [
        with_reward(rollout, step=1, number=group.number, index=i)
        for group in groups
        for i, rollout in enumerate(group.rollouts)
    ]

    class Cut(NoiseVideo):
        def crop(self, start, end, strategy=None):
            if start == 5.0:
                raise VideoError("read", "the file ends there", "fetch it again")
            return super().crop(start, end, strategy)

    def open_video(task):
        if task.id == "b":
            raise VideoError("missing", "b.mp4 is gone", "put it back")
        return (Cut if task.id == "c" else NoiseVideo)(seed=1)

    collector = Collector(config, FakePrompts(), FakeRoller())
    a, b, c = collector.restore(kept, open_video)
    assert [r.lost for r in a.rollouts] == [None] * 3 and a.dropped is None
    assert [r.advantage for r in a.rollouts] == [r.advantage for r in groups[0].rollouts]
    assert all("b.mp4 is gone" in r.lost for r in b.rollouts) and b.dropped == "lost"
    assert [r.lost is None for r in c.rollouts] == [True, True, False] and c.dropped is None
    assert "the file ends there" in c.rollouts[2].lost


def test_what_the_engine_noted_first_stays():
    config = rl_runs.config()
    rollout = fake_groups.rollout("a", 0, 1)
    meta = {"video_error": {"kind": "timeout", "message": "too slow"}, "rl": {"prompt": 4}}
    trajectory = dataclasses.replace(rollout.trajectory, meta=meta)

    def gone(task):
        raise OSError("stale mount")  # not a VideoError: named all the same

    collector = Collector(config, FakePrompts(), FakeRoller())
    [group] = collector.restore([trajectory], gone)
    assert "too slow" in group.rollouts[0].lost
