"""One rollout of a group: its conversation, and where it stands between host and device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

from vo3.rollout.context import Context, Counts
from vo3.rollout.host_calls import Ticket
from vo3.rollout.run import Begin, Look, OnEvent, Prefill, Rollout, Run, Sample, Video
from vo3.rollout.sampler import Sampling
from vo3.rollout.setting import Opening, Setting
from vo3.rollout.stops import SampledTurn
from vo3.rollout.stream import Stream
from vo3.rollout.vision import Patches
from vo3.trajectory import Call
from vo3.video import Clip, VideoError

# prompt   waits for its group's prefix
# clip     waits for a clip from a host thread
# tokens   waits for new tokens to be prefilled
# live     samples: the token drawn last is its next one
# done     has ended
Stage = Literal["prompt", "clip", "tokens", "live", "done"]

# Reads a clip on a host thread: the frames, and the calls of the vision tower that they need.
Fetch = Callable[[Call], Ticket[tuple[Clip, list[Patches]]]]


class Leaf:
    """A rollout.

    Attributes:
      stage: see `Stage`.
      stream: its tokens behind the prefix.
      sampling: with its own seed.
      rollout: when it is done.
    """

    def __init__(
        self,
        setting: Setting,
        opening: Opening,
        video: Video,
        sampling: Sampling,
        fetch: Fetch,
        on_event: OnEvent | None = None,
    ):
        """Begins a conversation whose opening is to become the group's prefix."""
        state = opening.encoded.state
        context = Context(state)
        context.append_ids(setting.header)
        context.mark_cached(len(setting.header))
        self.stream = Stream(context, Counts(shared=len(context)))
        self.sampling = sampling
        self.stage: Stage = "prompt"
        self.ticket: Ticket[tuple[Clip, list[Patches]]] | None = None
        self.rollout: Rollout | None = None
        self._fetch = fetch
        self._fetched: list[Patches] = []
        self._run = Run(
            setting,
            opening,
            context=context,
            counts=self.stream.counts,
            duration=video.duration,
            sampling=sampling,
            on_event=on_event,
        )
        self._steps = self._run.steps()
        self._sample: Sample | None = None
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._take(next(self._steps))

    @property
    def task(self) -> str:
        """Id of the task."""
        return self._run.task.id

    def prefilled(self) -> None:
        """What it waited for is in the cache and the first token of its turn has been drawn, but not read."""
        self._go_on(None)

    def token(self, token: int, logprob: float) -> None:
        """The token drawn last was read; it is in the cache."""
        self._ids.append(token)
        self._logprobs.append(logprob)
        text, stop = self._sample.watch.push(token)
        self._sample.on_token(token, text)
        if stop is not None:
            self.said(SampledTurn(tuple(self._ids), tuple(self._logprobs), stop), len(self._ids))

    def said(self, turn: SampledTurn, cached: int) -> None:
        """The turn is over; its first `cached` tokens are in the cache."""
        self._ids, self._logprobs = [], []
        context = self.stream.context
        context.append_ids(turn.ids)
        context.mark_cached(cached)
        self.stream.counts.sampled += cached
        self._go_on(turn)

    def looked(self) -> None:
        """The ticket is done: goes on with its clip, or with the error."""
        ticket, self.ticket = self.ticket, None
        try:
            clip, self._fetched = ticket.result()
        except VideoError as error:
            self._move(functools.partial(self._steps.throw, error))
        else:
            self._go_on(clip)

    def _go_on(self, value: Clip | SampledTurn | None) -> None:
        self._move(functools.partial(self._steps.send, value))

    def _move(self, step: Callable[[], Begin | Prefill | Sample | Look]) -> None:
        try:
            request = step()
        except StopIteration as end:
            self.stage, self.rollout = "done", end.value
        else:
            self._take(request)

    def _take(self, request: Begin | Prefill | Sample | Look) -> None:
        match request:
            case Begin():
                self.stage = "prompt"
            case Sample():
                self.stage, self._sample = "live", request
            case Look(call):
                self.stage, self.ticket = "clip", self._fetch(call)
            case Prefill(clip, row):
                if clip is not None:
                    self.stream.show(self._fetched, row)
                    self._fetched = []
                self.stage = "tokens"
