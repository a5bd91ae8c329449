"""The caller: from a request to a parsed reply, through the cache, the limits, the retries and the repair.

A reply is stored before it is looked at, so that a reply that cannot be used is paid for once too. A reply that is not what
the schema asks for is answered with what is wrong and asked for again, `repairs` times; then the row is rejected.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import tenacity

from data_prep import jsonish
from data_prep.cache import ReplyCache
from data_prep.keys import content_key
from data_prep.models.base import TRANSIENT, Client, ModelError, RawReply, Request
from data_prep.models.limits import Limiter
from data_prep.schema import CallNote


@dataclasses.dataclass(frozen=True)
class Price:
    """Currency units for a million tokens."""

    prompt: float = 0.0
    reply: float = 0.0

    def of(self, prompt_tokens: int, reply_tokens: int) -> float:
        """What such a call costs."""
        return (prompt_tokens * self.prompt + reply_tokens * self.reply) / 1e6


@dataclasses.dataclass(frozen=True)
class CallLimits:
    """How calls are made.

    Attributes:
      concurrency: calls at once, those that read their video or wait for their next try among them.
      requests_per_minute, tokens_per_minute: 0 is no limit.
      timeout: seconds for one attempt: from the request, without the frames, to the whole reply.
      attempts: tries of a call before it counts as failed.
      first_wait, longest_wait: seconds between tries; doubled each time, with jitter.
      repairs: times that a reply that cannot be used is asked for again.
    """

    concurrency: int = 64
    requests_per_minute: float = 0
    tokens_per_minute: float = 0
    timeout: float = 120.0
    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    repairs: int = 1


@dataclasses.dataclass
class Tally:
    """What the calls of this process came to."""

    calls: int = 0
    cached: int = 0
    retries: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost: float = 0.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """A parsed reply with the notes on every call that it took."""

    value: Any
    notes: tuple[CallNote, ...]


class UnusableReply(ValueError):
    """Every try brought a reply that cannot be used; `notes` are the calls made, `kind` as in `ReplyError`."""

    def __init__(self, error: jsonish.ReplyError, notes: tuple[CallNote, ...]):
        super().__init__(str(error))
        self.kind, self.notes = error.kind, notes


class Caller:
    """Asks one backend. Belongs to one event loop."""

    def __init__(
        self,
        client: Client,
        cache: ReplyCache,
        *,
        limits: CallLimits = CallLimits(),
        price: Price = Price(),
    ):
        self.client, self.cache, self.limits, self.price = client, cache, limits, price
        self.tally = Tally()
        self._gate = asyncio.Semaphore(limits.concurrency)
        self._limiter = Limiter(
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
        )
        self._identity = client.identity()
        self._pending: dict[str, asyncio.Future[RawReply]] = {}

    async def ask(self, request: Request) -> Answer:
        """The reply to a request.

        Raises:
          UnusableReply: no try brought a reply that fits the schema.
          ModelError: no reply after every attempt.
        """
        notes: list[CallNote] = []
        for left in reversed(range(self.limits.repairs + 1)):
            key = content_key(self._identity, request.content())
            raw = await self._reply(key, request)
            try:
                parsed = jsonish.parse_reply(raw.text, request.schema, cut=raw.cut)
            except jsonish.ReplyError as error:
                notes.append(self._note(request, key, raw, error.kind))
                if not left:
                    raise UnusableReply(error, tuple(notes)) from error
                self.tally.repairs += 1
                request = _mending(request, raw, error)
                continue
            notes.append(self._note(request, key, raw, parsed.repaired))
            return Answer(parsed.value, tuple(notes))
        raise AssertionError("unreachable")

    async def _reply(self, key: str, request: Request) -> RawReply:
        """From the cache, from a call under way for the same content, or from the endpoint."""
        if (stored := self.cache.get(key)) is not None:
            self.tally.cached += 1
            return stored
        if key in self._pending:
            return await asyncio.shield(self._pending[key])
        future = asyncio.get_running_loop().create_future()
        self._pending[key] = future
        try:
            reply = await self._call(key, request)
            self.cache.put(key, request.stage, reply)
        except asyncio.CancelledError:
            future.cancel()
            raise
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # waited for or not, it is raised here
            raise
        else:
            future.set_result(reply)
            return reply
        finally:
            del self._pending[key]

    async def _call(self, key: str, request: Request) -> RawReply:
        limits = self.limits
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(
                lambda e: isinstance(e, ModelError) and e.kind in TRANSIENT
            ),
            stop=tenacity.stop_after_attempt(limits.attempts),
            wait=_Wait(limits.first_wait, limits.longest_wait),
            before_sleep=self._before_retry,
            reraise=True,
        )
        # One place from the frames to the reply: what is prepared is large, and no more of it is held than calls are made.
        async with self._gate:
            # Ahead of the tries and of their time limit: a slow film is no fault of the endpoint, and is decoded once.
            send = await self.client.prepare(request, key=key)
            async for attempt in retrying:
                with attempt:
                    expected = _estimate(request)
                    await self._limiter.wait(expected)
                    try:
                        async with asyncio.timeout(limits.timeout):
                            reply = await send()
                    except TimeoutError as error:
                        raise ModelError(
                            "timeout", f"no whole reply within {limits.timeout:g} s"
                        ) from error
        self._limiter.spent(expected, reply.prompt_tokens + reply.reply_tokens)
        self.tally.calls += 1
        self.tally.prompt_tokens += reply.prompt_tokens
        self.tally.reply_tokens += reply.reply_tokens
        self.tally.cost += self.price.of(reply.prompt_tokens, reply.reply_tokens)
        return reply

    def _before_retry(self, state: tenacity.RetryCallState) -> None:
        self.tally.retries += 1
        error = state.outcome.exception()
        if error.kind == "rate" and error.retry_after:
            self._limiter.back_off(error.retry_after)

    def _note(self, request: Request, key: str, raw: RawReply, repaired: str) -> CallNote:
        return CallNote(
            stage=request.stage,
            key=key,
            model=raw.model,
            prompt=request.prompt,
            prompt_tokens=raw.prompt_tokens,
            reply_tokens=raw.reply_tokens,
            cost=self.price.of(raw.prompt_tokens, raw.reply_tokens),
            repaired=repaired,
        )


class _Wait(tenacity.wait.wait_base):
    """Exponential with full jitter, and at least what the endpoint asks for."""

    def __init__(self, first: float, longest: float):
        self._random = tenacity.wait_random_exponential(multiplier=first, max=longest)
        self._longest = longest

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        asked = getattr(retry_state.outcome.exception(), "retry_after", None) or 0.0
        return max(self._random(retry_state), min(asked, self._longest))


def _mending(request: Request, raw: RawReply, error: jsonish.ReplyError) -> Request:
    """The same question with the reply that did not do and what is wrong with it."""
    turns = (
        ("assistant", raw.text[:4000]),
        ("user", f"That cannot be used: {error}. Reply again, whole, as JSON only."),
    )
    longer = request.max_tokens * 2 if error.kind == "truncated" else request.max_tokens
    return dataclasses.replace(request, history=request.history + turns, max_tokens=longer)


def _estimate(request: Request) -> int:
    """Tokens of the text of a request, about; what frames cost is the endpoint's to count, and told by its reply."""
    return (len(request.system) + len(request.text)) // 4 + request.max_tokens // 4
