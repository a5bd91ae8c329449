"""`vo3 ask`. Only what the parser needs is imported here; the rest when the command runs."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from vo3.arguments import UsageError, check_writable, number, positive


def add(commands: Any) -> None:
    """Adds the command to `vo3`'s subparsers."""
    ask = commands.add_parser("ask", help="ask a question on a video")
    ask.set_defaults(run=_ask)
    ask.add_argument(
        "video",
        metavar="VIDEO",
        help="a file (gs:// too), or a folder of frames with --frame-fps",
    )
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="A=TEXT",
        help="an option, once for each letter",
    )
    ask.add_argument(
        "--checkpoint", default="clueworld", metavar="NAME|DIR",
        help="a Hugging Face or vo3 checkpoint directory, or the embedded model (default: %(default)s)",
    )  # fmt: skip
    ask.add_argument("--html", metavar="PATH", help="write the page of the whole trace")
    ask.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="PATH",
        help="write the trajectory; without PATH, at the end of the line, to standard output",
    )
    ask.add_argument(
        "--max-turns", type=positive(int), metavar="N",
        help="rounds in which it may look, then one forced answer (default: the dialect's; video-o3: 8)",
    )  # fmt: skip
    ask.add_argument("--max-new-tokens", type=positive(int), metavar="N", help="in one turn")
    ask.add_argument(
        "--temperature", type=number, default=0.0, help="0 takes the likeliest token (default)"
    )
    ask.add_argument("--top-p", type=number, default=1.0)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument(
        "--frame-fps", type=positive(float), metavar="FPS", help="rate of a folder of frames"
    )
    ask.add_argument(
        "--dialect", metavar="NAME",
        help="how it calls its tool: video-o3, longvt, videozoomer or package.module:NAME (default: the checkpoint's own)",
    )  # fmt: skip
    ask.add_argument("--prompt-pack", metavar="NAME|PATH", help="default: the checkpoint's own")
    ask.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the computation; default: as the weights",
    )
    ask.add_argument(
        "--quantize",
        choices=("int8",),
        help="the decoder's weights in one byte each, so that the 7B fits 16 GB",
    )
    ask.add_argument(
        "--target",
        metavar="ANSWER",
        help="the true answer, when known: the trace says right or wrong",
    )
    ask.add_argument(
        "--clue",
        action="append",
        default=[],
        metavar="START-END",
        help="where the evidence lies, in seconds",
    )


def parse_options(given: Sequence[str]) -> dict[str, str] | None:
    """`["A=red", "B=blue"]` as letter -> text; None when there are none.

    Raises:
      UsageError: no `=`, an unknown or repeated letter, an empty text, letters out of order.
    """
    options: dict[str, str] = {}
    for text in given:
        letter, equals, words = text.partition("=")
        letter, words = letter.strip(), words.strip()
        if not equals or not words:
            raise UsageError(
                f"--option {text!r} is not LETTER=TEXT; write it as --option A='the red one'"
            )
        if len(letter) != 1 or not "A" <= letter <= "Z":
            raise UsageError(f"--option {text!r}: {letter!r} is no option letter; use A, B, C, ...")
        if letter in options:
            raise UsageError(f"option {letter} is given twice: {options[letter]!r} and {words!r}")
        options[letter] = words
    expected = [chr(ord("A") + i) for i in range(len(options))]
    if sorted(options) != expected:
        raise UsageError(
            f"options {', '.join(sorted(options))} leave letters out; use {', '.join(expected)} without gaps"
        )
    if len(options) == 1:
        raise UsageError(
            "one option leaves no choice; give at least two, or none for an open question"
        )
    return {letter: options[letter] for letter in expected} or None


def parse_clue(text: str) -> tuple[float, float]:
    """`"83-91.5"` as seconds.

    Raises:
      UsageError: not two ascending numbers.
    """
    start, _, end = text.partition("-")
    try:
        window = float(start), float(end)
    except ValueError:
        window = (math.nan, math.nan)
    if not (math.isfinite(window[1]) and 0 <= window[0] < window[1]):
        raise UsageError(f"--clue {text!r} is not START-END in seconds; write it as --clue 83-91.5")
    return window


def _ask(args: argparse.Namespace) -> int:
    options = parse_options(args.option)
    clues = [parse_clue(text) for text in args.clue]
    if not args.question.strip():
        raise UsageError("the question is empty; write what you want to know")
    if args.target is not None and options and args.target not in options:
        raise UsageError(f"--target {args.target!r} is none of the options {', '.join(options)}")
    if clues and args.target is None:
        raise UsageError(
            "--clue says where the evidence for the true answer lies; give --target as well"
        )
    check_writable("--html", args.html)
    check_writable("--json", args.json)
    sampling = _sampling(args) | _dialect(args.dialect)

    from vo3.video import VideoCrop
    from vo3.video.source import plain_path

    if args.frame_fps is not None and os.path.isfile(plain_path(args.video)):
        raise UsageError(
            f"--frame-fps is the rate of a folder of frames, and {args.video} is a file, which knows its own; leave it out"
        )
    VideoCrop(
        args.video, frame_fps=args.frame_fps
    )  # a bad file is refused before a large model is read

    from rich.console import Console

    # With --json alone, standard output is the trajectory's.
    console = Console(stderr=args.json == "-")
    with console.status(f"loading {args.checkpoint}"):
        import vo3.models
        from vo3.agent import VideoAgent

        model = vo3.models.load(args.checkpoint, dtype=args.dtype, quantize=args.quantize)
        agent = VideoAgent(model, **sampling, **_pack(args.prompt_pack))
        video = VideoCrop(args.video, agent.crop_policy, frame_fps=args.frame_fps)

    from vo3.trajectory import Clue, Target
    from vo3.viewer import render
    from vo3.viewer.page import judge
    from vo3.viewer.terminal import Terminal

    terminal = Terminal(console, duration=video.duration)
    terminal.begin(args.video, args.question, options)
    trajectory = agent.ask(
        video, args.question, options, max_turns=args.max_turns, on_event=terminal.on_event
    )
    trajectory = dataclasses.replace(trajectory, model=args.checkpoint)
    if args.target is not None:
        target = Target(args.target, tuple(Clue(*clue) for clue in clues))
        trajectory = dataclasses.replace(
            trajectory, task=dataclasses.replace(trajectory.task, target=target)
        )
    terminal.finish(trajectory, right=judge(trajectory))
    if args.json == "-":
        print(trajectory.dumps())
    elif args.json:
        epath.Path(args.json).write_text(trajectory.dumps() + "\n")
        terminal.wrote(args.json)
    if args.html:
        epath.Path(args.html).write_text(render(trajectory, clips=agent.last_clips))
        terminal.wrote(args.html)
    return 0


def _dialect(name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    from vo3.chat.dialects import get_dialect

    try:
        get_dialect(name)
    except ValueError as error:
        raise UsageError(f"--dialect: {error}") from error
    return {"dialect": name}


def _sampling(args: argparse.Namespace) -> dict[str, float | int]:
    """Checked here already, since the check inside comes after the model is loaded."""
    if args.temperature < 0:
        raise UsageError(
            f"--temperature {args.temperature:g} is below 0; 0 takes the likeliest token"
        )
    if not 0 < args.top_p <= 1:
        raise UsageError(f"--top-p {args.top_p:g} lies outside of (0, 1]; 1 keeps every token")
    if not 0 <= args.seed < 2**32:
        raise UsageError(f"--seed {args.seed} lies outside of [0, 2^32)")
    sampling: dict[str, float | int] = {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "seed": args.seed,
    }
    if args.max_new_tokens is not None:
        sampling["max_new_tokens"] = args.max_new_tokens
    return sampling


def _pack(name: str | None) -> dict[str, object]:
    if name is None:
        return {}
    from vo3.chat import PromptPack

    try:
        return {"prompt_pack": PromptPack.load(name)}
    except ValueError as error:
        raise UsageError(f"--prompt-pack {name}: {error}") from error
