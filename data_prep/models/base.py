"""What is asked of a model and what comes back, the protocol of a backend, and its errors."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol

# rate       429: too many requests; try again later
# server     5xx, a broken connection, half a reply; try again
# timeout    no whole reply within the time limit; try again
# auth       the key is missing or refused: no call can succeed
# refused    the endpoint takes nothing as things stand (402, 404, ...): credits, address, name of the model
# storage    the video is not there, or its storage fails or stalls
# request    the endpoint will not answer this request (400, 413, 422, a content filter)
# media      the video cannot be decoded or sent
ErrorKind = Literal["rate", "server", "timeout", "auth", "refused", "storage", "request", "media"]
TRANSIENT: tuple[ErrorKind, ...] = ("rate", "server", "timeout")
# These tell of the row itself and end it for good; after the others its next run may go well.
VERDICTS: tuple[ErrorKind, ...] = ("request", "media")
_REMEDIES: dict[ErrorKind, str] = {
    "rate": "lower config.limits.concurrency or requests_per_minute",
    "server": "check that config.model.base_url is up",
    "timeout": "raise config.limits.timeout or lower config.limits.concurrency",
    "auth": "check the key in the variable that config.model.api_key_env names",
    "refused": "check config.model.base_url (up to and including its version, as in .../v1), config.model.name and the account's credits",
    "storage": "check that config.videos is mounted and holds the videos",
}


class ModelError(Exception):
    """A call that brought no reply.

    Attributes:
      kind: see `ErrorKind`; decide on this, never on the text.
      retry_after: seconds that the endpoint asks to wait, if it said.
    """

    def __init__(self, kind: ErrorKind, message: str, *, retry_after: float | None = None):
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    @property
    def advice(self) -> str:
        """The error with what to do, for the end of a run."""
        remedy = _REMEDIES.get(self.kind)
        return f"{self}; {remedy}" if remedy else str(self)


def kind_of_status(status: int) -> ErrorKind:
    """What an HTTP status that is no success says of the call."""
    if status == 429:
        return "rate"
    if status in (401, 403):
        return "auth"
    if status >= 500 or status in (408, 409):
        return "server"
    return "request" if status in (400, 413, 422) else "refused"


@dataclasses.dataclass(frozen=True)
class Media:
    """What of a video a model is shown.

    Attributes:
      video: the path below the video root.
      path: where the file is.
      identity: names the file's content; part of the reply's key.
      windows: seconds of the whole video; empty for all of it.
      frame_fps: the rate of a folder of frames.
    """

    video: str
    path: str
    identity: str
    windows: tuple[tuple[float, float], ...] = ()
    frame_fps: float | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """One question to a model.

    Attributes:
      stage: who asks.
      prompt: hash of the prompt file.
      system, text: the wording.
      schema: JSON schema of the reply.
      media: what is shown; None for a question on text alone.
      inputs: what the wording was filled from, as data; backends that talk to people's models ignore it.
      draw: number of the vote; same question, another sample.
      temperature: of sampling.
      max_tokens: of the reply.
      history: (role, text) turns after the first reply, when a reply has to be mended.
    """

    stage: str
    prompt: str
    system: str
    text: str
    schema: Mapping[str, Any]
    media: Media | None = None
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    draw: int = 0
    temperature: float = 0.0
    max_tokens: int = 2048
    history: tuple[tuple[str, str], ...] = ()

    def content(self) -> list[Any]:
        """What decides the reply, as JSON: the reply's key is made of it and of the model. `media.path` is not part of it."""
        media = None
        if self.media is not None:
            media = [self.media.video, self.media.identity, [list(w) for w in self.media.windows]]
            if self.media.frame_fps is not None:  # it decides which frames a window holds
                media.append(self.media.frame_fps)
        history = [list(turn) for turn in self.history]
        return [
            self.stage, self.prompt, self.system, self.text, media, dict(self.inputs),
            self.draw, self.temperature, self.max_tokens, history,
        ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RawReply:
    """A reply as it came.

    Attributes:
      text: what the model wrote.
      prompt_tokens, reply_tokens: as the endpoint counted them (estimated where it does not).
      cut: the reply hit the length limit.
      model: the model that answered, as the endpoint names it.
    """

    text: str
    prompt_tokens: int
    reply_tokens: int
    cut: bool
    model: str


class Client(Protocol):
    """A backend. One instance serves many calls at once."""

    def identity(self) -> list[Any]:
        """What of the backend decides a reply (names, settings; never a key), as JSON."""

    async def prepare(self, request: Request, *, key: str) -> Callable[[], Awaitable[RawReply]]:
        """Does what one call needs once, however often it is tried, such as decoding frames; no time limit holds here.

        Returns:
          What sends the request: one try of the call, as `complete` makes it.

        Raises:
          ModelError: the video cannot be read (`storage`) or decoded (`media`).
        """
        return functools.partial(self.complete, request, key=key)

    async def complete(self, request: Request, *, key: str) -> RawReply:
        """One call; `key` names its content, for endpoints that know idempotency keys.

        Raises:
          ModelError: no reply.
        """

    async def close(self) -> None:
        """Lets connections go."""
