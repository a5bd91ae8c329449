"""Jobs that come one by one: each with limits, temperature and events of its own, out as soon as it is done, gone when it is left."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from rollout_fakes import BUCKETS as SINGLE_BUCKETS
from rollout_fakes import TASK, NoiseVideo

from vo3.rollout import Engine, GroupBuckets, GroupEngine, Job, RolloutPolicy, Sampling, events
from vo3.rollout.group_programs import GroupPrograms
from vo3.rollout.sampler import Knobs, draw
from vo3.video import VideoError

POLICY = RolloutPolicy(max_length=4096, reserve=64, max_new_tokens=6)
# The random model goes on for ever where nothing is drawn.
LONG, GREEDY = dataclasses.replace(POLICY, max_new_tokens=200), Sampling()
BUCKETS = GroupBuckets(tokens=(256,), patches=(64,), prefix=(2048,), suffix=(512,))


@pytest.fixture(scope="module")
def group_programs(model):
    return GroupPrograms(model, groups=2, leaves=1)


@pytest.fixture
def engine(model, tokenizer, group_programs):
    return GroupEngine(
        model, tokenizer=tokenizer, policy=POLICY, buckets=BUCKETS, slots=2, rollouts=1,
        programs=group_programs, timeout_s=20,
    )  # fmt: skip


def job(name: str, **options) -> Job:
    options.setdefault("sampling", Sampling(1.0, seed=ord(name)))
    return Job(dataclasses.replace(TASK, id=name), **options)


def video(task) -> NoiseVideo:
    return NoiseVideo(seed=ord(task.id), duration=30.0)


def single(groups: GroupEngine, programs) -> Engine:
    """The engine for one conversation, of the same model."""
    return Engine(
        groups.model, tokenizer=groups.tokenizer, policy=POLICY, buckets=SINGLE_BUCKETS,
        shared_prefixes=0, programs=programs,
    )  # fmt: skip


def ids(group) -> list[tuple[int, ...]]:
    return [turn.ids for turn in group.rollouts[0].trajectory.turns if turn.ids]


def test_each_draws_as_it_would_alone(engine, programs):
    """Greedy, warm and filtered rows side by side, with limits of their own."""
    samplings = {
        "a": Sampling(0.0, seed=1),
        "b": Sampling(1.3, seed=2),
        "c": Sampling(0.8, 0.7, 9, seed=3),
    }
    jobs = [
        job(name, sampling=sampling, policy=dataclasses.replace(POLICY, max_new_tokens=4 + number))
        for number, (name, sampling) in enumerate(samplings.items())
    ]
    got = {group.task.id: group for group in engine.serve(jobs, video)}
    for one in jobs:
        [turn] = ids(got[one.task.id])
        assert len(turn) == one.policy.max_new_tokens
        expected = single(engine, programs).rollout(
            one.task, video(one.task), policy=one.policy, sampling=one.sampling
        )
        assert [t.ids for t in expected.trajectory.turns if t.ids] == [turn]


def test_results_come_as_they_are_done(engine):
    """The first job is the longest; the others overtake it, and it is told of in between."""
    told = []
    slow = job("s", policy=LONG, sampling=GREEDY, on_event=told.append)
    quick = [job(name) for name in "abc"]
    order = [group.task.id for group in engine.serve([slow, *quick], video)]
    assert sorted(order) == ["a", "b", "c", "s"] and order.index("s") >= 2
    assert [type(event) for event in told[:3]] == [
        events.TurnEnd,
        events.Observation,
        events.TurnEnd,
    ]
    assert sum(isinstance(event, events.Token) for event in told) == 200


def test_it_waits_for_jobs_that_are_still_to_come(engine):
    """The second job comes when the first is done; in between, and while the first runs, there is none."""
    seen, asked = [], []

    def jobs():
        yield job("a")
        while not seen:
            asked.append(None)
            yield None
        yield job("b")

    for group in engine.serve(jobs(), video):
        seen.append(group.task.id)
    assert seen == ["a", "b"] and len(asked) > 1


def test_one_that_is_left_frees_its_slot_at_once(engine):
    """Both slots are taken by rollouts that would go on for long; the third is served as soon as one is left."""
    written = []

    def count(event):
        written.append(event)

    left = [
        job(name, policy=LONG, sampling=GREEDY, on_event=count, gone=lambda: len(written) > 20)
        for name in "xy"
    ]
    got = list(engine.serve([*left, job("a")], video))
    assert {group.task.id for group in got} == {"x", "y", "a"}
    for group in got:
        assert (group.error is None) == (group.task.id == "a")
    assert sum(isinstance(event, events.Token) for event in written) < 100


def test_a_video_that_cannot_be_opened_is_that_jobs_alone(engine):
    def open_video(task):
        if task.id == "b":
            raise VideoError("missing", "b does not exist", "check the path")
        return video(task)

    got = {g.task.id: g for g in engine.serve([job("a"), job("b"), job("c")], open_video)}
    assert isinstance(got["b"].cause, VideoError) and got["b"].cause.kind == "missing"
    assert got["a"].error is None and got["c"].error is None


def test_rows_of_knobs_draw_what_each_would_draw_alone():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 50)).astype(np.float32) * 3
    seeds, counts = np.arange(4, dtype=np.uint32), np.arange(4, dtype=np.int32) + 5
    samplings = [Sampling(0.0), Sampling(1.0), Sampling(0.5, 0.6), Sampling(2.0, 1.0, 3)]
    tokens, logprobs = draw(logits, seeds, counts, Knobs.rows(samplings), method="mixed")
    for row, sampling in enumerate(samplings):
        part = slice(row, row + 1)
        token, logprob = draw(
            logits[part], seeds[part], counts[part], Knobs.of(sampling), method=sampling.method
        )
        assert int(tokens[row]) == int(token[0])
        np.testing.assert_allclose(logprobs[row], logprob[0], rtol=1e-5)
