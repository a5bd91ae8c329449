"""`vo3`: ask a video, evaluate, convert a checkpoint, look at trajectories. Thin: every command is a room's own.

A wrong input ends in one line that names the thing and the remedy, and exit code 2.
"""

from __future__ import annotations

import argparse
import glob
import io
import os
import sys
from collections.abc import Sequence

import vo3
from vo3 import ask_command, extras
from vo3.arguments import UsageError
from vo3.data import commands as data_commands
from vo3.evals import commands as evals_commands
from vo3.serve import commands as serve_commands
from vo3.train import commands as train_commands
from vo3.viewer import commands as viewer_commands

# transformers announces on import that it found no torch; nothing here needs torch.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Device files of TPUs and GPUs.
_ACCELERATORS = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd", "/dev/dxg")


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
    ):
        # What was never imported raised nothing.
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vo3", description="A video agent that looks again.")
    parser.add_argument("--version", action="version", version=f"vo3 {vo3.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for room in (
        ask_command, train_commands, evals_commands, serve_commands, viewer_commands, data_commands,
    ):  # fmt: skip
        room.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
