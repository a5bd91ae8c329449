"""Batches made ahead of time in worker processes, in order; the source is a pure function of the step, so resuming is trivial."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_SOURCE: Any = None


def _start(make: Callable[[], Any]) -> None:
    global _SOURCE
    threading.Thread(target=_leave_with_the_parent, args=(os.getppid(),), daemon=True).start()
    _SOURCE = make()


def _leave_with_the_parent(parent: int) -> None:
    # A worker holds both ends of its pipe, so a parent that was killed would leave it waiting for ever.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _batch(step: int) -> Any:
    return _SOURCE.batch(step)


def prefetch(
    make: Callable[[], Any], *, start: int, stop: int, workers: int = 1, depth: int = 3
) -> Iterator[Any]:
    """Yields `make().batch(step)` for step in [start, stop).

    Args:
      make: builds the source in each worker; must be picklable.
      workers: processes; 0 makes batches in this process, when asked for.
      depth: batches under way at once, which bounds memory.
    """
    if workers == 0:
        source = make()
        yield from (source.batch(step) for step in range(start, stop))
        return
    # Spawned, not forked: a forked child of a process that runs JAX may deadlock.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(make,)
    ) as pool:
        steps = iter(range(start, stop))
        pending = collections.deque(
            pool.submit(_batch, step) for step in itertools.islice(steps, depth)
        )
        try:
            while pending:
                ready = pending.popleft().result()
                step = next(steps, None)
                if step is not None:
                    pending.append(pool.submit(_batch, step))
                yield ready
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
