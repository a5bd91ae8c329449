"""Between the web server and the engine: a bounded queue, one thread that runs the engine, and a ticket for each question.

The engine's thread is the only one that touches the device. Events go from it to the event loop that waits for them.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Iterator

import numpy as np

from vo3.rollout import GroupEngine, GroupRollout, Job, Rollout, RolloutPolicy, Sampling
from vo3.rollout.errors import RolloutError
from vo3.rollout.events import Event, Observation
from vo3.serve.errors import ApiError, invalid
from vo3.serve.request import Ask
from vo3.serve.settings import Limits
from vo3.serve.shelf import Shelf
from vo3.trajectory import Task
from vo3.video import VideoError

log = logging.getLogger("vo3.serve")


class Ticket:
    """A question on its way.

    Attributes:
      id: of the request.
      ask: the question.
      arrived, began: seconds on the monotonic clock; `began` is None while it waits.
      spoke: whether its first token has come.
    """

    def __init__(self, name: str, ask: Ask, *, events: bool, arrived: float):
        """A ticket of the running event loop; `events`: whether every event is wanted, not the end alone."""
        self.id, self.ask, self.arrived = name, ask, arrived
        self.began: float | None = None
        self.spoke = False
        self._wanted = events
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Event | Rollout | ApiError] = asyncio.Queue()
        self._left = threading.Event()

    def leave(self) -> None:
        """The client does not wait any more."""
        self._left.set()

    def end(self, error: ApiError) -> None:
        """Nobody waits any more, or not for longer: the error is all that comes now. On the event loop."""
        self.leave()
        while not self._inbox.empty():  # frames of clips may be among it
            self._inbox.get_nowait()
        self._inbox.put_nowait(error)

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it."""
        return self._left.is_set()

    async def next(self) -> Event | Rollout:
        """The next event, or the rollout, which is the last.

        Raises:
          ApiError: it came to nothing.
        """
        item = await self._inbox.get()
        if isinstance(item, ApiError):
            raise item
        return item

    def job(self, task: Task, policy: RolloutPolicy, sampling: Sampling) -> Job:
        """What the engine does for it."""
        return Job(task, policy, sampling, self.put if self._wanted else None, self._left.is_set)

    @property
    def pictures(self) -> bool:
        """Whether its client is sent frames."""
        return self._wanted and self.ask.extension.events == "html"

    def put(self, item: Event | Rollout | ApiError) -> None:
        """Hands something to the client's side; from any thread. Frames that are not sent are not kept for a client that reads slowly."""
        if not self.pictures:
            item = _without_frames(item)
        try:
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, item)
        except RuntimeError:  # the loop is closed: the server has ended
            self._left.set()


def _without_frames(item: Event | Rollout | ApiError) -> Event | Rollout | ApiError:
    if isinstance(item, Rollout):
        return dataclasses.replace(item, clips=())
    if isinstance(item, Observation):
        frames = np.empty((0, *item.clip.frames.shape[1:]), item.clip.frames.dtype)
        return dataclasses.replace(item, clip=dataclasses.replace(item.clip, frames=frames))
    return item


class Desk:
    """Takes questions in and gives answers out."""

    def __init__(self, engine: GroupEngine, limits: Limits, *, shelf: Shelf, sampling: Sampling):
        """Starts nothing yet.

        Args:
          engine: draws one rollout of a task; its policy is the default.
          limits: of slots and the queue.
          shelf: opens videos.
          sampling: where a request says nothing.
        """
        if engine.rollouts != 1:
            raise ValueError(f"the engine draws {engine.rollouts} rollouts of a task, not 1")
        self.engine, self.limits, self.sampling = engine, limits, sampling
        self._shelf = shelf
        self._seconds = 5.0  # of an answer, a moving average
        self._lock = threading.Condition()
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._under_way: dict[str, Ticket] = {}
        # Answered, but frames of theirs wait for a client to read them: they keep their place, or slow clients would fill the memory.
        self._sending: list[Ticket] = []
        self._reserved = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="vo3-engine", daemon=True)

    # The web server's side.

    def start(self) -> None:
        """Starts the engine's thread."""
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Ends the thread; whoever still waits is told so."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Questions without a slot, those that are still being sent included."""
        with self._lock:
            idle = self.limits.slots - len(self._under_way)
            return max(0, len(self._waiting) + self._reserved - max(0, idle))

    @property
    def running(self) -> int:
        """Questions that the engine has."""
        return len(self._under_way)

    def reserve(self) -> None:
        """Takes a place before the request is read. `release` or `submit` gives it back.

        Raises:
          ApiError: 429 where all are taken; 503 when the server ends.
        """
        with self._lock:
            if not self.alive:
                raise ApiError(503, "shutting_down", "this server is ending; ask again later or elsewhere", headers={"Retry-After": "5"})  # fmt: skip
            self._sending = [ticket for ticket in self._sending if not ticket.gone]
            held = self._reserved + len(self._waiting) + len(self._under_way) + len(self._sending)
            if held >= self.limits.slots + self.limits.queue:
                wait = self._retry_after()
                raise ApiError(
                    429, "queue_full",
                    f"{self.limits.slots} questions are being answered or sent and {self.limits.queue} wait; ask again in {wait} s",
                    headers={"Retry-After": str(wait)})  # fmt: skip
            self._reserved += 1

    def release(self) -> None:
        """Gives a place back that came to nothing."""
        with self._lock:
            self._reserved -= 1

    def submit(self, ticket: Ticket) -> None:
        """Puts a ticket into the queue, in the place that was reserved."""
        with self._lock:
            self._reserved -= 1
            self._waiting.append(ticket)
            self._lock.notify_all()

    def _retry_after(self) -> int:
        """Seconds until a place should be free."""
        return min(60, max(1, math.ceil(self._seconds / self.limits.slots)))

    # The engine's side.

    def _run(self) -> None:
        while not self._closing:
            try:
                for group in self.engine.serve(self._jobs(), self._open):
                    self._deliver(group)
            except (
                Exception
            ):  # the questions under way are lost and told so; the next ones get a fresh batch
                log.exception("the engine failed; %d questions are lost", len(self._under_way))
                self._fail(ApiError(500, "engine_failed", "the engine failed while answering; ask again, and tell the operator this request's id"))  # fmt: skip
        error = ApiError(503, "shutting_down", "this server is ending; ask again later or elsewhere")  # fmt: skip
        with self._lock:
            waiting, self._waiting = list(self._waiting), collections.deque()
        for ticket in waiting:
            ticket.put(error)
        self._fail(error)

    def _jobs(self) -> Iterator[Job | None]:
        while True:
            with self._lock:
                self._waiting = collections.deque(t for t in self._waiting if not t.gone)
                # Only where the engine has nothing else to do it may wait here.
                while not (self._closing or self._waiting or self._under_way):
                    self._lock.wait()
                if self._closing:
                    return
                ticket = self._waiting.popleft() if self._waiting else None
                if ticket is not None:
                    self._under_way[ticket.id] = ticket
            yield None if ticket is None else self._job(ticket)

    def _job(self, ticket: Ticket) -> Job:
        ask, policy, sampling = ticket.ask, self.engine.policy, self.sampling
        ticket.began = time.monotonic()
        limits = {
            "max_turns": min(ask.max_turns or policy.max_turns, policy.max_turns),
            "max_new_tokens": min(ask.max_tokens or policy.max_new_tokens, policy.max_new_tokens),
        }
        given = {"temperature": ask.temperature, "top_p": ask.top_p, "top_k": ask.top_k, "seed": ask.seed}  # fmt: skip
        own = {name: value for name, value in given.items() if value is not None}
        task = Task(ticket.id, ask.video.label, ask.question, ask.options)
        return ticket.job(
            task, dataclasses.replace(policy, **limits), dataclasses.replace(sampling, **own)
        )

    def _open(self, task: Task):
        """On a host thread."""
        ticket = self._under_way[task.id]
        try:
            return self._shelf.open(ticket.ask.video)
        finally:
            if ticket.gone:  # whoever closed it may have done so before it was open
                ticket.ask.video.close()

    def _deliver(self, group: GroupRollout) -> None:
        with self._lock:
            ticket = self._under_way.pop(group.task.id)
            if ticket.pictures and group.error is None:
                self._sending.append(ticket)
        seconds = time.monotonic() - ticket.began
        if group.error is None:
            self._seconds += 0.1 * (seconds - self._seconds)
            ticket.put(group.rollouts[0])
        elif not ticket.gone:
            ticket.put(reason(group))

    def _fail(self, error: ApiError) -> None:
        with self._lock:
            lost, self._under_way = list(self._under_way.values()), {}
        for ticket in lost:
            ticket.put(error)


def reason(group: GroupRollout) -> ApiError:
    """Why a question could not be asked, for its client."""
    error = group.cause
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApiError):
            return cause
        cause = cause.__cause__
    if isinstance(error, VideoError):
        if error.kind == "timeout":
            return ApiError(400, "video_timeout", str(error), param="messages")
        return invalid(str(error), param="messages", code=f"video_{error.kind}")
    if isinstance(error, RolloutError):
        return invalid(str(error), param="messages", code="context")
    return ApiError(500, "internal", "the question could not be asked; tell the operator this request's id")  # fmt: skip
