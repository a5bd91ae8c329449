"""One rollout: whose turn it is, which limit is hit, what the outcome is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from vo3.chat import assistant_header, assistant_tail, encode, encode_turn, parse_turn, task_mode
from vo3.chat.tags import ANSWER_END, CALL_END, ParsedTurn
from vo3.chat.tokens import Role
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.rollout import events
from vo3.rollout.errors import ContextError
from vo3.rollout.kv_cache import prefix_key
from vo3.rollout.policy import RolloutPolicy
from vo3.rollout.sampler import Sampling
from vo3.rollout.stops import StopWatch, decode
from vo3.trajectory import Call, Outcome, Task, Trajectory, Turn
from vo3.video import Clip, VideoError

if TYPE_CHECKING:
    from vo3.rollout.engine import Engine

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

    def crop(self, t0: float, t1: float, strategy: str) -> Clip:
        """A window of it."""


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


class Run:
    """State of one rollout."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        video: Video,
        policy: RolloutPolicy,
        sampling: Sampling,
        on_event: OnEvent | None,
    ):
        self.engine, self.task, self.video = engine, task, video
        self.policy, self.sampling = policy, sampling
        self.on_event = on_event
        self.session = engine.session(policy)
        self.limit = engine.max_length(policy) - policy.reserved(engine.max_length(policy))
        self.tools = task_mode(task) in ("tool", "open")
        self.turns: list[Turn] = []
        self.clips: list[Clip] = []
        self.rounds = 0
        self.meta: dict[str, Any] = {}

    # The loop.

    def finish(self) -> Rollout:
        """Runs to the end."""
        began = time.perf_counter()
        self._open()
        forced = False
        while True:
            turn, parsed = self._assistant_turn(forced)
            self.rounds += 1
            end = self._judge(turn, forced)
            if end is None:
                forced, end = self._reply(parsed)
            if end is not None:
                break
        counts = self.session.counts
        self.meta |= {
            "seed": self.sampling.seed,
            "temperature": self.sampling.temperature,
            "limit": end.limit,
            "tokens": {"context": len(self.session.context), **dataclasses.asdict(counts)},
            "seconds": time.perf_counter() - began,
        }
        trajectory = Trajectory(
            task=self.task,
            turns=tuple(self.turns),
            outcome=end.outcome,
            answer=end.answer,
            model=_name(self.engine.model),
            prompt_pack=self.engine.pack.name,
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

    def _reply(self, parsed: ParsedTurn) -> tuple[bool, _End | None]:
        """Answers a call. Returns whether the next turn is forced, and the end where there is no next turn."""
        began = time.perf_counter()
        limit = self._limit()
        last = self.rounds >= self.policy.max_turns
        if limit or (last and not self.policy.force_answer):
            return self._stop(limit or "rounds", began)
        reply, clip, end = self._carry_out(parsed)
        if end is not None:
            return False, end
        if last:
            text = f"{reply.text}\n{self.engine.pack.forced(self.task)}"
            reply = dataclasses.replace(reply, kind="forced", text=text)
        if not self._add(reply, clip, began):
            return self._stop("context", began)
        if last:
            self.meta["forced_by"] = "rounds"
        return last, None

    def _limit(self) -> str | None:
        """The limit that leaves no room for another clip."""
        if len(self.clips) >= self.policy.max_videos:
            return "videos"
        return "context" if len(self.session.context) >= self.limit else None

    def _stop(self, limit: str, began: float) -> tuple[bool, _End | None]:
        """A limit was hit while calling: the final answer is asked for, or the rollout has exceeded."""
        forced = Turn("forced", self.engine.pack.forced(self.task))
        if not self.policy.force_answer or not self._add(forced, None, began, reserve=False):
            return False, _End("exceeded", limit=limit)
        self.meta["forced_by"] = limit
        return True, None

    # Turns.

    def _open(self) -> None:
        """System turn and question with the overview, prefilled or taken from an earlier question."""
        began = time.perf_counter()
        engine, task = self.engine, self.task
        overview = engine.overview(self.video)
        shown = overview.observation(0)
        read = time.perf_counter() - began
        system = Turn("system", engine.pack.system(task))
        question = Turn(
            "question", engine.pack.question(task, overview=shown), observations=(shown,)
        )
        encoded = encode([system, question], engine.tokenizer, **self._encoding())
        header = assistant_header(engine.tokenizer)
        if len(encoded) + len(header) >= self.limit:
            raise ContextError(
                f"the question takes {len(encoded)} tokens, {shown.tokens} of them the overview, and the context of "
                f"{engine.max_length(self.policy)} must keep {self.policy.reserved(engine.max_length(self.policy))} free; "
                "shorten the question, lower CropPolicy.overview_quota or raise max_length"
            )
        self._emit(events.TurnEnd(0, system))
        self._emit(events.Observation(1, shown, overview, read))
        session = self.session
        # Up to the token that closes the overview nothing depends on the question.
        prefix = int((encoded.roles == Role.OVERVIEW).nonzero()[0][-1]) + 2
        key = prefix_key([encoded.ids[:prefix], encoded.positions[:, :prefix], overview.frames])
        kept = engine.prefixes.get(key)
        if kept is None:
            session.show(overview)
        session.context.append(encoded)
        if kept is not None:
            session.resume(kept)
        else:
            session.flush(prefix)
            if engine.prefixes.wanted:
                engine.prefixes.put(key, session.snapshot())
            else:
                session.grow()
        session.context.append_ids(header)
        session.flush()
        session.wait()
        self.clips.append(overview)
        question = dataclasses.replace(question, seconds=time.perf_counter() - began)
        self.turns += [system, question]
        self._emit(events.TurnEnd(1, question))

    def _assistant_turn(self, forced: bool) -> tuple[Turn, ParsedTurn]:
        began = time.perf_counter()
        engine, number = self.engine, len(self.turns)
        self._emit(events.TurnStart(number, forced))
        room = engine.max_length(self.policy) - len(self.session.context)
        # Where no call is possible any more only an answer can end the turn early.
        closed = () if self.tools and not forced else (CALL_END,)
        tags = [tag for tag in self.policy.stop if tag not in closed]
        watch = StopWatch(
            engine.tokenizer,
            tags=tags,
            ends=engine.ends,
            limit=min(self.policy.max_new_tokens, room),
        )
        sampled = engine.sample_turn(
            self.session,
            watch,
            self.sampling,
            lambda token, text: self._emit(events.Token(number, token, text)),
        )
        ids = sampled.ids[:-1] if sampled.stop == "end" else sampled.ids
        text = decode(ids, engine.tokenizer)
        parsed = parse_turn(text, self.video.duration)
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

    def _carry_out(self, parsed: ParsedTurn) -> tuple[Turn | None, Clip | None, _End | None]:
        """The observation or error turn that a call deserves, with the clip it shows."""
        pack = self.engine.pack
        if parsed.call is None:
            return self._error(parsed.error or "the call could not be read."), None, None
        try:
            clip = self._crop(parsed.call)
        except VideoError as error:
            if self.policy.mode == "rl" and error.kind not in _CALL_ERRORS:
                self.meta["video_error"] = {"kind": error.kind, "message": str(error)}
                return None, None, _End("void")
            return self._error(str(error)), None, None
        shown = clip.observation(len(self.clips), parsed.call.strategy)
        text = pack.observation(self.rounds, shown)
        return Turn("observation", text, observations=(shown,)), clip, None

    def _crop(self, call: Call) -> Clip:
        return self.video.crop(call.start, call.end, call.strategy)

    def _error(self, message: str) -> Turn:
        return Turn("error", self.engine.pack.error(self.rounds, message), error=message)

    def _add(self, turn: Turn, clip: Clip | None, began: float, *, reserve: bool = True) -> bool:
        """Appends a user turn and what opens the next assistant turn; False, with nothing changed, if it does not fit."""
        engine, session = self.engine, self.session
        context = session.context
        number = len(self.turns)
        tail = assistant_tail(self.turns[-1].ids or (), engine.tokenizer)
        header = assistant_header(engine.tokenizer)
        state = dataclasses.replace(
            context.state,
            length=len(context) + len(tail),
            position=context.state.position + len(tail),
        )
        encoded = encode_turn(turn, engine.tokenizer, after=state, **self._encoding())
        total = encoded.state.length + len(header)
        if total >= (self.limit if reserve else engine.max_length(self.policy)):
            return False
        if clip is not None:
            self._emit(
                events.Observation(number, turn.observations[0], clip, time.perf_counter() - began)
            )
            session.show(clip)
            self.clips.append(clip)
        context.append_ids(tail)
        context.append(encoded)
        context.append_ids(header)
        session.flush()
        session.wait()
        turn = dataclasses.replace(turn, seconds=time.perf_counter() - began)
        self.turns.append(turn)
        self._emit(events.TurnEnd(number, turn))
        return True

    def _encoding(self) -> dict[str, Any]:
        config = self.engine.model.config
        return {
            "mrope_time": config.mrope_time,
            "spatial_merge_size": config.vision.spatial_merge_size,
        }

    def _emit(self, event: events.Event) -> None:
        if self.on_event is not None:
            self.on_event(event)


def _name(model: Qwen2_5_VL) -> str | None:
    source = getattr(model, "source", None)
    return None if source is None else str(source)
