"""VideoAgent: asks a model one question on one video."""

from __future__ import annotations

import dataclasses
import difflib
import os
import string
from collections.abc import Mapping, Sequence
from typing import Any

from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.rollout.buckets import Buckets
from vo3.rollout.engine import Engine
from vo3.rollout.errors import OptionError
from vo3.rollout.policy import RolloutPolicy
from vo3.rollout.run import OnEvent
from vo3.rollout.sampler import Sampling
from vo3.rollout.setting import own_crop, own_dialect
from vo3.trajectory import Task, Trajectory
from vo3.video import Clip, CropPolicy, VideoCrop

_POLICY = {field.name for field in dataclasses.fields(RolloutPolicy)} - {"max_turns"}
_SAMPLING = {field.name for field in dataclasses.fields(Sampling)}
_OWN = {"tokenizer", "prompt_pack", "crop_policy", "buckets", "shared_prefixes"}


class VideoAgent:
    """A thin client of the rollout engine.

    Attributes:
      engine: the engine.
      crop_policy: how videos are sampled and resized.
      last_clips: observation index -> the frames shown while answering last; for pictures.
    """

    def __init__(self, model: Qwen2_5_VL, **overrides: Any):
        """Prepares the agent.

        Args:
          model: as `vo3.models.load` gives it; its tokenizer, dialect, crop policy and prompt pack are used.
          **overrides: fields of `RolloutPolicy` (dialect, max_new_tokens, max_length, ...) and of `Sampling` (temperature, top_p, top_k, seed),
            and tokenizer, prompt_pack, crop_policy, buckets, shared_prefixes.

        Raises:
          ValueError: an unknown override; the message names the nearest one. Or a crop policy for tokens of another size than the model's.
        """
        known = _POLICY | _SAMPLING | _OWN
        for name in overrides:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise ValueError(
                    f"unknown override {name!r}; did you mean {near[0]!r}? Known: {sorted(known)}"
                )
        limits = {"dialect": own_dialect(model), **_pick(overrides, _POLICY)}
        size = model.config.vision.token_size
        given: CropPolicy | None = overrides.get("crop_policy")
        self.crop_policy = given.fitting(size) if given else own_crop(model, limits["dialect"])
        self.engine = Engine(
            model,
            tokenizer=overrides.get("tokenizer"),
            pack=overrides.get("prompt_pack"),
            policy=RolloutPolicy(**limits),
            buckets=overrides.get("buckets") or Buckets(),
            shared_prefixes=overrides.get("shared_prefixes", 1),
        )
        self.sampling = Sampling(**_pick(overrides, _SAMPLING))
        self.last_clips: dict[int, Clip] = {}
        self._last: tuple[tuple | None, VideoCrop] | None = None

    def ask(
        self,
        video: Any,
        question: str,
        options: Mapping[str, str] | Sequence[str] | None = None,
        max_turns: int | None = None,
        on_event: OnEvent | None = None,
    ) -> Trajectory:
        """Answers a question on a video.

        Args:
          video: what `VideoCrop` accepts (a path, bytes, a file object); a `VideoCrop` is used as it is.
          question: the question alone.
          options: letter -> text, or the texts in order; None for an open question.
          max_turns: rounds in which the model may look; then it must answer. None: the dialect's, 8 for Video-o3.
          on_event: called with every `vo3.rollout.events` event as it happens.

        Raises:
          VideoError: the video cannot be read.
          ValueError: a `VideoCrop` whose policy is for tokens of another size than the model's.
          OptionError: letters other than A, B, C, ... in order.
          ContextError: the question is longer than the context.
        """
        task = Task(id="ask", video=_label(video), question=question, options=lettered(options))
        opened = video if isinstance(video, VideoCrop) else self._open(video)
        opened.policy.fitting(self.engine.model.config.vision.token_size)
        task = dataclasses.replace(task, frame_fps=opened.frame_fps)
        policy = self.engine.policy
        if max_turns is not None:
            policy = dataclasses.replace(policy, max_turns=max_turns)
        result = self.engine.rollout(
            task, opened, policy=policy, sampling=self.sampling, on_event=on_event
        )
        self.last_clips = dict(enumerate(result.clips))
        return result.trajectory

    def _open(self, video: Any) -> VideoCrop:
        """The video; the same object as last time for an unchanged file, which the engine then does not read again."""
        stamp = _stamp(video)
        if stamp is None or self._last is None or self._last[0] != stamp:
            self._last = (stamp, VideoCrop(video, self.crop_policy))
        return self._last[1]


def lettered(options: Mapping[str, str] | Sequence[str] | None) -> dict[str, str] | None:
    """Options by letter.

    Raises:
      OptionError: they are not lettered A, B, C, ... in order, or are not texts.
    """
    if options is None or len(options) == 0:
        return None
    if isinstance(options, str):
        raise OptionError(
            f"options is one text, {options!r}; pass a list of texts or letter -> text"
        )
    if len(options) > len(string.ascii_uppercase):
        raise OptionError(f"{len(options)} options; there are letters for 26")
    letters = string.ascii_uppercase[: len(options)]
    given = (
        dict(options) if isinstance(options, Mapping) else dict(zip(letters, options, strict=True))
    )
    if list(given) != list(letters):
        raise OptionError(
            f"options are lettered {', '.join(map(str, given))}; letter them {', '.join(letters)} in this order"
        )
    for letter, text in given.items():
        if not isinstance(text, str) or not text.strip():
            raise OptionError(f"option {letter} is {text!r}; it must be a text that is not empty")
    return given


def _pick(overrides: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in overrides.items() if name in names}


def _stamp(video: Any) -> tuple | None:
    """What tells a local file apart from an earlier one at its path; None for anything else."""
    if not isinstance(video, (str, os.PathLike)):
        return None
    try:
        found = os.stat(video)
    except (OSError, ValueError):  # not a local file; opening it says what is wrong
        return None
    return os.fspath(video), found.st_ino, found.st_size, found.st_mtime_ns


def _label(video: Any) -> str | tuple[str, ...]:
    """What a trajectory says of where the video came from."""
    if isinstance(video, VideoCrop):
        return video.listed or video.name
    if isinstance(video, (str, os.PathLike)):
        return os.fspath(video)
    if isinstance(video, (list, tuple)):
        return tuple(map(str, video))
    return f"<{type(video).__name__}>"
