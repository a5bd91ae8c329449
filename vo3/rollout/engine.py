"""The rollout engine: think, call, observe, answer, with one key-value cache for the whole conversation.

    system + question with the overview -> prefill -> [ turn -> call -> clip -> prefill ]* -> answer

The agent, evaluation and RL run on this loop. Sampled ids are kept as they are; a shown turn is encoded alone and appended,
which gives the tokens and positions that encoding the whole conversation gives.
"""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from vo3.chat import PromptPack
from vo3.chat.tokens import Tokenizer
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.rollout.buckets import Buckets
from vo3.rollout.kv_cache import PrefixStore, prefix_key
from vo3.rollout.policy import RolloutPolicy
from vo3.rollout.programs import Programs
from vo3.rollout.run import (
    Begin,
    Look,
    OnEvent,
    Prefill,
    Request,
    Rollout,
    Run,
    Sample,
    Video,
    look,
)
from vo3.rollout.sampler import Sampling
from vo3.rollout.session import Session
from vo3.rollout.setting import (
    Opening,
    Setting,
    longest,
    own_dialect,
    own_pack,
    own_tokenizer,
    turn_ends,
)
from vo3.rollout.stops import SampledTurn, StopWatch
from vo3.trajectory import Task
from vo3.video import Clip, VideoError


class Engine:
    """Runs rollouts of one model, one at a time; not for use from several threads at once.

    Attributes:
      model, tokenizer, pack, policy: as given.
      prefixes: prefilled overviews kept for further questions on the same video.
    """

    def __init__(
        self,
        model: Qwen2_5_VL,
        *,
        tokenizer: Tokenizer | None = None,
        pack: PromptPack | str | None = None,
        policy: RolloutPolicy | None = None,
        buckets: Buckets | None = None,
        shared_prefixes: int = 1,
        programs: Programs | None = None,
    ):
        """Prepares the programs; nothing is compiled yet.

        Args:
          model: with its parameters where they shall stay.
          tokenizer: None: the model's own, `model.tokenizer`.
          pack: prompt pack or its name; None: the model's own, else its dialect's.
          policy: default limits, and the dialect; None: evaluation's in the model's dialect.
          buckets: static shapes; capacities are cut at the longest context.
          shared_prefixes: how many prefilled overviews are kept on the device.
          programs: those of another engine of this model, to share what it has compiled.
        """
        self.model = model
        self.tokenizer = own_tokenizer(model, tokenizer)
        self.policy = policy or RolloutPolicy(dialect=own_dialect(model))
        self.pack = own_pack(model, pack, self.policy.dialect)
        self.prefixes = PrefixStore(shared_prefixes)
        self._overview: tuple[weakref.ref, Clip] | None = None
        self._programs = programs or Programs(model)
        self._buckets = buckets or Buckets()

    @property
    def compilations(self) -> int:
        """Programs compiled so far; constant once every bucket in use has been met."""
        return self._programs.compilations

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a turn."""
        return turn_ends(self.model, self.tokenizer)

    @property
    def programs(self) -> Programs:
        """The compiled part."""
        return self._programs

    def max_length(self, policy: RolloutPolicy | None = None) -> int:
        """Tokens of the longest context."""
        return longest(self.model, policy or self.policy)

    def update(self, model: Qwen2_5_VL) -> None:
        """Goes on with the parameters of `model`; shared prefixes, made with the old ones, are dropped."""
        self._programs.update(model)
        self.prefixes.clear()
        self.model = model

    def rollout(
        self,
        task: Task,
        video: Video,
        *,
        policy: RolloutPolicy | None = None,
        sampling: Sampling | None = None,
        on_event: OnEvent | None = None,
    ) -> Rollout:
        """Runs one task to its end.

        Args:
          task: the question.
          video: the task's video, opened.
          policy: limits; None: the engine's.
          sampling: None: greedy.
          on_event: called with every event as it happens.

        Raises:
          VideoError: the overview cannot be read.
          ContextError: the question is longer than the context.
        """
        policy, sampling = policy or self.policy, sampling or Sampling()
        setting = Setting.of(self.model, self.tokenizer, self.pack, policy)
        began = time.perf_counter()
        overview = self.overview(video)
        opening = Opening.of(task, overview, setting, seconds=time.perf_counter() - began)
        session = self.session(policy)
        run = Run(
            setting,
            opening,
            context=session.context,
            counts=session.counts,
            duration=video.duration,
            sampling=sampling,
            on_event=on_event,
        )
        steps = run.steps()
        try:
            request = next(steps)
            while True:
                try:
                    got = self._answer(request, session, run, video)
                except VideoError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(got)
        except StopIteration as end:
            return end.value

    def _answer(self, request: Request, session: Session, run: Run, video: Video) -> Any:
        """What a request of the conversation asks for."""
        match request:
            case Begin():
                self._begin(session, run.opening, run.setting)
            case Prefill(clip, row):
                if clip is not None:
                    session.show(clip, row)
                session.flush()
                session.wait()
            case Sample(watch, on_token):
                return self.sample_turn(session, watch, run.sampling, on_token)
            case Look(call):
                return look(video, call)
        return None

    def _begin(self, session: Session, opening: Opening, setting: Setting) -> None:
        """Prefills the opening, or takes its beginning from an earlier question on the video."""
        encoded, prefix = opening.encoded, opening.shared
        key = prefix_key(
            [encoded.ids[:prefix], encoded.positions[:, :prefix], opening.overview.frames]
        )
        kept = self.prefixes.get(key)
        if kept is None:
            session.show(opening.overview)
        session.context.append(encoded)
        if kept is not None:
            session.resume(kept)
        else:
            session.flush(prefix)
            if self.prefixes.wanted:
                self.prefixes.put(key, session.snapshot())
            else:
                session.grow()
        session.context.append_ids(setting.header)
        session.flush()
        session.wait()

    def warm_up(
        self,
        *,
        policy: RolloutPolicy | None = None,
        sampling: Sampling | None = None,
        capacities: Sequence[int] | None = None,
    ) -> int:
        """Compiles every program that rollouts can ask for; afterwards nothing compiles any more.

        Args:
          policy, sampling: of the rollouts to come.
          capacities: only these cache sizes; None: all.

        Returns:
          Programs compiled so far.
        """
        buckets = self._buckets.limit(self.max_length(policy))
        table = tuple(capacities or buckets.capacity)
        self._programs.warm_up(
            dataclasses.replace(buckets, capacity=table), (sampling or Sampling()).method
        )
        return self.compilations

    def overview(self, video: Video) -> Clip:
        """The video's overview; not read again for further questions on the video asked about last."""
        if self._overview is not None and self._overview[0]() is video:
            return self._overview[1]
        clip = video.overview()
        if self.prefixes.wanted:
            self._overview = (weakref.ref(video), clip)
        return clip

    def session(self, policy: RolloutPolicy) -> Session:
        """An empty conversation under a policy's context limit."""
        return Session(self._programs, self._buckets.limit(self.max_length(policy)))

    def sample_turn(
        self,
        session: Session,
        watch: StopWatch,
        sampling: Sampling,
        on_token: Callable[[int, str], None],
    ) -> SampledTurn:
        """Samples one assistant turn; its own method so that a test can put words into the model's mouth."""
        return session.sample(watch, sampling, on_token)
