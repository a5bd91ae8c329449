"""Groups of rollouts."""

from __future__ import annotations

import dataclasses

from rollout_fakes import BUCKETS, TASK, NoiseVideo

from vo3.rollout import GroupEngine, RolloutPolicy, Sampling
from vo3.video import VideoError

POLICY = RolloutPolicy(mode="rl", max_length=4096, reserve=64, max_new_tokens=6)


def test_n_rollouts_a_task_and_an_error_for_a_lost_overview(model, tokenizer):
    engine = GroupEngine(
        model, tokenizer=tokenizer, policy=POLICY, buckets=BUCKETS, slots=2, rollouts=3
    )
    tasks = [dataclasses.replace(TASK, id=name) for name in ("a", "b", "c")]

    def open_video(task):
        if task.id == "b":
            raise VideoError("missing", "b.mp4 is gone", "put it back")
        return NoiseVideo()

    got = list(engine.run(tasks, open_video, sampling=Sampling(temperature=1.0), seed=3))
    assert [group.task.id for group in got] == ["a", "b", "c"]
    assert [len(group.rollouts) for group in got] == [3, 0, 3]
    assert "b.mp4 is gone" in got[1].error and got[0].error is None
    turns = [r.trajectory.turns[-1] for r in got[0].rollouts]
    assert len({turn.ids for turn in turns}) == 3
    assert all(len(turn.ids) == len(turn.logprobs) for turn in turns)
