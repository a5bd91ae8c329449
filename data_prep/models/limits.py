"""How many calls at once, and how many a minute."""

from __future__ import annotations

import asyncio
import time


class Limiter:
    """Spaces calls so that neither requests nor tokens a minute exceed what the endpoint allows; 0 is no limit.

    A leaky bucket: every call moves the next free moment on by its share of the minute, so that calls go out evenly and a
    refused one (429) can push all others back.
    """

    def __init__(self, *, requests_per_minute: float = 0, tokens_per_minute: float = 0):
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._free = 0.0

    async def wait(self, tokens: int) -> None:
        """Returns when a call of so many tokens may go out."""
        now = time.monotonic()
        at = max(self._free, now)
        self._free = at + max(self._per_request, tokens * self._per_token)
        if at > now:
            await asyncio.sleep(at - now)

    def spent(self, expected: int, tokens: int) -> None:
        """A call that was expected to take so many tokens took so many: what frames cost is known then. The next call waits for the difference."""
        late = (tokens - expected) * self._per_token
        self._free = max(self._free, time.monotonic()) + late if late > 0 else self._free

    def back_off(self, seconds: float) -> None:
        """No call goes out for so many seconds."""
        self._free = max(self._free, time.monotonic() + seconds)
