"""A time limit that holds even where a read never returns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from vo3.video.errors import VideoError

_Result = TypeVar("_Result")
# The work checks the clock itself and says more precisely where it stood; only if it cannot, the caller goes on alone.
_GRACE_S = 0.25


class Deadline:
    """When a call must be over. Shared by the caller and the thread that works for it."""

    def __init__(self, seconds: float, name: str):
        """`seconds` from now; `name` is the video, for the message."""
        self.seconds = seconds
        self.name = name
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def cancel(self) -> None:
        """Makes every later check fail."""
        self._end = float("-inf")

    def error(self) -> VideoError:
        """What is raised when the time is up."""
        return VideoError(
            "timeout",
            f"{self.name}: reading took more than {self.seconds:g} s",
            "raise timeout_s, shorten the window, or store the video where it can be read faster",
        )

    def check(self) -> None:
        """Raises VideoError, kind "timeout", when the time is up."""
        if time.monotonic() >= self._end:
            raise self.error()


def within(deadline: Deadline, work: Callable[[], _Result]) -> _Result:
    """Runs `work` on a thread of its own and waits no longer than the deadline.

    A read that blocks for ever (a dead network mount, a stalled file object) cannot be interrupted; its thread is left
    behind as a daemon, stops at its next check of the deadline, and the caller gets the error in time.

    Raises:
      VideoError: kind "timeout".
      BaseException: what `work` raised.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed to the caller below
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="vo3-video", daemon=True).start()
    try:
        finished = done.wait(deadline.left() + _GRACE_S)
    finally:
        if not done.is_set():  # too late, or the caller was interrupted
            deadline.cancel()
    if not finished:
        raise deadline.error()
    if errors:
        raise errors[0]
    return results[0]
