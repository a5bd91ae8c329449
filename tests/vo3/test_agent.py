"""VideoAgent: what goes in is checked, what comes out is the engine's."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
import rollout_fakes as fakes
from PIL import Image

from vo3.agent import VideoAgent, lettered
from vo3.models.safetensors_io import CheckpointError
from vo3.rollout import ContextError, OptionError, events
from vo3.rollout.vision import clip_patches
from vo3.trajectory import Trajectory
from vo3.video import CropPolicy, VideoCrop, VideoError


@pytest.fixture(scope="module")
def tokenizer():
    return fakes.byte_tokenizer()


@pytest.fixture(scope="module")
def agent(tokenizer):
    return VideoAgent(
        fakes.random_model(tokenizer),
        tokenizer=tokenizer,
        crop_policy=fakes.CROP,
        buckets=fakes.BUCKETS,
        max_new_tokens=12,
        max_length=4096,
    )


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return fakes.write_mp4(tmp_path_factory.mktemp("agent") / "blocks.mp4", seconds=6)


def test_ask(agent, mp4):
    told = []
    got = agent.ask(mp4, "What is it?", ["a cat", "a dog"], on_event=told.append)
    assert isinstance(got, Trajectory) and got.outcome == "text" and got.task.video == mp4
    assert got.task.options == {"A": "a cat", "B": "a dog"} and "B. a dog" in got.turns[1].text
    assert got.prompt_pack == "default"
    assert sum(isinstance(e, events.Token) for e in told) == 12 == len(got.turns[-1].ids)
    assert sorted(agent.last_clips) == [o.index for o in got.observations] == [0]
    assert agent.last_clips[0].frames.shape[0] == len(got.observations[0].times)


def test_a_second_question_shares_the_overview(agent, mp4):
    agent.ask(mp4, "What is it?")
    again = agent.ask(pathlib.Path(mp4), "Who is it?")
    assert again.meta["tokens"]["shared"] > 800 and again.meta["tokens"]["patches"] == 0
    opened = agent.ask(VideoCrop(mp4, fakes.CROP), "Why is it?")
    assert opened.meta["tokens"]["shared"] > 800 and opened.task.video == mp4


def test_a_file_that_changed_is_read_again(agent, tmp_path):
    path = fakes.write_mp4(tmp_path / "v.mp4", seconds=4, seed=1)
    agent.ask(path, "What is it?")
    assert agent.ask(path, "What?").meta["tokens"]["shared"] > 800
    fakes.write_mp4(path, seconds=4, seed=2)
    assert agent.ask(path, "What is it?").meta["tokens"]["shared"] == 0
    (tmp_path / "v.mp4").unlink()
    with pytest.raises(VideoError, match=r"v\.mp4"):
        agent.ask(path, "What is it?")


def test_max_turns(tokenizer, mp4, monkeypatch, agent):
    scripted = fakes.scripted_engine(
        agent.engine.model, tokenizer, agent.engine.programs, fakes.call(1, 3), fakes.answer("B")
    )
    monkeypatch.setattr(agent, "engine", scripted)
    got = agent.ask(mp4, "What is it?", {"A": "x", "B": "y"}, 1)
    assert [t.kind for t in got.turns[2:]] == ["call", "forced", "answer"]
    assert (got.outcome, got.answer) == ("answered", "B") and sorted(agent.last_clips) == [0, 1]
    assert agent.last_clips[1].start == 1.0


def test_a_policy_for_other_tokens_is_refused(agent, tokenizer, mp4):
    other = CropPolicy(recipe="qwen3_vl")  # tokens of 32 pixels
    wanted = r"'qwen3_vl' plans tokens of 32 pixels.* are 28; take a recipe that is made for it \(rl, sft, eval"
    model = fakes.random_model(tokenizer)
    with pytest.raises(ValueError, match=wanted):
        VideoAgent(model, tokenizer=tokenizer, crop_policy=other)
    model.crop_policy = other
    with pytest.raises(CheckpointError, match=wanted):
        VideoAgent(model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=wanted):
        agent.ask(VideoCrop(mp4, other), "What is it?")


def test_frames_that_were_planned_for_other_patches_are_not_shown(agent, mp4):
    # 224 x 224 are whole tokens of 28 and of 32 pixels: nothing else would tell.
    clip = VideoCrop(mp4, fakes.CROP).overview()
    clip = dataclasses.replace(clip, frames=np.zeros((2, 224, 224, 3), np.uint8), grid=(1, 14, 14))
    with pytest.raises(ValueError, match=r"224 x 224 are planned as 14 x 14 patches, .* 16 x 16"):
        next(clip_patches(clip, agent.engine.model.config.vision, (512,), 0))


def test_frames_of_a_folder_are_found_again(agent, mp4, tmp_path):
    files = []
    for i, frame in enumerate(VideoCrop(mp4, fakes.CROP).overview().frames[:4]):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(frame).save(files[-1])
    for source, kept in ((tmp_path, str(tmp_path)), (files, tuple(map(str, files)))):
        video = VideoCrop(source, fakes.CROP, frame_fps=2.0)
        task = agent.ask(video, "What is it?").task
        assert (task.video, task.frame_fps) == (kept, 2.0)
    assert agent.ask(mp4, "What is it?").task.frame_fps is None


def test_overrides(tokenizer):
    model = fakes.random_model(tokenizer)
    agent = VideoAgent(
        model, tokenizer=tokenizer, temperature=0.7, top_p=0.9, seed=4, mode="rl", max_videos=3
    )
    assert agent.sampling.method == "filtered" and agent.sampling.seed == 4
    assert agent.engine.policy.max_videos == 3 and agent.engine.policy.stop == ("</grounding>",)
    assert agent.crop_policy == CropPolicy(recipe="eval")
    with pytest.raises(
        ValueError, match="unknown override 'temprature'; did you mean 'temperature'"
    ):
        VideoAgent(model, tokenizer=tokenizer, temprature=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": "x", "b": "y"}, "lettered a, b; letter them A, B"),
        ({"A": "x", "C": "y"}, "lettered A, C; letter them A, B"),
        ({"B": "x", "A": "y"}, "in this order"),
        ({"1": "x"}, "lettered 1"),
        ({"A": ""}, "option A is ''"),
        ({"A": 5}, "option A is 5"),
        ("yes no", "one text"),
        (["x"] * 27, "letters for 26"),
    ],
)
def test_bad_options(agent, mp4, options, message):
    with pytest.raises(OptionError, match=message):
        agent.ask(mp4, "What is it?", options)
    assert issubclass(OptionError, ValueError)


def test_options_by_letter():
    assert lettered(None) is None and lettered([]) is None and lettered({}) is None
    assert lettered(("x", "y")) == {"A": "x", "B": "y"} == lettered({"A": "x", "B": "y"})


def test_bad_videos(agent, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for video in (tmp_path / "missing.mp4", tmp_path, tmp_path / "text.mp4"):
        with pytest.raises(VideoError) as caught:
            agent.ask(video, "What is it?")
        assert caught.value.remedy and video.name in str(caught.value)
    with pytest.raises(VideoError, match="is not a path"):
        agent.ask("a\0b.mp4", "What is it?")


def test_a_question_longer_than_the_context(agent, mp4):
    with pytest.raises(ContextError, match="raise max_length"):
        agent.ask(mp4, "why " * 2000)
