"""Rollouts that are kept between a stop and the update."""

from __future__ import annotations

import dataclasses

import fake_groups
import pytest

from vo3.train.pending import Pending


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x1c", "\r", "\n"])
def test_whatever_the_policy_wrote_comes_back(tmp_path, sign):
    trajectory = fake_groups.rollout("a", 0, 1).trajectory
    *turns, last = trajectory.turns
    last = dataclasses.replace(last, text=f"one{sign}two")
    trajectory = dataclasses.replace(trajectory, turns=(*turns, last))
    Pending(tmp_path).write("step 1", [trajectory.dumps(), trajectory.dumps()])
    assert Pending(tmp_path).read("step 1") == [trajectory, trajectory]
    assert Pending(tmp_path).read("step 2") is None
    Pending(tmp_path).drop()
    assert Pending(tmp_path).read("step 1") is None
