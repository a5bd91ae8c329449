"""Work on host threads while the device goes on: opening videos and reading clips, each with a time limit."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from vo3.rollout.errors import RolloutError
from vo3.video import VideoError
from vo3.video.deadline import Deadline, within

_Result = TypeVar("_Result")


class Ticket(Generic[_Result]):
    """A piece of work that was handed in."""

    def __init__(self, future: concurrent.futures.Future[_Result], name: str):
        self._future, self.name = future, name

    @property
    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._future.done()

    def result(self) -> _Result:
        """What came of it; waits for it.

        Raises:
          VideoError: as the work raised it; kind "timeout" when it took too long, "size" where no bucket holds a frame, "read" for
            anything else that went wrong, by name.
        """
        try:
            return self._future.result()
        except VideoError:
            raise
        except RolloutError as error:
            raise VideoError("size", f"{self.name}: {error}", "") from error
        except Exception as error:
            # One video's trouble, of whatever sort, must not end the others' rollouts; it is named and counted instead.
            raise VideoError(
                "read", f"{self.name}: {type(error).__name__}: {error}", "see the cause"
            ) from error


class HostCalls:
    """A few threads. A read that never returns keeps its thread no longer than the time limit."""

    def __init__(self, *, workers: int, timeout_s: float):
        """Starts nothing yet.

        Args:
          workers: pieces of work done at a time.
          timeout_s: seconds that one may take, counted from its start.
        """
        if workers < 1 or not timeout_s > 0:
            raise ValueError(
                f"workers {workers} must be at least 1 and timeout_s {timeout_s} positive"
            )
        self.timeout_s = timeout_s
        self._pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="vo3-calls")

    def submit(self, work: Callable[[], _Result], name: str) -> Ticket[_Result]:
        """Hands in `work` on the video `name`."""

        def limited() -> _Result:
            return within(Deadline(self.timeout_s, name), work)

        return Ticket(self._pool.submit(limited), name)

    def wait(self, tickets: Collection[Ticket], timeout_s: float) -> None:
        """Waits until one of the tickets is done, or the time is up."""
        concurrent.futures.wait(
            [ticket._future for ticket in tickets],
            timeout_s,
            return_when=concurrent.futures.FIRST_COMPLETED,
        )

    def close(self) -> None:
        """Lets go of the threads; work that has not begun is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
