"""The in-process engine: one event loop, a bounded number of records under way, a progress bar.

Memory does not grow with the number of rows: triplets are read page by page, records leave for the store as they end.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator

from data_prep.models.base import ModelError
from data_prep.patience import Patience
from data_prep.pipeline import begin, dumps, line, process
from data_prep.schema import Triplet
from data_prep.stages.base import Context
from data_prep.store import Finished, Store


@dataclasses.dataclass
class Progress:
    """How a run stands."""

    total: int = 0
    done: int = 0
    accepted: int = 0
    failed: int = 0
    failure: str = ""


async def run(
    store: Store,
    context: Context,
    *,
    fingerprint: str,
    under_way: int,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Takes every admitted triplet without a record through the stages.

    Args:
      store: where triplets come from and records go.
      context: what the stages share.
      fingerprint: of the run.
      under_way: records at once, at least as many as calls at once keep the endpoint busy.
      report: called when a record ends.

    Returns:
      How it went. `failed` rows have no verdict: the endpoint did not answer, or the video could not be read; the next run tries them again.

    Raises:
      EndpointFailed: the key was refused, or nothing succeeds any more.
    """
    admitted, done, _ = store.counts()
    progress = Progress(total=admitted, done=done)
    patience = Patience()

    async def one(key: str, triplet: Triplet) -> None:
        record = begin(triplet, fingerprint)
        if record.key != key:
            raise AssertionError("a triplet's key changed between admission and processing")
        try:
            record = await process(record, context)
        except ModelError as error:
            progress.failed += 1
            progress.failure = error.advice
            patience.failed(key, triplet.video, error)
        else:
            if record.calls:  # a row may end without any, which says nothing of the endpoint
                patience.succeeded()
            row = line(record, context)
            store.put([Finished(record, dumps(record), row or "")])
            progress.done += 1
            progress.accepted += row is not None
        report(progress)

    await _bounded(store.todo(), one, under_way)
    return progress


async def _bounded(items: Iterator, one: Callable, limit: int) -> None:
    """Runs `one(*item)` for every item, `limit` at once; the first error ends it, after the others were cancelled."""
    queue: asyncio.Queue = asyncio.Queue(maxsize=limit)

    async def feed() -> None:
        for item in items:
            await queue.put(item)
        for _ in range(limit):
            await queue.put(None)

    async def work() -> None:
        while (item := await queue.get()) is not None:
            await one(*item)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            for _ in range(limit):
                group.create_task(work())
    except BaseExceptionGroup as group_error:
        # The first one is the cause; the others were cancelled because of it.
        raise group_error.exceptions[0] from None
