"""Connections that ask for nothing: uvicorn keeps one whose request never comes, or comes a byte a minute, for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# Longer than clients keep theirs: who closes first decides who may lose a request.
KEEP_ALIVE_S = 75


class Connection(H11Protocol):
    """uvicorn's, which ends as well when for `idle_s` no request has come whole as far as its headers go."""

    idle_s: float = KEEP_ALIVE_S
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `H11Protocol`."""
        super().connection_made(transport)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `H11Protocol`."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._watch = self.loop.call_later(self.idle_s, self._look, self.cycle)

    def _look(self, before: Any) -> None:
        """`before`: the request that was the last one at the look before."""
        answered = self.cycle is None or self.cycle.response_complete
        if self.cycle is before and answered:
            self.transport.close()
        else:
            self._look_again()
