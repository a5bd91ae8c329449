"""The loop: turns, limits and outcomes, as Video-o3 has them (arXiv 2601.23224)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from rollout_fakes import BUCKETS, TASK, NoiseVideo, answer, call

from vo3.chat import PromptPack, assistant_header, encode
from vo3.rollout import ContextError, Engine, RolloutPolicy, Sampling, events
from vo3.trajectory import Target, Trajectory
from vo3.video import VideoError


def kinds(trajectory) -> list[str]:
    return [turn.kind for turn in trajectory.turns]


def test_call_observe_answer(scripted):
    got = scripted(call(), answer("B")).rollout(TASK, NoiseVideo())
    trajectory = got.trajectory
    assert kinds(trajectory) == ["system", "question", "call", "observation", "answer"]
    assert (trajectory.outcome, trajectory.answer) == ("answered", "B")
    assert [o.index for o in trajectory.observations] == [0, 1]
    assert trajectory.calls[0].strategy == "fine" and trajectory.calls[0].start == 3.0
    assert trajectory.observations[1].strategy == "fine"
    assert [clip.tokens for clip in got.clips] == [o.tokens for o in trajectory.observations]
    assert all(turn.seconds > 0 for turn in trajectory.turns[1:])
    assert Trajectory.loads(trajectory.dumps()) == trajectory


def test_the_context_is_what_encoding_the_whole_conversation_gives(scripted, tokenizer):
    """Appending turn by turn, with ids as sampled, gives the tokens, positions and features of one whole encoding."""
    engine = scripted(call(), "<grounding>{}</grounding>", call(5, 8, "coarse"), answer(), babble=9)
    seen = []
    inner = engine.sample_turn

    def spy(session, *args):
        seen.append((session.context.state, session.context.cached))
        return inner(session, *args)

    engine.sample_turn = spy
    trajectory = engine.rollout(TASK, NoiseVideo()).trajectory
    header = len(assistant_header(tokenizer))
    for number, (state, cached) in zip((2, 4, 6, 8), seen, strict=True):
        whole = encode(trajectory.turns[:number], tokenizer)
        assert state.length == len(whole) + header == cached
        assert state.position == whole.state.position + header
        assert state.features == whole.state.features
    assert all(len(turn.ids) > 9 for turn in trajectory.turns if turn.role == "assistant")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<grounding>not json</grounding>", "JSON"),
        (call(9, 3), "reversed"),
        (call(3, 3.5), "at least 1 second"),
        (call(90, 95), "outside the video"),
        (call(strategy="sharp"), "must be one of"),
        ('<grounding>{"temporal_segment": [NaN, 5], "sampling_strategy": "fine"}</grounding>', "number"),
    ],
)  # fmt: skip
def test_failed_calls_get_an_error_turn(scripted, text, message):
    trajectory = scripted(text, answer()).rollout(TASK, NoiseVideo()).trajectory
    assert kinds(trajectory) == ["system", "question", "call", "error", "answer"]
    assert message in trajectory.turns[3].text and message in trajectory.turns[3].error
    assert trajectory.turns[2].call is None and trajectory.outcome == "answered"


def test_eval_forces_one_answer_after_the_last_round(scripted):
    got = scripted(call(), call(4, 9), answer(), max_turns=2).rollout(TASK, NoiseVideo()).trajectory
    assert kinds(got)[2:] == ["call", "observation", "call", "forced", "answer"]
    forced = got.turns[5]
    # The last clip is shown in the very turn that asks for the answer.
    assert len(forced.observations) == 1 and forced.observations[0].start == 4.0
    assert PromptPack.load().forced(TASK) in forced.text
    assert got.outcome == "answered" and got.meta["forced_by"] == "rounds"


def test_a_failed_last_call_is_forced_too(scripted):
    got = scripted("<grounding>{}</grounding>", answer(), max_turns=1).rollout(TASK, NoiseVideo())
    assert kinds(got.trajectory)[2:] == ["call", "forced", "answer"]
    assert "is missing" in got.trajectory.turns[3].text


@pytest.mark.parametrize(
    ("last", "stop"), [("I do not know", "length"), (call(), "length"), ("no<|im_end|>", "end")]
)
def test_a_forced_turn_without_an_answer_is_a_refusal(scripted, last, stop):
    got = scripted(call(), last, max_turns=1, stop=stop).rollout(TASK, NoiseVideo()).trajectory
    assert (got.outcome, got.answer) == ("refused", None)
    assert kinds(got)[-2] == "forced"


def test_eval_scores_the_raw_text_of_a_reply_without_tags(scripted):
    got = scripted(" It is B. <|im_end|>").rollout(TASK, NoiseVideo()).trajectory
    assert (got.outcome, got.answer, got.turns[-1].stop) == ("text", "It is B.", "end")
    assert got.turns[-1].text == " It is B. " and got.turns[-1].kind == "text"


def test_rl_has_six_rounds_and_no_forced_answer(scripted):
    got = (
        scripted(*[call(i, i + 5) for i in range(6)], mode="rl")
        .rollout(TASK, NoiseVideo())
        .trajectory
    )
    assert kinds(got)[2:] == ["call", "observation"] * 5 + ["call"]
    assert (got.outcome, got.answer, got.meta["limit"]) == ("exceeded", None, "rounds")


@pytest.mark.parametrize(
    ("last", "stop", "outcome"),
    [
        (answer() + "<|im_end|>", "end", "answered"),
        (answer() + "\n<|im_end|>", "end", "answered"),
        (answer() + " bye<|im_end|>", "end", "void"),
        (answer(), "length", "void"),
        ("<think>cut", "length", "void"),
        ("no tags<|im_end|>", "end", "void"),
    ],
)
def test_rl_outcomes(scripted, tokenizer, last, stop, outcome):
    got = scripted(last, mode="rl", stop=stop).rollout(TASK, NoiseVideo()).trajectory
    assert got.outcome == outcome
    if stop == "end":
        assert got.turns[-1].ids[-1] == tokenizer.eos_token_id
        assert "<|im_end|>" not in got.turns[-1].text


def test_rl_goes_on_behind_an_answer(scripted):
    """Only </grounding> stops there: an answer followed by a call is a call."""
    got = scripted(answer("B") + call(), answer() + "<|im_end|>", mode="rl").rollout(
        TASK, NoiseVideo()
    )
    assert kinds(got.trajectory)[2:] == ["call", "observation", "answer"]
    assert got.trajectory.answer == "A"


def test_video_limit(scripted):
    script = [call(i, i + 5, "coarse") for i in range(3)]
    rl = scripted(*script, mode="rl", max_videos=3).rollout(TASK, NoiseVideo()).trajectory
    assert (rl.outcome, rl.meta["limit"], len(rl.observations)) == ("exceeded", "videos", 3)
    evaluated = scripted(*script, answer(), max_videos=3).rollout(TASK, NoiseVideo()).trajectory
    assert kinds(evaluated)[-2:] == ["forced", "answer"] and len(evaluated.observations) == 3
    assert evaluated.meta["forced_by"] == "videos" and evaluated.turns[-2].observations == ()


def _question_tokens(tokenizer) -> int:
    shown = NoiseVideo().overview().observation(0)
    pack = PromptPack.load()
    turns = [
        ("system", pack.system(TASK), ()),
        ("question", pack.question(TASK, overview=shown), (shown,)),
    ]
    from vo3.trajectory import Turn

    return len(encode([Turn(k, t, observations=o) for k, t, o in turns], tokenizer))


def test_a_clip_that_crosses_the_context_limit_is_taken_back(scripted, tokenizer):
    """The call still fits, its clip does not: it is not shown, and nothing of it stays in the context."""
    fits = _question_tokens(tokenizer) + len(call()) + 40
    limits = {"max_length": fits + 300, "reserve": 300}
    rl = scripted(call(), mode="rl", **limits).rollout(TASK, NoiseVideo())
    assert (rl.trajectory.outcome, rl.trajectory.meta["limit"]) == ("exceeded", "context")
    assert kinds(rl.trajectory)[-1] == "call" and len(rl.clips) == 1
    header = len("<|im_start|>assistant\n") - len("<|im_start|>") + 1
    assert rl.trajectory.meta["tokens"]["context"] == _question_tokens(tokenizer) + header + len(
        call()
    )
    evaluated = scripted(call(), answer(), **limits).rollout(TASK, NoiseVideo()).trajectory
    assert kinds(evaluated)[-3:] == ["call", "forced", "answer"]
    assert evaluated.meta["forced_by"] == "context" and len(evaluated.observations) == 1


def test_a_context_full_of_words_ends_the_calls(scripted, tokenizer):
    limits = {"max_length": _question_tokens(tokenizer) + 500, "reserve": 400}
    got = (
        scripted(call(think="x" * 100), mode="rl", **limits).rollout(TASK, NoiseVideo()).trajectory
    )
    assert (got.outcome, got.meta["limit"]) == ("exceeded", "context")


def test_no_room_even_for_the_forced_turn(scripted, tokenizer):
    limits = {"max_length": _question_tokens(tokenizer) + 150, "reserve": 40}
    got = scripted(call(), **limits).rollout(TASK, NoiseVideo()).trajectory
    assert (got.outcome, got.meta["limit"]) == ("exceeded", "context")


def test_sampling_never_leaves_the_context(model, tokenizer, programs):
    """A model that does not stop is cut at the end of the context, the cache growing on the way."""
    length = _question_tokens(tokenizer) + 300
    policy = RolloutPolicy(max_length=length, reserve=100, max_new_tokens=5000)
    engine = Engine(model, tokenizer=tokenizer, policy=policy, buckets=BUCKETS, programs=programs)
    got = engine.rollout(TASK, NoiseVideo(), sampling=Sampling(temperature=1.0, seed=3)).trajectory
    turn = got.turns[-1]
    if turn.stop == "length":
        assert got.meta["tokens"]["context"] == length
    assert got.meta["tokens"]["context"] <= length


def test_max_new_tokens(model, tokenizer, programs):
    policy = RolloutPolicy(mode="rl", max_length=4096, max_new_tokens=7)
    engine = Engine(model, tokenizer=tokenizer, policy=policy, buckets=BUCKETS, programs=programs)
    got = engine.rollout(TASK, NoiseVideo()).trajectory
    assert (got.outcome, got.turns[-1].stop, len(got.turns[-1].ids)) == ("void", "length", 7)
    assert len(got.turns[-1].logprobs) == 7


def test_a_question_longer_than_the_context(scripted):
    engine = scripted(answer(), max_length=600, reserve=50)
    long = dataclasses.replace(TASK, question="why " * 200)
    with pytest.raises(
        ContextError, match=r"takes \d+ tokens, 8 of them the overview.*raise max_length"
    ):
        engine.rollout(long, NoiseVideo())
    assert isinstance(ContextError("x"), ValueError)


def test_a_video_lost_in_mid_conversation(scripted):
    lost = VideoError("missing", "clip.mp4 is gone", "put it back")
    rl = scripted(call(), mode="rl").rollout(TASK, NoiseVideo(failure=lost)).trajectory
    assert rl.outcome == "void" and rl.meta["video_error"]["kind"] == "missing"
    evaluated = scripted(call(), answer()).rollout(TASK, NoiseVideo(failure=lost)).trajectory
    assert kinds(evaluated)[2:] == ["call", "error", "answer"]
    assert "clip.mp4 is gone" in evaluated.turns[3].text
    window = VideoError("window", "too short", "choose a longer one")
    rl = scripted(call(), answer() + "<|im_end|>", mode="rl").rollout(
        TASK, NoiseVideo(failure=window)
    )
    assert kinds(rl.trajectory)[2:] == ["call", "error", "answer"]


def test_an_unreadable_overview_is_the_callers_to_handle(scripted):
    class Broken(NoiseVideo):
        def overview(self):
            raise VideoError("corrupt", "nothing decodes", "use another file")

    with pytest.raises(VideoError, match="nothing decodes"):
        scripted(answer()).rollout(TASK, Broken())


def test_temporal_grounding_is_one_turn_without_tools(scripted):
    task = dataclasses.replace(TASK, options=None, target=Target("", (), "temporal_grounding"))
    segment = '{"temporal_segment": [3.0, 9.0]}'
    got = scripted(answer(segment)).rollout(task, NoiseVideo()).trajectory
    assert (got.outcome, got.answer) == ("answered", segment)
    got = scripted(call() + "<|im_end|>").rollout(task, NoiseVideo()).trajectory
    assert got.outcome == "text" and len(got.observations) == 1


def test_events_tell_the_story_in_order(scripted):
    told = []
    engine = scripted(call(), answer("é"), babble=3)
    trajectory = engine.rollout(TASK, NoiseVideo(), on_event=told.append).trajectory
    assert [e.turn for e in told if isinstance(e, events.TurnEnd)] == list(trajectory.turns)
    assert [e.number for e in told if isinstance(e, events.TurnEnd)] == [0, 1, 2, 3, 4]
    assert [e.number for e in told if isinstance(e, events.TurnStart)] == [2, 4]
    shown = [e for e in told if isinstance(e, events.Observation)]
    assert [e.observation for e in shown] == list(trajectory.observations)
    assert [e.number for e in shown] == [1, 3] and all(e.seconds >= 0 for e in shown)
    for number in (2, 4):
        tokens = [e for e in told if isinstance(e, events.Token) and e.number == number]
        assert tuple(e.id for e in tokens) == trajectory.turns[number].ids
        assert "".join(e.text for e in tokens[3:]) in trajectory.turns[number].text
    order = [type(e).__name__ for e in told if not isinstance(e, events.Token)]
    assert order == ["TurnEnd", "Observation", "TurnEnd", "TurnStart", "TurnEnd", "Observation", "TurnEnd", "TurnStart", "TurnEnd"]  # fmt: skip


def test_bad_policies():
    for wrong in (
        {"mode": "train"},
        {"max_turns": 0},
        {"max_videos": 0},
        {"reserve": -1},
        {"max_length": 0},
    ):
        with pytest.raises(
            ValueError, match=next(iter(wrong)) if "mode" not in wrong else "rollout mode"
        ):
            RolloutPolicy(**wrong)
    assert RolloutPolicy(mode="rl").max_turns == 6 and RolloutPolicy().max_turns == 8
    assert RolloutPolicy().reserved(32768) == 2000 and RolloutPolicy().reserved(4096) == 512


def test_an_engine_needs_a_tokenizer(model):
    with pytest.raises(ValueError, match="pass tokenizer="):
        Engine(model)


def test_pixels_reach_the_model(scripted):
    """Another video gives other tokens: the features stand where the pads are."""
    first = scripted(answer(), babble=16).rollout(TASK, NoiseVideo(1)).trajectory.turns[-1].ids
    again = scripted(answer(), babble=16).rollout(TASK, NoiseVideo(1)).trajectory.turns[-1].ids
    other = scripted(answer(), babble=16).rollout(TASK, NoiseVideo(2)).trajectory.turns[-1].ids
    assert first == again and not np.array_equal(first, other)
