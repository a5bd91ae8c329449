"""One rollout: whose turn it is, which limit is hit, what the outcome is.

The logic is a generator that asks for what needs a device or a video, and goes on when it is given it. Who drives it decides how
the work is done: for one conversation, or for many at a time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator
from typing import Any, Protocol

from vo3.chat import assistant_tail, task_mode
from vo3.chat.tags import ANSWER_END, ParsedTurn
from vo3.rollout import events
from vo3.rollout.context import Context, Counts
from vo3.rollout.sampler import Sampling
from vo3.rollout.setting import Opening, Setting
from vo3.rollout.stops import SampledTurn, StopWatch, decode
from vo3.trajectory import Call, Outcome, Trajectory, Turn
from vo3.video import Clip, VideoError

# What is wrong with the call, not with the video: the model may try again.
_CALL_ERRORS = ("window", "strategy")

OnEvent = Callable[[events.Event], None]


class Video(Protocol):
    """What the engine asks of a video; `vo3.video.VideoCrop` is one."""

    @property
    def duration(self) -> float:
        """Seconds."""

    def overview(self) -> Clip:
        """The whole video, coarsely."""

    def crop(self, t0: float, t1: float, strategy: str | None) -> Clip:
        """A window of it; also with `rate=` frames per second, where a dialect's calls ask for one."""


def look(video: Video, call: Call) -> Clip:
    """The clip of a call.

    Raises:
      VideoError: see `VideoCrop.crop`.
    """
    if call.fps is None:
        return video.crop(call.start, call.end, call.strategy)
    return video.crop(call.start, call.end, call.strategy, rate=call.fps)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A finished rollout.

    Attributes:
      trajectory: the conversation.
      clips: the frames behind `trajectory.observations`, in order.
    """

    trajectory: Trajectory
    clips: tuple[Clip, ...]


@dataclasses.dataclass(frozen=True)
class _End:
    """Why a rollout is over."""

    outcome: Outcome
    answer: str | None = None
    limit: str | None = None


@dataclasses.dataclass(frozen=True)
class Begin:
    """Asks that the opening, and the header of the first turn, be in the context and prefilled."""


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Asks that the context's waiting tokens be prefilled.

    Attributes:
      clip: shown by them, if any.
      row: of the conversation's vision features that the clip's first one is.
    """

    clip: Clip | None
    row: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """Asks for a `SampledTurn`, whose tokens shall be in the context.

    Attributes:
      watch: says when it ends.
      on_token: to be called with each token and the text it adds.
    """

    watch: StopWatch
    on_token: Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class Look:
    """Asks for the clip of a call; a VideoError is thrown in instead."""

    call: Call


Request = Begin | Prefill | Sample | Look


class Run:
    """State of one rollout."""

    def __init__(
        self,
        setting: Setting,
        opening: Opening,
        *,
        context: Context,
        counts: Counts,
        duration: float,
        sampling: Sampling,
        on_event: OnEvent | None = None,
    ):
        """Prepares a rollout; `steps` runs it.

        Args:
          setting: the engine's.
          opening: of the task.
          context: of the conversation, filled by both sides.
          counts: of the driver, for the record.
          duration: of the video, seconds.
          sampling: for the record; the driver draws.
          on_event: called with every event as it happens.
        """
        self.setting, self.opening, self.task = setting, opening, opening.task
        self.context, self.counts, self.duration = context, counts, duration
        self.policy, self.sampling = setting.policy, sampling
        self.on_event = on_event
        self.tools = task_mode(self.task) in ("tool", "open")
        self.turns: list[Turn] = []
        self.clips: list[Clip] = []
        self.rounds = 0
        self.meta: dict[str, Any] = {}

    # The loop.

    def steps(self) -> Generator[Request, Any, Rollout]:
        """Runs to the end: yields requests, is sent what they ask for, returns the rollout."""
        began = time.perf_counter()
        yield from self._open(began)
        forced = False
        while True:
            turn, parsed = yield from self._assistant_turn(forced)
            self.rounds += 1
            end = self._judge(turn, forced)
            if end is None:
                forced, end = yield from self._reply(parsed)
            if end is not None:
                break
        self.meta |= {
            "seed": self.sampling.seed,
            "temperature": self.sampling.temperature,
            "limit": end.limit,
            "dialect": self.policy.dialect,
            "tokens": {"context": len(self.context), **dataclasses.asdict(self.counts)},
            "seconds": time.perf_counter() - began + self.opening.seconds,
        }
        trajectory = Trajectory(
            task=self.task,
            turns=tuple(self.turns),
            outcome=end.outcome,
            answer=end.answer,
            model=self.setting.model,
            prompt_pack=self.setting.pack.name,
            meta=self.meta,
        )
        return Rollout(trajectory, tuple(self.clips))

    def _judge(self, turn: Turn, forced: bool) -> _End | None:
        """The end that an assistant turn makes, or None for a call to answer."""
        called = turn.kind == "call" and self.tools and not forced
        if called:
            return None
        if self.policy.mode == "rl":
            whole = turn.stop != "length" and turn.text.removesuffix("\n").endswith(ANSWER_END)
            ok = turn.kind == "answer" and whole
            return _End("answered" if ok else "void", turn.answer)
        if turn.kind == "answer":
            return _End("answered", turn.answer)
        if forced:
            return _End("refused")
        return _End("text", turn.text.strip())

    def _reply(self, parsed: ParsedTurn) -> Generator[Request, Any, tuple[bool, _End | None]]:
        """Answers a call. Returns whether the next turn is forced, and the end where there is no next turn."""
        began = time.perf_counter()
        limit = self._limit()
        last = self.rounds >= self.policy.max_turns
        if limit or (last and not self.policy.force_answer):
            return (yield from self._stop(limit or "rounds", began))
        reply, clip, end = yield from self._carry_out(parsed)
        if end is not None:
            return False, end
        if last:
            text = f"{reply.text}\n{self.setting.pack.forced(self.task)}"
            reply = dataclasses.replace(reply, kind="forced", text=text)
        if not (yield from self._add(reply, clip, began)):
            return (yield from self._stop("context", began))
        if last:
            self.meta["forced_by"] = "rounds"
        return last, None

    def _limit(self) -> str | None:
        """The limit that leaves no room for another clip."""
        if len(self.clips) >= self.policy.max_videos:
            return "videos"
        return "context" if len(self.context) >= self.setting.limit else None

    def _stop(self, limit: str, began: float) -> Generator[Request, Any, tuple[bool, _End | None]]:
        """A limit was hit while calling: the final answer is asked for, or the rollout has exceeded."""
        if not self.policy.force_answer:
            return False, _End("exceeded", limit=limit)
        forced = Turn("forced", self.setting.pack.forced(self.task))
        if not (yield from self._add(forced, None, began, reserve=False)):
            return False, _End("exceeded", limit=limit)
        self.meta["forced_by"] = limit
        return True, None

    # Turns.

    def _open(self, began: float) -> Generator[Request, Any, None]:
        """System turn and question with the overview."""
        system, question = self.opening.turns
        overview, read = self.opening.overview, self.opening.seconds
        self._emit(events.TurnEnd(0, system))
        self._emit(events.Observation(1, question.observations[0], overview, read))
        yield Begin()
        self.clips.append(overview)
        question = dataclasses.replace(question, seconds=read + time.perf_counter() - began)
        self.turns += [system, question]
        self._emit(events.TurnEnd(1, question))

    def _assistant_turn(self, forced: bool) -> Generator[Request, Any, tuple[Turn, ParsedTurn]]:
        began = time.perf_counter()
        setting, number = self.setting, len(self.turns)
        self._emit(events.TurnStart(number, forced))
        room = setting.max_length - len(self.context)
        # Where no call is possible any more only an answer can end the turn early.
        closed = () if self.tools and not forced else (setting.dialect.call_end,)
        tags = [tag for tag in self.policy.stop if tag not in closed]
        watch = StopWatch(
            setting.tokenizer,
            tags=tags,
            ends=setting.ends,
            limit=min(self.policy.max_new_tokens, room),
        )
        sampled: SampledTurn = yield Sample(
            watch, lambda token, text: self._emit(events.Token(number, token, text))
        )
        ids = sampled.ids[:-1] if sampled.stop == "end" else sampled.ids
        text = decode(ids, setting.tokenizer)
        parsed = setting.dialect.parse(text, self.duration)
        turn = Turn(
            kind=parsed.kind,
            text=text,
            call=parsed.call,
            answer=parsed.answer,
            ids=sampled.ids,
            logprobs=sampled.logprobs,
            stop=sampled.stop,
            seconds=time.perf_counter() - began,
        )
        self.turns.append(turn)
        self._emit(events.TurnEnd(number, turn))
        return turn, parsed

    def _carry_out(
        self, parsed: ParsedTurn
    ) -> Generator[Request, Any, tuple[Turn | None, Clip | None, _End | None]]:
        """The observation or error turn that a call deserves, with the clip it shows."""
        if parsed.call is None:
            return self._error(parsed.error or "the call could not be read."), None, None
        try:
            clip = yield Look(parsed.call)
        except VideoError as error:
            if self.policy.mode == "rl" and error.kind not in _CALL_ERRORS:
                self.meta["video_error"] = {"kind": error.kind, "message": str(error)}
                return None, None, _End("void")
            return self._error(str(error)), None, None
        shown = self.setting.shown(clip, len(self.clips), parsed.call.strategy)
        text = self.setting.pack.observation(self.rounds, shown)
        return Turn("observation", text, observations=(shown,)), clip, None

    def _error(self, message: str) -> Turn:
        return Turn("error", self.setting.pack.error(self.rounds, message), error=message)

    def _add(
        self, turn: Turn, clip: Clip | None, began: float, *, reserve: bool = True
    ) -> Generator[Request, Any, bool]:
        """Appends a user turn and what opens the next assistant turn; False, with nothing changed, if it does not fit."""
        setting, context = self.setting, self.context
        number = len(self.turns)
        tail = assistant_tail(self.turns[-1].ids or (), setting.tokenizer)
        state = dataclasses.replace(
            context.state,
            length=len(context) + len(tail),
            position=context.state.position + len(tail),
        )
        encoded = setting.encode([turn], after=state)
        total = encoded.state.length + len(setting.header)
        if total >= (setting.limit if reserve else setting.max_length):
            return False
        if clip is not None:
            self._emit(
                events.Observation(number, turn.observations[0], clip, time.perf_counter() - began)
            )
            self.clips.append(clip)
        row = context.state.features
        context.append_ids(tail)
        context.append(encoded)
        context.append_ids(setting.header)
        yield Prefill(clip, row)
        turn = dataclasses.replace(turn, seconds=time.perf_counter() - began)
        self.turns.append(turn)
        self._emit(events.TurnEnd(number, turn))
        return True

    def _emit(self, event: events.Event) -> None:
        if self.on_event is not None:
            self.on_event(event)
