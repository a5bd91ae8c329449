"""The first half of an RL step: what is begun ahead of it."""

from __future__ import annotations

import threading

import pytest
import rl_runs
from rl_runs import FakePrompts, FakeRoller
from rollout_fakes import NoiseVideo

from vo3.train.collect import Collector
from vo3.train.scoring import with_reward


class SlowPrompts(FakePrompts):
    """Writes down which videos are asked for; `missing`: cannot be written."""

    def __init__(self, missing=()):
        super().__init__()
        self.asked, self.missing = [], set(missing)

    def ready(self, numbers):
        self.asked.append(list(numbers))
        if self.missing & set(numbers):
            raise OSError("no space left")


def collector(prompts, roller, last=None):
    return Collector(rl_runs.config(**{"rl.prompts_per_step": 3}), prompts, roller, last=last)


def test_the_next_step_is_begun_with_its_own_prompts_and_changes_nothing():
    plain = collector(SlowPrompts(), FakeRoller(blind=True)).step(4, 6)
    prompts, roller = SlowPrompts(), FakeRoller(blind=True)
    some = collector(prompts, roller, last=9)
    some.ahead(6)
    ours = some.step(4, 6)
    assert roller.begun == ["p6", "p7", "p8"] == roller.asked
    assert prompts.asked == [[6, 7, 8], [6, 7, 8]]
    texts = lambda got: [[r.trajectory.dumps() for r in g.rollouts] for g in got.groups]
    assert texts(ours) == texts(plain) and ours.cursor == plain.cursor == 9
    some.ahead(8)  # one prompt is left
    some.step(5, 8)
    assert roller.begun == ["p8"]
    some.ahead(9)  # none is
    assert some.step(6, 9).ended and roller.begun == ["p8"]


def test_what_goes_wrong_ahead_is_told_by_the_step():
    some = collector(SlowPrompts(missing=[7]), FakeRoller(blind=True))
    some.ahead(6)
    with pytest.raises(OSError, match="no space left"):
        some.step(4, 6)


def test_kept_rollouts_find_their_videos_made_again():
    """As on another machine, where those that were made on the fly are gone."""
    groups = collector(SlowPrompts(), FakeRoller(blind=True)).step(4, 6).groups
    written = [
        with_reward(rollout, step=5, number=group.number, index=i)
        for group in groups
        for i, rollout in enumerate(group.rollouts)
    ]
    prompts = SlowPrompts()

    def open_video(task):
        assert prompts.asked == [[6, 7, 8]]
        return NoiseVideo(seed=1)

    again = collector(prompts, FakeRoller()).restore(written, open_video)
    assert [len(group.rollouts) for group in again] == [3, 3, 3]
    assert all(rollout.lost is None for group in again for rollout in group.rollouts)


def test_a_closed_collector_leaves_nothing_under_way(caplog):
    """The video that is being written when the run ends is finished; none is opened after it, and trouble is told."""
    writing, end = threading.Event(), threading.Event()

    class Endless(SlowPrompts):
        def ready(self, numbers):
            writing.set()
            assert end.wait(60)
            super().ready(numbers)

    prompts, roller = Endless(missing=[8]), FakeRoller(blind=True)
    some = collector(prompts, roller)
    some.ahead(3)
    assert writing.wait(60)
    closing = threading.Thread(target=some.close)
    closing.start()
    while not some._closed:
        pass
    assert not hasattr(roller, "closed")  # the thread comes first
    end.set()
    closing.join(60)
    assert prompts.asked == [[3, 4, 5]] and roller.closed and not hasattr(roller, "begun")
    with pytest.raises(RuntimeError, match="shutdown"):
        some.ahead(6)
    other = collector(prompts, roller)
    other.ahead(6)
    with caplog.at_level("WARNING"):
        other.close()
    assert "no space left" in caplog.text
