"""What the commands of both trainers share: their flags, how they begin, and how they end."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from vo3.models.safetensors_io import CheckpointError
from vo3.train import config as config_lib
from vo3.train import processes
from vo3.train.faults import TrainingFault

# What ends a run in one line, of either trainer.
_ERRORS = (config_lib.ConfigError, CheckpointError, TrainingFault, FileNotFoundError)


def start(main: Callable[[list[str]], int]) -> None:
    """Defines the flags and runs `main`. Programs alone call it, so that modules of several commands can be imported together."""
    config_flags.DEFINE_config_file("config", None, "Configuration of the run.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Checkpoints, logs and what else a run leaves go here.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=config_lib.parse_flags)


def run(name: str, train: Callable[..., Any], *errors: type[Exception]) -> int:
    """`train(config, workdir)` of the flags.

    Args:
      name: of the program, for its errors.
      train: the trainer; its result tells whether it is `finished`.
      *errors: that end a run in one line, besides those of every trainer.

    Returns:
      The exit code: 0 when finished, `stopped_code()` when saved on request before that.

    Raises:
      SystemExit: one of the errors; exit code 1.
    """
    try:
        stopped = stopped_code()
        processes.start()
        quiet()
        result = train(flags.FLAGS.config, flags.FLAGS.workdir)
    except (*_ERRORS, *errors) as error:
        raise SystemExit(f"{name}: {error}") from error
    return 0 if result.finished else stopped


def stopped_code() -> int:
    """The exit code of a run that saved on request and is not finished, of the variable VO3_STOPPED_CODE; 0 where it is not set.

    Kubernetes takes 0 for the end of the work, and starts nothing again after it: there the launchers set another code.

    Raises:
      ConfigError: the variable is no code.
    """
    given = os.environ.get("VO3_STOPPED_CODE", "0")
    if not (given.isascii() and given.isdigit() and int(given) <= 255):
        raise config_lib.ConfigError(
            f"VO3_STOPPED_CODE={given!r}: an exit code is expected, a number from 0 to 255"
        )
    return int(given)


def quiet() -> None:
    """Leaves out what Orbax tells of every file: the run's own lines would be lost in it."""
    import logging as std

    logging.set_verbosity(logging.INFO)
    talkative = lambda record: record.levelno >= std.WARNING or "/orbax/" not in record.pathname
    logging.get_absl_logger().addFilter(talkative)
