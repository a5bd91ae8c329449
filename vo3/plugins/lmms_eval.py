"""lmms-eval's model `vo3`: an agent that looks again, on any of its tasks that show one video.

    lmms-eval --model vo3 --model_args checkpoint=DIR,dialect=video-o3 --tasks videomme --batch_size 1

Model arguments are the keys of the evaluation's config (`vo3.evals.config.defaults`), and `trajectories=FILE.jsonl` keeps every
conversation. Imported by lmms-eval through the entry point in setup.py.

A task's text is split into question and options, and asked with the prompt pack of the checkpoint; what the task says of the form of an
answer, and its generation arguments (often 16 new tokens), are for models of one turn and are left aside. The reply is the answer
alone: a letter where there are options.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from vo3.evals.journal import failure_of
from vo3.plugins.questions import Answers, split_question
from vo3.trajectory import Task

_log = logging.getLogger(__name__)


class VO3(lmms):
    """See the module."""

    is_simple = True

    def __init__(
        self,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ):
        """Loads the model; `device` is JAX's to choose, and the sizes of lmms-eval's batches mean nothing here (`batch` is ours)."""
        super().__init__()
        self._answers = Answers(**settings)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers; empty where a video cannot be read, which is logged and never ends the run."""
        tasks = [self._task(request) for request in requests]
        replies = []
        for trajectory in self._answers.ask(tasks):
            if failure := failure_of(trajectory):
                _log.error("%s: %s: %s", trajectory.task.id, failure["kind"], failure["message"])
            replies.append(trajectory.answer or "")
        return replies

    def _task(self, request: Instance) -> Task:
        text, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        if len(visuals) != 1 or not isinstance(visuals[0], (str, os.PathLike)):
            raise NotImplementedError(
                f"{task}: document {doc_id} shows {len(visuals)} media ({', '.join({type(v).__name__ for v in visuals})}); this model "
                "answers questions on one video file"
            )
        question, options = split_question(text)
        name = f"{task}/{split}/{doc_id}/{request.idx}"
        return Task(name, os.fspath(visuals[0]), question, options)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: the rounds are the agent's own."""
        raise NotImplementedError("vo3 looks again by itself; use a task of one round")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported: an agent's reply has no likelihood of its own."""
        raise NotImplementedError("vo3 answers in several turns; use a task of type generate_until")
