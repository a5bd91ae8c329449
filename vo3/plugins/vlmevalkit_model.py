"""The model class of `vo3.plugins.vlmevalkit`; imports VLMEvalKit."""

from __future__ import annotations

import logging
from typing import Any

from vlmeval.vlm.base import BaseModel

from vo3.evals.journal import failure_of
from vo3.plugins.questions import Answers, split_question
from vo3.trajectory import Task

_log = logging.getLogger(__name__)


class VO3(BaseModel):
    """An agent that looks again; see `vo3.plugins.vlmevalkit`."""

    INTERLEAVE = False
    VIDEO_LLM = True  # the file, not its frames

    def __init__(self, **settings: Any):
        """Loads the model; see `Answers`."""
        super().__init__()
        self._answers = Answers(**settings)
        self._asked = 0

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """The answer; empty where the video cannot be read, which is logged and never ends the run."""
        videos = [item["value"] for item in message if item["type"] == "video"]
        if len(videos) != 1:
            raise NotImplementedError(
                f"{dataset}: {len(videos)} videos in a question; this model answers questions on one video file"
            )
        text = "\n".join(item["value"] for item in message if item["type"] == "text")
        question, options = split_question(text)
        self._asked += 1
        task = Task(f"{dataset}/{self._asked}", videos[0], question, options)
        (trajectory,) = self._answers.ask([task])
        if failure := failure_of(trajectory):
            _log.error("%s: %s: %s", videos[0], failure["kind"], failure["message"])
        return trajectory.answer or ""
