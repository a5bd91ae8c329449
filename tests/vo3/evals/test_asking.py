"""The seam to the engines: every video is opened once, every failure belongs to its question, both engines say the same."""

from __future__ import annotations

import concurrent.futures
import types

import eval_samples
import pytest
import rollout_fakes as fakes

from vo3.chat import PromptPack
from vo3.evals import asking
from vo3.evals.asking import Asked, EngineAsker, GroupAsker, OverviewOnce, Shelf
from vo3.evals.journal import failure_of
from vo3.evals.modes import prepare
from vo3.rollout import (
    ContextError,
    Engine,
    GroupEngine,
    GroupRollout,
    Rollout,
    RolloutPolicy,
    Sampling,
)
from vo3.video import VideoError

POLICY = RolloutPolicy(max_length=4096, reserve=64, max_new_tokens=6)
MODE = prepare("tools", crop=fakes.CROP, rollout=POLICY, pack=PromptPack.load("default"))


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return fakes.write_mp4(tmp_path_factory.mktemp("video") / "a.mp4", seconds=3)


def asked(video: str, count: int = 2) -> Asked:
    tasks = tuple(eval_samples.task(f"{video[-5:]}/{n}", video=video) for n in range(count))
    return Asked(video, tasks)


class StubEngine:
    """Answers B; `failures` by task id are raised. Serves as either engine."""

    rollouts = 1

    def __init__(self, **failures):
        self.failures, self.seeds, self.videos = failures, [], []

    def rollout(self, task, video, *, policy, sampling):
        self.videos.append(video)
        self.seeds.append(sampling.seed)
        if task.id in self.failures:
            raise self.failures[task.id]
        return Rollout(eval_samples.answered(task, "B"), ())

    def run(self, tasks, open_video, *, sampling, seed):
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            videos = [threads.submit(open_video, task) for task in tasks]
        for task, video in zip(tasks, videos, strict=True):
            if video.exception() is not None:
                yield GroupRollout(task, (), str(video.exception()), video.exception())
            else:
                self.videos.append(video.result())
                yield GroupRollout(task, (Rollout(eval_samples.answered(task, "B"), ()),))


@pytest.fixture
def opened(monkeypatch):
    """Sources in the order in which they were opened."""
    log, real = [], asking.VideoCrop

    def opening(source, *args, **kwargs):
        log.append(source)
        return real(source, *args, **kwargs)

    monkeypatch.setattr(asking, "VideoCrop", opening)
    return log


@pytest.mark.parametrize("kind", [EngineAsker, GroupAsker])
def test_a_video_is_opened_once_and_a_lost_one_costs_its_questions(kind, mp4, opened, tmp_path):
    lost = str(tmp_path / "lost.mp4")
    engine = StubEngine()
    made = list(
        kind(engine, MODE, Sampling(), timeout_s=60).ask(
            [asked(mp4, 3), asked(lost), asked(mp4 + "x", 1)]
        )
    )
    assert sorted(opened) == sorted([mp4, lost, mp4 + "x"])
    assert [t.task.id for t in made] == [
        "a.mp4/0",
        "a.mp4/1",
        "a.mp4/2",
        "t.mp4/0",
        "t.mp4/1",
        ".mp4x/0",
    ]
    assert [failure_of(t) is None for t in made] == [True] * 3 + [False] * 3
    for trajectory in made[3:5]:
        assert failure_of(trajectory)["kind"] == "video: missing"
        assert lost in failure_of(trajectory)["message"]
    assert len({id(video) for video in engine.videos}) == 1


def test_failures_in_the_engine_belong_to_their_question(mp4):
    engine = StubEngine(
        **{
            "a.mp4/0": VideoError("corrupt", "no frame", "convert it"),
            "a.mp4/1": ContextError("too long"),
        }
    )
    made = list(EngineAsker(engine, MODE, Sampling(), timeout_s=60).ask([asked(mp4, 3)]))
    assert [failure_of(t) and failure_of(t)["kind"] for t in made] == [
        "video: corrupt",
        "request: ContextError",
        None,
    ]


def test_an_answer_is_drawn_with_a_seed_of_its_own(mp4):
    engine = StubEngine()
    asker = EngineAsker(engine, MODE, Sampling(temperature=1.0, seed=3), timeout_s=60)
    list(asker.ask([asked(mp4, 2)]))
    first = list(engine.seeds)
    # After another question the second one gets the same seed as before.
    list(asker.ask([Asked(mp4, asked(mp4, 2).tasks[1:])]))
    assert len(set(first)) == 2
    assert engine.seeds[2] == first[1]


def test_an_engine_of_several_rollouts_is_refused():
    engine = types.SimpleNamespace(rollouts=8)
    with pytest.raises(ValueError, match="draws 8 rollouts"):
        GroupAsker(engine, MODE, Sampling(), timeout_s=60)


def test_the_shelf_keeps_the_last_videos(mp4, opened):
    copies = [asked(mp4.replace("a.mp4", f"./{'./' * n}a.mp4"), 1) for n in range(3)]
    shelf = Shelf(copies, fakes.CROP, timeout_s=60, keep=2)
    first = shelf.video(copies[0].tasks[0])
    assert shelf.video(copies[0].tasks[0]) is first
    for one in copies[1:]:
        shelf.video(one.tasks[0])
    assert len(opened) == 3
    assert shelf.video(copies[0].tasks[0]) is not first


def test_the_overview_is_read_once():
    video = fakes.NoiseVideo()
    once = OverviewOnce(video)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        clips = [f.result() for f in [threads.submit(once.overview) for _ in range(8)]]
    assert video.overviews == 1
    assert all(clip is clips[0] for clip in clips)
    assert (once.duration, len(once.crop(1.0, 3.0, "fine").times)) == (40.0, 4)


@pytest.mark.soak
def test_both_engines_give_the_same_greedy_answers(mp4):
    tokenizer = fakes.byte_tokenizer()
    model = fakes.random_model(tokenizer)
    given = {"tokenizer": tokenizer, "pack": MODE.pack, "policy": POLICY, "buckets": fakes.BUCKETS}
    askers = (
        EngineAsker(Engine(model, **given), MODE, Sampling(), timeout_s=60),
        GroupAsker(
            GroupEngine(model, slots=3, rollouts=1, **given), MODE, Sampling(), timeout_s=60
        ),
    )
    one, many = ({t.task.id: t for t in asker.ask([asked(mp4, 5)])} for asker in askers)
    assert len(one) == 5
    assert {k: t.turns[-1].ids for k, t in one.items()} == {
        k: t.turns[-1].ids for k, t in many.items()
    }
    assert all(failure_of(t) is None for t in many.values())
