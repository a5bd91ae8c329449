"""What other evaluators ask, a text and a video, as questions of ours; asked through the evaluation's seam."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from etils import epath

from vo3.chat.options import find_options
from vo3.evals import config as config_lib
from vo3.evals import runner
from vo3.evals.asking import Asked
from vo3.evals.journal import Journal
from vo3.train.config import ConfigError, override
from vo3.trajectory import Task, Trajectory


def split_question(text: str) -> tuple[str, dict[str, str] | None]:
    """A prompt's question and its lettered options.

    What stands behind the options (see `find_options`) tells how to answer, which the prompt pack does already, and is left out.

    Returns:
      The text before the options and the options; the whole text and None where there are none.
    """
    found = find_options(text)
    if found is None or not found.before:
        return text.strip(), None
    return found.before, found.options


def settings_of(given: dict[str, Any]) -> dict[str, Any]:
    """Values of evaluators' command lines, which may all be texts, as the types of the evaluation's config.

    Raises:
      ConfigError: an unknown key; the message names the nearest.
    """
    defaults = config_lib.flat_defaults()
    settings = {}
    for key, value in given.items():
        kept = defaults.get(key)
        if isinstance(value, str) and kept is not None and not isinstance(kept, str):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pass  # `override` says what is wrong with it
        settings[key] = float(value) if isinstance(kept, float) and type(value) is int else value
    return settings


class Answers:
    """A model that answers other evaluators' questions as `vo3.evals.runner` asks them.

    Attributes:
      config: the evaluation's, with the given changes.
    """

    def __init__(self, trajectories: epath.PathLike | None = None, **settings: Any):
        """Loads the model.

        Args:
          trajectories: a new file that every conversation is written to, for `vo3 view`.
          **settings: keys of the evaluation's config: checkpoint, dialect, modes (one), max_turns, batch, ...

        Raises:
          ConfigError, CheckpointError: what is wrong, and what to do.
          JournalError: `trajectories` is being written to, by another process or by an instance that was not closed.
        """
        self.config = override(config_lib.defaults(), **settings_of(settings))
        config_lib.validate(self.config)
        self._journal = None if trajectories is None else Journal(trajectories)
        if self._journal is not None and self._journal.done:
            self.close()
            raise ConfigError(
                f"trajectories: {trajectories} holds {len(self._journal.done)} of an earlier run; name another file"
            )
        try:
            model, pack = runner.load(self.config)
            self._mode = runner.modes_of(self.config, model, pack)[0]
            (self._asker,) = runner.askers([self._mode], model, self.config)
        except BaseException:
            self.close()
            raise

    def ask(self, tasks: Sequence[Task]) -> list[Trajectory]:
        """The conversations on `tasks`, in their order; what could not be asked has no answer and says why in `meta`."""
        groups: dict[Any, list[Task]] = {}
        for task in tasks:
            groups.setdefault(task.video, []).append(task)
        found = {}
        asked = (Asked(video, tuple(some)) for video, some in groups.items())
        try:
            for trajectory in self._asker.ask(asked):
                found[trajectory.task.id] = trajectory
                if self._journal is not None:
                    self._journal.append(trajectory)
        finally:
            if self._journal is not None:  # nobody says when the last question was asked
                self._journal.flush()
        return [found[task.id] for task in tasks]

    def close(self) -> None:
        """Ends writing; the file may then be opened by another run."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
