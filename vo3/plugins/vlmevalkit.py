"""VLMEvalKit's model `vo3`: an agent that looks again, on any of its video datasets.

    python -m vo3.plugins.vlmevalkit RUN.py --data Video-MME_64frame --model vo3 --vo3 checkpoint=DIR,dialect=video-o3

RUN.py is VLMEvalKit's own `run.py`, whose arguments follow. VLMEvalKit knows no entry points: `register` puts the model into its table
of models, which is what the command above does before it runs RUN.py.

The dataset's frames do not matter: the video file is asked about, as the agent samples it. What the dataset says of the form of an
answer is left aside, as with lmms-eval.
"""

from __future__ import annotations

import functools
import logging
import runpy
import sys
from collections.abc import Sequence
from typing import Any

from vlmeval.vlm.base import BaseModel

from vo3.evals.journal import failure_of
from vo3.plugins.questions import Answers, split_question
from vo3.trajectory import Task

_log = logging.getLogger(__name__)


class VO3(BaseModel):
    """See the module."""

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


def register(name: str = "vo3", **settings: Any) -> None:
    """Makes the model known to VLMEvalKit under a name.

    Args:
      name: for `--model`.
      **settings: see `Answers`.
    """
    from vlmeval.config import supported_VLM

    supported_VLM[name] = functools.partial(VO3, **settings)


def main(argv: Sequence[str]) -> None:
    """The command."""
    argv = list(argv)
    if not argv or argv[0].startswith("-"):
        raise SystemExit("usage: python -m vo3.plugins.vlmevalkit RUN.py [--vo3 KEY=VALUE,...] ...")
    settings = {}
    if "--vo3" in argv:
        at = argv.index("--vo3")
        given = argv[at + 1] if at + 1 < len(argv) else ""
        pairs = [pair.partition("=") for pair in given.split(",") if pair]
        if not pairs or not all(equals for _, equals, _ in pairs):
            raise SystemExit("--vo3 takes KEY=VALUE,...: keys of vo3.evals.config.defaults()")
        settings = {key.strip(): value.strip() for key, _, value in pairs}
        del argv[at : at + 2]
    register(**settings)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
