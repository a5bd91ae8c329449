"""The bar of a running evaluation: how far, and the running accuracy with its 95 % interval."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from vo3.evals.scoring import Verdict
from vo3.evals.statistics import proportion

_LINE_EVERY = 30.0  # seconds between lines where there is no terminal


class Progress:
    """Bars on a terminal, a line now and then elsewhere; all on standard error, so that standard output stays the table's."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[score]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._told = time.monotonic()
        self._name = ""
        self._total = self._count = self._right = self._failed = 0
        self._row = None

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, title: str, mode: str, total: int) -> None:
        """A new job of `total` questions."""
        self._name, self._total = f"{title}, {mode}", total
        self._count = self._right = self._failed = 0
        self._row = self._bars.add_task(self._name, total=total, score="")

    def add(self, verdict: Verdict) -> None:
        """One more question is done."""
        self._count += 1
        # A time window is right here when its IoU with the true one is at least 0.5.
        self._right += verdict.right >= 0.5
        self._failed += verdict.how == "failed"
        if self._row is not None:
            self._bars.update(self._row, advance=1, score=self.score)
        if not self._console.is_terminal and time.monotonic() - self._told > _LINE_EVERY:
            self.say(self.line)

    @property
    def score(self) -> str:
        """The running accuracy in words."""
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{proportion(self._right, self._count)}{failed}"

    @property
    def line(self) -> str:
        """The state in one line."""
        return f"{self._name}: {self._count} of {self._total}, {self.score}"

    def stop(self) -> None:
        """The job is done."""
        if not self._console.is_terminal:
            self.say(self.line)

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._told = time.monotonic()
        self._console.print(text, markup=False)
