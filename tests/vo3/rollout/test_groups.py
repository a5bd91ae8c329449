"""Groups of rollouts: the same words as one conversation at a time, whatever else is in the batch."""

from __future__ import annotations

import dataclasses
import threading

import jax
import numpy as np
import pytest
import rollout_fakes as fakes
from flax import nnx
from rollout_fakes import TASK, NoiseVideo, answer, call

from vo3.chat import encode
from vo3.rollout import GroupBuckets, GroupEngine, RolloutPolicy, Sampling
from vo3.rollout.group_programs import GroupPrograms
from vo3.rollout.rolling import rollout_seed
from vo3.trajectory import Trajectory
from vo3.video import VideoError

POLICY = RolloutPolicy(mode="rl", max_length=4096, reserve=64, max_new_tokens=6)
BUCKETS = GroupBuckets(tokens=(64, 256), patches=(64,), prefix=(2048,), suffix=(512, 2048))
TASKS = [dataclasses.replace(TASK, id=name) for name in ("a", "b", "c")]
END = "<|im_end|>"
# By number of the rollout: calls, a call that fails, an answer at once.
SCRIPTS = (
    (call(), call(5, 11, "coarse"), answer("B") + END),
    ("<grounding>{}</grounding>", call(0, 4, "medium"), answer() + END),
    (answer() + END,),
)
BABBLE = 5


@pytest.fixture(scope="module")
def group_programs(model):
    """Shared by the tests, so that each compiles only what is new."""
    return GroupPrograms(model, groups=2, leaves=3)


@pytest.fixture
def engine(model, tokenizer, group_programs):
    def make(**options):
        own = {"policy": POLICY, "buckets": BUCKETS, "programs": group_programs, "timeout_s": 20}
        own |= options
        return GroupEngine(model, tokenizer=tokenizer, slots=2, rollouts=3, **own)

    return make


@pytest.fixture
def say(monkeypatch, tokenizer):
    """Puts words into the rollouts' mouths."""

    def script(scripts=SCRIPTS, *, seed=0, tasks=TASKS, babble=BABBLE):
        class Leaf(fakes.ScriptedLeaf):
            pass

        Leaf.scripts = {
            rollout_seed(seed, task.id, number): words
            for task in tasks
            for number, words in enumerate(scripts)
        }
        Leaf.babble, Leaf.tokenizer = babble, tokenizer
        monkeypatch.setattr("vo3.rollout.group.Leaf", Leaf)

    return script


def words(group) -> list[list[tuple[int, ...]]]:
    """Sampled ids by rollout and turn."""
    return [[t.ids for t in r.trajectory.turns if t.ids] for r in group.rollouts]


def video(task) -> NoiseVideo:
    """Of another length and content for every task."""
    return NoiseVideo(seed=ord(task.id), duration=30.0 + ord(task.id) % 7)


def test_greedy_words_are_those_of_one_conversation_at_a_time(
    engine, say, scripted, tokenizer, strict_dtypes
):
    """Three tasks through two slots, with calls, a failed call and answers; the third takes the slot of the first that ends."""
    say()
    videos = {}

    def open_video(task):
        videos[task.id] = video(task)
        return videos[task.id]

    groups = engine()
    got = list(groups.run(TASKS, open_video, sampling=Sampling()))
    assert [group.task.id for group in got] == ["a", "b", "c"]
    unique = 0
    for group in got:
        for number, rollout in enumerate(group.rollouts):
            single = scripted(*SCRIPTS[number], babble=BABBLE, mode="rl").rollout(
                group.task, video(group.task)
            )
            ours, theirs = rollout.trajectory, single.trajectory
            assert [(t.kind, t.text, t.ids, t.stop) for t in ours.turns] == [
                (t.kind, t.text, t.ids, t.stop) for t in theirs.turns
            ]
            assert ours.observations == theirs.observations
            assert (ours.outcome, ours.answer) == (theirs.outcome, theirs.answer)
            for a, b in zip(ours.turns, theirs.turns, strict=True):
                if a.logprobs:
                    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
            assert ours.meta["tokens"]["context"] == theirs.meta["tokens"]["context"]
            last = len(ours.turns[-1].ids) - BABBLE  # said for it, and never needed
            own = ours.meta["tokens"]
            assert own["context"] == own["shared"] + own["prefilled"] + own["sampled"] + last
            unique += own["prefilled"]
        unique += own["shared"]
    # Every token went through the model once, the overview once a group.
    counts = groups.counts
    assert counts.prefilled == unique <= counts.slots
    assert [v.overviews for v in videos.values()] == [1, 1, 1] and counts.overviews == 3
    clips = sum(r.clips[i].grid[0] * r.clips[i].grid[1] * r.clips[i].grid[2]
                for g in got for r in g.rollouts for i in range(1, len(r.clips)))  # fmt: skip
    assert counts.patches == clips + 3 * 32
    assert counts.rollouts == {"answered": 9} and counts.lost == 0
    babbled = [tokens for group in got for r in words(group) for turn in r for tokens in turn[:5]]
    assert len(set(babbled)) > 10


def test_batch_slot_and_order_change_nothing(engine):
    sampling = Sampling(temperature=1.0, top_p=0.9, top_k=50)
    whole = {g.task.id: words(g) for g in engine().run(TASKS, video, sampling=sampling, seed=3)}
    turned = engine().run(TASKS[::-1], video, sampling=sampling, seed=3)
    assert {g.task.id: words(g) for g in turned} == whole
    [alone] = engine().run(TASKS[1:2], video, sampling=sampling, seed=3)
    assert words(alone) == whole["b"]
    [other] = engine().run(TASKS[1:2], video, sampling=sampling, seed=4)
    assert words(other) != whole["b"]
    assert len({tuple(turn) for rollout in whole.values() for turn in rollout}) == 9


def test_videos_opened_ahead_are_the_ones_that_are_asked_about(engine):
    """As many as a run would open at once, before it, each once; what is said is the same. Another opener starts anew."""
    opened, all_there = [], threading.Event()

    def open_video(task):
        opened.append(task.id)
        if len(opened) == 3:
            all_there.set()
        if task.id == "b":
            raise VideoError("missing", "b.mp4 is gone", "put it back")
        return video(task)

    groups = engine()
    plain = list(groups.run(TASKS, video, seed=3))
    groups.open_ahead([*TASKS, dataclasses.replace(TASK, id="d")], open_video)
    assert all_there.wait(60) and sorted(opened) == ["a", "b", "c"]
    got = list(groups.run(TASKS, open_video, seed=3))
    assert sorted(opened) == ["a", "b", "c"] and "b.mp4 is gone" in got[1].error
    for here, there in ((got[0], plain[0]), (got[2], plain[2])):
        assert words(here) == words(there)
    # A task of the same id that asks something else, or another way to open: nothing of it is used.
    groups.open_ahead(TASKS[:1], open_video)
    [other] = groups.run([dataclasses.replace(TASKS[0], video="other.mp4")], open_video, seed=3)
    assert other.task.video == "other.mp4" and opened.count("a") == 3
    groups.open_ahead(TASKS[1:2], open_video)
    [anew] = groups.run(TASKS[1:2], video, seed=3)
    assert words(anew) == words(plain[1])


def test_a_closed_engine_opens_nothing_more(engine):
    """What waits for a thread is dropped; the engine may go on."""
    opened, begun, end = [], threading.Event(), threading.Event()

    def open_video(task):
        opened.append(task.id)
        begun.set()
        assert end.wait(60)
        return video(task)

    groups = engine(workers=1)
    groups.open_ahead(TASKS, open_video)
    assert begun.wait(60)
    groups.close()
    end.set()
    [got] = groups.run(TASKS[:1], video, seed=3)
    assert opened == ["a"] and got.error is None
    groups.close()


def test_half_a_surrogate_pair_ends_no_run(engine):
    """As JSON may hold it: the question is asked with U+FFFD in its place, and the others too."""
    tasks = [dataclasses.replace(TASKS[0], question="what \ud83d?"), TASKS[1]]
    groups = list(engine().run(tasks, lambda task: NoiseVideo(), seed=3))
    assert [g.error for g in groups] == [None, None]
    for group in groups:
        Trajectory.loads(group.rollouts[0].trajectory.dumps().encode().decode())


def test_a_lost_overview_is_the_groups_error(engine):
    def open_video(task):
        if task.id == "a":
            raise VideoError("missing", "a.mp4 is gone", "put it back")
        if task.id == "b":
            raise RuntimeError("no such reader")
        return NoiseVideo()

    groups = engine()
    got = list(groups.run(TASKS, open_video, seed=3))
    assert [len(group.rollouts) for group in got] == [0, 0, 3]
    assert "VideoError: a.mp4 is gone" in got[0].error and "no such reader" in got[1].error
    assert got[2].error is None and groups.counts.errors == 2
    long = dataclasses.replace(TASKS[0], question="why " * 900)
    [group] = groups.run([long], video)
    assert group.rollouts == () and "ContextError: the question takes" in group.error


def test_a_video_lost_in_mid_conversation_costs_its_rollout(engine, say):
    """One clip comes too late, one reader breaks; the third rollout goes on to its answer."""

    class Lost(NoiseVideo):
        def crop(self, t0, t1, strategy):
            if t0 == 3.0:
                raise VideoError("timeout", "reading took more than 120 s", "raise timeout_s")
            if t0 == 5.0:
                raise ZeroDivisionError("broken reader")
            return super().crop(t0, t1, strategy)

    say(((call(3, 9),), (call(5, 9),), (call(6, 9), answer() + END)))
    groups = engine()
    [group] = groups.run(TASKS[:1], lambda task: Lost())
    trajectories = [rollout.trajectory for rollout in group.rollouts]
    assert [t.outcome for t in trajectories] == ["void", "void", "answered"]
    assert trajectories[0].meta["video_error"]["kind"] == "timeout"
    assert "broken reader" in trajectories[1].meta["video_error"]["message"]
    assert groups.counts.lost == 2 and groups.counts.rollouts == {"void": 2, "answered": 1}


def test_limits_of_training_and_of_evaluation(engine, say):
    say(((call(), call(4, 9)), (call(), "no tags" + END), (answer() + " bye" + END,)))
    rl = dataclasses.replace(POLICY, max_turns=2)
    [group] = engine(policy=rl).run(TASKS[:1], video)
    got = [rollout.trajectory for rollout in group.rollouts]
    assert [t.outcome for t in got] == ["exceeded", "void", "void"]
    assert got[0].meta["limit"] == "rounds"
    say(((call(), answer()), (call(), call(4, 9)), (answer(),)))
    judged = dataclasses.replace(
        POLICY, mode="eval", max_turns=1, force_answer=True, stop=("</grounding>", "</answer>")
    )
    [group] = engine(policy=judged).run(TASKS[:1], video)
    got = [rollout.trajectory for rollout in group.rollouts]
    assert [t.outcome for t in got] == ["answered", "refused", "answered"]
    assert [t.kind for t in got[0].turns][-2:] == ["forced", "answer"]


@pytest.mark.soak
def test_chunks_and_a_small_buffer_of_features_change_nothing(engine, say):
    """Prompts and clips in chunks of 16 tokens, one temporal patch at a time, hardly any room for features; suffixes that grow."""
    say()
    large = [words(g) for g in engine().run(TASKS[:2], video, sampling=Sampling())]
    small = GroupBuckets(
        tokens=(16,), patches=(16,), prefix=(2048,), suffix=(384, 512, 1024, 2048), features=4
    )
    groups = engine(buckets=small)
    assert [words(g) for g in groups.run(TASKS[:2], video, sampling=Sampling())] == large
    assert any(key[:2] == ("resize", "SuffixCache") for key in groups.programs.compiled)


def test_new_parameters(engine, model, tokenizer):
    groups = engine()
    [old] = groups.run(TASKS[:1], video, sampling=Sampling())
    compiled = groups.compilations
    changed = nnx.clone(model)
    scale = changed.decoder.norm.scale
    scale[...] = scale[...] * np.linspace(-1, 1, 64, dtype=np.float32)
    running = groups.run(TASKS[:1], video, sampling=Sampling())
    next(running)
    with pytest.raises(RuntimeError, match="under way"):
        groups.update(changed)
    with pytest.raises(RuntimeError, match="another run"):
        next(groups.run(TASKS[:1], video))
    running.close()
    groups.update(changed)
    [new] = groups.run(TASKS[:1], video, sampling=Sampling())
    assert words(new) != words(old) and groups.compilations == compiled
    groups.update(model)
    [again] = groups.run(TASKS[:1], video, sampling=Sampling())
    assert words(again) == words(old)


def test_bad_arguments(model, tokenizer, group_programs):
    with pytest.raises(ValueError, match="slots a multiple of lanes"):
        GroupEngine(model, tokenizer=tokenizer, slots=3, lanes=2)
    with pytest.raises(ValueError, match="2 groups of 3 rollouts"):
        GroupEngine(model, tokenizer=tokenizer, slots=2, rollouts=4, programs=group_programs)
    with pytest.raises(ValueError, match=r"GroupBuckets\.features is 3"):
        GroupBuckets(patches=(16,), features=3)
    with pytest.raises(ValueError, match=r"GroupBuckets\.suffix must rise"):
        GroupBuckets(suffix=(4, 4))


def test_nothing_compiles_after_warm_up(model, tokenizer, say):
    """Other lengths of question, turn and clip, and groups that come and go: no program beyond those of the tables."""
    compiled = []

    def listen(event, seconds, *, fun_name="", **_):
        # What XLA compiles, not only what is traced; the checks of shapes in tests compile things of their own.
        if "backend_compile" in event and "_body" in fun_name:
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    engine = GroupEngine(
        model, tokenizer=tokenizer, slots=1, rollouts=3,
        policy=dataclasses.replace(POLICY, max_length=2048),
        buckets=GroupBuckets(tokens=(256,), patches=(64,), prefix=(1536,), suffix=(384, 1024)),
    )  # fmt: skip
    warm = engine.warm_up()
    # encode 1, prompt 1, extend 3, decode 3, resize 6
    assert warm == 14 == len(engine.programs.compiled)
    assert len(compiled) == 14
    say(seed=1)
    tasks = [dataclasses.replace(t, question="why? " * (9 * n + 1)) for n, t in enumerate(TASKS)]
    for sampling in (Sampling(temperature=1.0), Sampling(temperature=0.5)):
        list(engine.run(tasks, video, sampling=sampling, seed=1))
    assert engine.compilations == warm == len(compiled)


def test_the_trajectory_is_whole(engine, say, scripted, tokenizer):
    """What is recorded encodes to the context that the model saw; with its seed one conversation alone draws the same."""
    say()
    sampling = Sampling(temperature=1.0)
    [group] = engine().run(TASKS[:1], video, sampling=sampling, seed=0)
    for number, rollout in enumerate(group.rollouts):
        trajectory = rollout.trajectory
        own = dataclasses.replace(sampling, seed=trajectory.meta["seed"])
        single = scripted(*SCRIPTS[number], babble=BABBLE, mode="rl")
        alone = single.rollout(TASKS[0], video(TASKS[0]), sampling=own)
        assert [t.ids for t in alone.trajectory.turns] == [t.ids for t in trajectory.turns]
        encoded = encode(trajectory.turns[:-1], tokenizer)
        header = len("<|im_start|>assistant\n") - len("<|im_start|>") + 1
        said = len(trajectory.turns[-1].ids)
        assert trajectory.meta["tokens"]["context"] == len(encoded) + header + said
        assert [clip.tokens for clip in rollout.clips] == [
            o.tokens for o in trajectory.observations
        ]
        sampled = [t for t in trajectory.turns if t.ids]
        assert all(len(t.ids) == len(t.logprobs) and t.seconds > 0 for t in sampled)
