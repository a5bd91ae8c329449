"""Steps whose update was refused: passed over, or the end of the run."""

from __future__ import annotations

from collections.abc import Callable

from absl import logging

from vo3.train.step import NOT_FINITE, SPIKE

# With on_nan="skip" so many in a row end the run: the mean that a spike is judged against forgets in as many steps and has followed,
# so what still is one does not pass; and where no gradient is finite, no later step will mend what none may change.
IN_A_ROW = 20
_REMEDIES = {
    NOT_FINITE: "Look at the data of these steps; where it is sound, a lower rate makes another run, in another workdir",
    SPIKE: "Start again with a higher --config.spike_factor, or with 0, to take them",
}


class TrainingFault(RuntimeError):
    """A step was not finite, or a spike, and the config says to stop, or nothing else came for long."""


class Faults:
    """Decides what becomes of a run whose steps are refused; alike in every process, as the faults are.

    Attributes:
      total: since the run was started.
    """

    def __init__(self, on_nan: str, saved: Callable[[], list[int]]):
        """`saved`: gives the steps that have a checkpoint."""
        self._on_nan, self._saved = on_nan, saved
        self.total = self._row = 0

    def none(self) -> None:
        """An update was taken."""
        self._row = 0

    def add(self, fault: int, message: str) -> None:
        """One was refused, for a key of `vo3.train.step.FAULTS`; `message` tells of it.

        Raises:
          TrainingFault: with `on_nan="stop"`, or after so many in a row that nothing is learned any more.
        """
        self.total, self._row = self.total + 1, self._row + 1
        kept = f"checkpoints: {self._saved() or 'none'}"
        if self._on_nan == "stop":
            raise TrainingFault(
                f"{message}. Nothing of it was kept; {kept}. Start again with --config.on_nan=skip to pass over it"
            )
        if self._row >= IN_A_ROW:
            raise TrainingFault(
                f"{message}. It is the last of {self._row} in a row, of which nothing was kept; {kept}. {_REMEDIES[fault]}"
            )
        logging.warning("%s; it is skipped", message)
