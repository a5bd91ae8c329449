"""Trajectories that could not be read: what is said of each, and how a run that goes on remembers them."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterable

from etils import epath

from vo3 import json_line
from vo3.video.errors import STORAGE

# The kind of what another process that feeds the same rows could not read.
ELSEWHERE = "elsewhere"


@dataclasses.dataclass(frozen=True)
class Failure:
    """A trajectory that was left out of its step.

    Attributes:
      step: of the plan.
      number: of the trajectory in its source.
      id: the row's own id; "" when the row itself could not be read.
      video: what was being read.
      kind: a kind of `VideoError`; "row" (the source failed), "encode", "length" (it no longer fits the row that was planned for
        it), "crash" (it ended the worker process, more than once), `ELSEWHERE`, "error" (anything else).
      message: in words.
    """

    step: int
    number: int
    id: str
    video: str
    kind: str
    message: str


class FailureLimitError(RuntimeError):
    """Too large a share of the trajectories could not be read."""


class StopReading(Exception):
    """The loader is being closed; what is under way is dropped."""


class FailureRecord:
    """Failures as JSON lines in a folder, one file per process, so that a run that goes on sees the same holes.

    Attributes:
      known: failures that stood there, of every process, by (step, number).
    """

    def __init__(self, folder: epath.PathLike, process_index: int):
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"failures-{process_index:05d}.jsonl"
        self._lines: list[str] = []
        self._written: set[tuple[int, int]] = set()
        self.known: dict[tuple[int, int], Failure] = {}
        for path in sorted(folder.glob("failures-*.jsonl")):
            for line in path.read_text().split("\n"):  # an error may quote U+2028: no `splitlines`
                try:
                    failure = Failure(**json.loads(line))
                except (ValueError, TypeError):  # the last line of a run that was killed
                    continue
                self.known[failure.step, failure.number] = failure
                self._written.add((failure.step, failure.number))
                if path == self._path:
                    self._lines.append(line)

    def add(self, failures: Iterable[Failure]) -> None:
        """Writes those that do not stand there yet."""
        new = [f for f in failures if (f.step, f.number) not in self._written]
        if not new:
            return
        for failure in new:
            self._written.add((failure.step, failure.number))
            self._lines.append(json_line.dumps(dataclasses.asdict(failure)))
        self._write()

    def forget(self, step: int) -> None:
        """Drops what storage failed from a step on: a run that ended for an outage would else meet the same end for ever."""
        kept = []
        for line in self._lines:
            failure = Failure(**json.loads(line))
            if failure.step < step or failure.kind not in (*STORAGE, "row"):
                kept.append(line)
        if len(kept) < len(self._lines):
            self._lines = kept
            self._write()

    def _write(self) -> None:
        # Written whole, since an object store cannot append, and aside first, since a run may be killed here.
        part = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex[:8]}")
        part.write_text("".join(f"{line}\n" for line in self._lines))
        part.replace(self._path)
