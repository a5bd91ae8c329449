"""Connections that ask for nothing, or take nothing: uvicorn keeps one whose request never comes, or comes a byte a minute, or whose
client does not read its answer, for ever."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# Longer than clients keep theirs: who closes first decides who may lose a request.
KEEP_ALIVE_S = 75


# Bytes a second that a client takes of what waits for it.
LEAST_RATE = 1024


@dataclasses.dataclass(frozen=True)
class Seen:
    """A connection at a look.

    Attributes:
      cycle: its last request; answered: whether that one has been, or there is none.
      paused: whether its handler may not write before the client has read; resumed: how often it could go on so far.
      queued: bytes that wait for the client.
    """

    cycle: Any
    answered: bool
    paused: bool
    resumed: int
    queued: int

    def is_idle(self, before: Seen) -> bool:
        """Whether nothing has been asked since the look before, and nothing is being answered."""
        return self.cycle is before.cycle and self.answered

    def is_stuck(self, before: Seen, seconds: float) -> bool:
        """Whether the client has hardly read in the seconds since the look before. Where more may have been written in them, nobody can tell."""
        unwritten = (self.is_idle(before) and before.answered) or (
            self.paused and before.paused and self.resumed == before.resumed
        )
        return unwritten and self.queued > max(0.0, before.queued - LEAST_RATE * seconds)


class Connection(H11Protocol):
    """uvicorn's, which ends as well when for `idle_s` no request has come whole as far as its headers go, or an answer was not read."""

    idle_s: float = KEEP_ALIVE_S
    _watch: asyncio.TimerHandle | None = None
    _resumed = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `H11Protocol`."""
        super().connection_made(transport)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `H11Protocol`."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """See `H11Protocol`."""
        self._resumed += 1
        super().resume_writing()

    def _seen(self) -> Seen:
        answered = self.cycle is None or self.cycle.response_complete
        queued = self.transport.get_write_buffer_size()
        return Seen(self.cycle, answered, self.flow.write_paused, self._resumed, queued)

    def _look_again(self) -> None:
        self._watch = self.loop.call_later(self.idle_s, self._look, self._seen())

    def _look(self, before: Seen) -> None:
        """`before`: the look before."""
        now = self._seen()
        if now.is_stuck(before, self.idle_s):
            self.transport.abort()  # closing would wait until all is read
            return
        if now.is_idle(before):
            self.transport.close()
        self._look_again()
