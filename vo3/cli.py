"""`vo3`: ask a video, evaluate, convert a checkpoint, look at trajectories. Thin: every command is a call into the package.

A wrong input ends in one line that names the thing and the remedy, and exit code 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import io
import math
import os
import sys
from collections.abc import Callable, Sequence

from etils import epath

import vo3
from vo3 import extras
from vo3.evals import commands as evals_commands
from vo3.serve import commands as serve_commands
from vo3.viewer import commands as viewer_commands

# transformers announces on import that it found no torch; nothing here needs torch.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Device files of TPUs and GPUs.
_ACCELERATORS = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd", "/dev/dxg")


class UsageError(ValueError):
    """An argument that cannot be used; the message names it and the remedy."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    if not any(glob.glob(pattern) for pattern in _ACCELERATORS):
        # libtpu, installed to compile for chips that are not here, would look for them and complain at length.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Ids, questions and answers are somebody's: what this terminal or pipe cannot encode is escaped, as on standard error.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return args.run(args)
    except BrokenPipeError:
        # The reader of our output went away (`vo3 ... | head`); the interpreter must not complain about it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("vo3: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        told = extras.remedy(error)
        if told is None:
            raise
        print(f"vo3: {told}", file=sys.stderr)
        return 2
    except _expected() as error:
        print(f"vo3: {error}", file=sys.stderr)
        return 2


def _expected() -> tuple[type[BaseException], ...]:
    """The errors that are the input's fault. Anything else is ours, and shows its traceback."""
    errors: list[type[BaseException]] = [UsageError, OSError]
    for module, name in (
        ("vo3.video.errors", "VideoError"),
        ("vo3.models.safetensors_io", "CheckpointError"),
        ("vo3.models.qwen2_5_vl.int8", "QwixMissing"),
        ("vo3.rollout.errors", "RolloutError"),
        ("vo3.train.config", "ConfigError"),
        ("vo3.evals.questions", "AnnotationError"),
        ("vo3.evals.cards", "CardError"),
        ("vo3.evals.journal", "JournalError"),
        ("vo3.evals.judge", "JudgeError"),
        ("vo3.viewer.commands", "ViewError"),
        ("vo3.serve.commands", "ServeError"),
    ):
        # What was never imported raised nothing.
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vo3", description="A video agent that looks again.")
    parser.add_argument("--version", action="version", version=f"vo3 {vo3.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

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
        "--max-turns", type=_positive(int), metavar="N",
        help="rounds in which it may look, then one forced answer (default: the dialect's; video-o3: 8)",
    )  # fmt: skip
    ask.add_argument("--max-new-tokens", type=_positive(int), metavar="N", help="in one turn")
    ask.add_argument(
        "--temperature", type=_number, default=0.0, help="0 takes the likeliest token (default)"
    )
    ask.add_argument("--top-p", type=_number, default=1.0)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument(
        "--frame-fps", type=_positive(float), metavar="FPS", help="rate of a folder of frames"
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

    convert = commands.add_parser("convert", help="rewrite a checkpoint")
    convert.set_defaults(run=_convert)
    convert.add_argument(
        "source",
        metavar="SRC",
        help="a checkpoint directory, a training run's workdir, or clueworld",
    )
    convert.add_argument(
        "target", metavar="DST", help="a directory that does not exist or is empty"
    )
    convert.add_argument("--to", choices=("hf", "orbax"), required=True)
    convert.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the weights; default: as stored"
    )

    config = commands.add_parser(
        "convert-config", help="settings of LLaMA-Factory or verl as a training config"
    )
    config.set_defaults(run=_convert_config)
    config.add_argument("file", metavar="FILE.yaml")
    config.add_argument("--out", metavar="FILE.py", help="default: standard output")
    config.add_argument(
        "--gpus",
        type=_positive(int),
        metavar="N",
        help="of the original run: its batch is given per GPU",
    )

    evals_commands.add(commands)
    serve_commands.add(commands)

    viewer_commands.add(commands)

    doctor = commands.add_parser(
        "doctor", help="say which rows can be trained on with the videos at hand"
    )
    doctor.set_defaults(run=_doctor)
    doctor.add_argument(
        "rows", metavar="ROWS", help="a file, a folder or a pattern: json, jsonl, parquet"
    )
    doctor.add_argument("--videos", metavar="ROOT", help="folder that the rows' paths start from")
    doctor.add_argument("--write-trainable", metavar="PATH", help="write the sound rows, as jsonl")
    doctor.add_argument(
        "--fetch-plan", metavar="PATH", help="write the missing videos by source, as JSON"
    )
    doctor.add_argument("--json", action="store_true", help="print the whole diagnosis as JSON")
    doctor.add_argument("--decode", action="store_true", help="decode the end of every video too")
    doctor.add_argument("--workers", type=_positive(int), default=8, metavar="N")
    doctor.add_argument(
        "--timeout", type=_positive(float), default=60.0, metavar="SECONDS", help="for one video"
    )
    return parser


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not (math.isfinite(value) and value > 0):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


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


def _writable(flag: str, path: str | None) -> None:
    """An output that cannot be written is refused before the model runs, not after."""
    if path is None or path == "-":
        return
    target = epath.Path(path)
    if target.is_dir():
        raise UsageError(f"{flag} {path} is a directory; give a file name")
    if not target.parent.exists():
        raise UsageError(
            f"{flag} {path}: the folder {target.parent} does not exist; create it first"
        )


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
    _writable("--html", args.html)
    _writable("--json", args.json)
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


def _convert(args: argparse.Namespace) -> int:
    target = epath.Path(args.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(
            f"{args.target} is there already; give a directory that does not exist or is empty"
        )

    from rich.console import Console

    import vo3.models
    from vo3.models import loading

    console = Console()
    with console.status(f"reading {args.source}"):
        if (epath.Path(args.source) / "checkpoints").is_dir():  # a training run's workdir
            from vo3.train.checkpoints import load_run

            model = load_run(args.source, dtype=args.dtype)
        else:
            model = vo3.models.load(args.source, dtype=args.dtype)
    with console.status(f"writing {args.target}"):
        if args.to == "hf":
            model.save_hf(target)
        else:
            vo3.models.save_orbax(model, target)
        loading.record_time(model, target)
    console.print(f"wrote {args.target} ({args.to})", highlight=False)
    return 0


def _convert_config(args: argparse.Namespace) -> int:
    from vo3.train import convert_config

    _writable("--out", args.out)
    conversion = convert_config.read(args.file, gpus=args.gpus)
    text = convert_config.source(conversion, origin=epath.Path(args.file).name)
    print(convert_config.report(conversion), end="", file=sys.stderr)
    if args.out:
        epath.Path(args.out).write_text(text)
        print(f"wrote {args.out} ({conversion.kind})")
    else:
        print(text, end="")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from vo3 import json_line
    from vo3.data import doctor
    from vo3.data.files import RowFiles

    if (
        args.videos is not None
        and "://" not in args.videos
        and not epath.Path(args.videos).is_dir()
    ):
        raise UsageError(
            f"--videos {args.videos} is no folder; give the root of the rows' video paths"
        )
    _writable("--write-trainable", args.write_trainable)
    _writable("--fetch-plan", args.fetch_plan)
    try:
        rows = RowFiles(args.rows)
    except ValueError as error:
        raise UsageError(str(error)) from error
    found = doctor.diagnose(
        rows, videos=args.videos, workers=args.workers, timeout_s=args.timeout, decode=args.decode
    )
    print(json_line.dumps(found.to_json()) if args.json else doctor.table(found))
    if args.fetch_plan:
        plan = json_line.dumps(found.to_json()["fetch"], indent=1)
        epath.Path(args.fetch_plan).write_text(plan + "\n")
    if args.write_trainable:
        count = doctor.write_trainable(rows, found, args.write_trainable)
        print(f"wrote {count} rows to {args.write_trainable}", file=sys.stderr)
    return 0 if len(found.trainable) == found.rows else 1


if __name__ == "__main__":
    sys.exit(main())
