"""Accuracy of free-form answers: ROUGE and a numeric check. Additions of ours, off by default.

`pip install -e '.[rewards]'` in the checkout brings the packages. The numeric check parses what a model wrote as mathematics, which may take for ever:
it runs in worker processes with a wall clock, and a worker that does not answer in time is killed and replaced.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import queue
import re
from multiprocessing.connection import Connection

_HINT = "pip install -e '.[rewards]' in the checkout of vo3, or score free-form rows by letter"
# A worker's first answer comes after its imports.
_START = 60.0
# Longer answers are no numbers.
_LONGEST = 400


def require(kind: str) -> None:
    """Imports what answers of this kind are scored with: "rouge", "numeric", or "letter", which needs nothing.

    Raises:
      ImportError: the package is missing; says what to install.
    """
    if kind == "rouge":
        _scorer()
    elif kind == "numeric":
        _check_math()


def rouge(given: str, truth: str) -> float:
    """Mean of the ROUGE-1, ROUGE-2 and ROUGE-L F-measures, in [0, 1]; stemmed.

    Raises:
      ImportError: the package rouge-score is missing.
    """
    scores = _scorer().score(truth, given)
    return float(sum(s.fmeasure for s in scores.values()) / len(scores))


@functools.cache
def _scorer():
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise ImportError(f"free_form='rouge' needs the package rouge-score; {_HINT}") from error
    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def numeric(given: str, truth: str, *, time_limit: float = 5.0, workers: int = 1) -> float:
    """1.0 when two texts are the same number or formula, else 0.0, also when they cannot be compared in time.

    Args:
      given, truth: as written; "1,000", "1e3" and "$10^3$" are the same.
      time_limit: seconds of wall clock.
      workers: processes that the checks of this process share.

    Raises:
      ImportError: the package math-verify is missing.
    """
    if len(given) > _LONGEST or len(truth) > _LONGEST:
        return 0.0
    plain = _plain_number(given), _plain_number(truth)
    if None not in plain:
        return float(math.isclose(*plain, rel_tol=1e-6) and all(map(math.isfinite, plain)))
    return float(_pool(workers).equal(given, truth, time_limit))


_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?([eE][-+]?\d{1,3})?")


def _plain_number(text: str) -> float | None:
    """A decimal number as written, thousands separated by commas or not."""
    text = text.strip()
    if not any(c.isdigit() for c in text) or not _NUMBER.fullmatch(text):
        return None
    try:
        return float(text.replace(",", ""))
    except ValueError:  # "e5" alone
        return None


@functools.cache
def _pool(workers: int) -> Pool:
    return Pool(workers)


def _check_math() -> None:
    try:
        import math_verify  # noqa: F401  the workers' import, found missing here
    except ImportError as error:
        raise ImportError(f"free_form='numeric' needs the package math-verify; {_HINT}") from error


class Pool:
    """Worker processes that compare formulas; from several threads at once, each call has a worker of its own.

    Attributes:
      killed: workers that did not answer in time.
    """

    def __init__(self, workers: int = 1):
        _check_math()
        self.killed = 0
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(max(1, workers)):
            self._idle.put(_Worker())

    def equal(self, given: str, truth: str, time_limit: float) -> bool:
        """Whether both are the same; False when that is not known after `time_limit` seconds."""
        worker = self._idle.get()
        try:
            answer = worker.ask(given, truth, time_limit)
            if answer is None:
                self.killed += 1
                worker.close()
                worker = _Worker()
            return bool(answer)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the idle workers."""
        while not self._idle.empty():
            self._idle.get().close()


class _Worker:
    """One process, started when it is first asked."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def ask(self, given: str, truth: str, time_limit: float) -> bool | None:
        """The answer, or None after the time limit or when the process died."""
        try:
            if self._process is None:
                context = multiprocessing.get_context("spawn")
                self._pipe, far = context.Pipe()
                self._process = context.Process(target=_serve, args=(far,), daemon=True)
                self._process.start()
                far.close()
                if not self._pipe.poll(_START):
                    return None
                self._pipe.recv()
            self._pipe.send((given, truth))
            return self._pipe.recv() if self._pipe.poll(time_limit) else None
        except (EOFError, OSError):
            return None

    def close(self) -> None:
        """Kills the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Connection) -> None:
    import logging

    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # it warns of a missing time limit; the wall clock is ours

    pipe.send("ready")
    while True:
        try:
            given, truth = pipe.recv()
        except EOFError:
            return
        try:
            read = [parse(_formula(text), parsing_timeout=None) for text in (truth, given)]
            pipe.send(all(read) and bool(verify(*read, timeout_seconds=None)))
        except Exception:  # whatever a text makes the parser raise: it is no number
            pipe.send(False)


def _formula(text: str) -> str:
    return text if "$" in text or "\\" in text else f"${text}$"
