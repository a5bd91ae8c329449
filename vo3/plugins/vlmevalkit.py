"""VLMEvalKit's model `vo3`: an agent that looks again, on any of its video datasets.

    python -m vo3.plugins.vlmevalkit --vo3 checkpoint=DIR,dialect=video-o3 run.py --data Video-MME_64frame --model vo3

`run.py` is VLMEvalKit's own, and what follows it are its arguments. VLMEvalKit knows no entry points: `register` puts the model into its
table of models, which is what the command does before it runs `run.py`.

The dataset's frames do not matter: the video file is asked about, as the agent samples it. What the dataset says of the form of an
answer is left aside, as with lmms-eval.
"""

from __future__ import annotations

import argparse
import functools
import runpy
import sys
from collections.abc import Sequence
from typing import Any


def register(name: str = "vo3", **settings: Any) -> None:
    """Makes the model known to VLMEvalKit under a name.

    Args:
      name: for `--model`.
      **settings: see `vo3.plugins.questions.Answers`.
    """
    from vlmeval.config import supported_VLM

    from vo3.plugins.vlmevalkit_model import VO3

    supported_VLM[name] = functools.partial(VO3, **settings)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--vo3", default="", metavar="KEY=VALUE,...",
        help="keys of the evaluation's config: checkpoint, dialect, max_turns, ..., and trajectories=FILE.jsonl",
    )  # fmt: skip
    parser.add_argument("run", metavar="run.py", help="VLMEvalKit's")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of run.py")
    args = parser.parse_args(argv)
    pairs = [pair.partition("=") for pair in args.vo3.split(",") if pair]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        parser.error(f"--vo3: {wrong[0]!r} is not KEY=VALUE")
    register(**{key.strip(): value.strip() for key, _, value in pairs})
    sys.argv = [args.run, *args.arguments]
    runpy.run_path(args.run, run_name="__main__")


if __name__ == "__main__":
    main()
