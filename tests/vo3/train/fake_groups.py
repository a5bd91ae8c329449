"""Groups of rollouts put together by hand: random ids and pixels, the template of the real ones."""

from __future__ import annotations

import functools

import numpy as np
from rollout_fakes import NoiseVideo, answer, byte_tokenizer, call

from vo3.chat import PromptPack
from vo3.models.qwen2_5_vl import Qwen2_5_VLConfig
from vo3.rollout import GroupRollout, Rollout
from vo3.trajectory import Clue, Target, Task, Trajectory, Turn

TARGET = Target("A", (Clue(3.0, 9.0),), "clue_single_w_tool")


@functools.cache
def tokenizer():
    return byte_tokenizer()


@functools.cache
def architecture() -> Qwen2_5_VLConfig:
    ids = lambda name: tokenizer().convert_tokens_to_ids(f"<|{name}|>")
    return Qwen2_5_VLConfig.tiny(
        len(tokenizer()),
        vision_start_token_id=ids("vision_start"),
        vision_end_token_id=ids("vision_end"),
        image_token_id=ids("image_pad"),
        video_token_id=ids("video_pad"),
        text={"num_hidden_layers": 2, "initializer_range": 0.1},
        vision={"depth": 2, "initializer_range": 0.1},
    )


def task(name: str) -> Task:
    return Task(name, "noise", "Which?", {"A": "a cat", "B": "a dog"}, TARGET)


# How each rollout of a group goes: its calls, its last words, how that turn stopped, the outcome.
KINDS = (
    ((3.0, 9.0), answer("A"), "end", "answered"),
    (None, answer("B"), "end", "answered"),
    ((5.0, 9.0), answer("A"), "length", "void"),
    ((1.0, 2.0), call(2.0, 4.0), "tag", "exceeded"),
    (None, "no", "end", "void"),
)


def rollout(name: str, kind: int, seed: int, *, quiet: bool = False) -> Rollout:
    """One rollout; `quiet`: the sampler says 0 for every token."""
    rng = np.random.default_rng([seed, kind])
    pack, video, one = PromptPack.load("clueworld"), NoiseVideo(seed=1), task(name)
    overview = video.overview()
    clips = [overview]
    shown = overview.observation(0)
    turns = [
        Turn("system", "find it."),
        Turn("question", pack.question(one), observations=(shown,)),
    ]
    window, last, stop, outcome = KINDS[kind % len(KINDS)]
    if window is not None:
        turns.append(
            _said("call", call(*window, "coarse", think="h" * (kind + 1)), "tag", rng, quiet)
        )
        clips.append(video.crop(*window, "coarse"))
        turns.append(
            Turn("observation", pack.observation(1, clips[1].observation(1, "coarse")),
                 observations=(clips[1].observation(1, "coarse"),))
        )  # fmt: skip
    final = "answer" if "<answer>" in last else "call" if "<grounding>" in last else "text"
    turns.append(_said(final, last, stop, rng, quiet))
    return Rollout(Trajectory(one, tuple(turns), outcome), tuple(clips))


def _said(kind: str, text: str, stop: str, rng, quiet: bool) -> Turn:
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    if stop == "end":
        ids = [*ids, tokenizer().convert_tokens_to_ids("<|im_end|>")]
    logprobs = np.zeros(len(ids)) if quiet else rng.uniform(-9, -0.1, len(ids))
    parsed = {}
    if kind == "call":
        from vo3.chat import parse_turn

        parsed = {"call": parse_turn(text, 40.0).call}
    return Turn(kind, text, ids=tuple(ids), logprobs=tuple(logprobs.tolist()), stop=stop, **parsed)


def group(name: str = "g", kinds=range(5), seed: int = 0) -> GroupRollout:
    return GroupRollout(task(name), tuple(rollout(name, k, seed) for k in kinds))
