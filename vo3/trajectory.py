"""The one conversation type: synthesis writes it, SFT reads it, the rollout engine produces it, rewards score it.

A `Trajectory` is a `Task` and a list of `Turn`s. It is plain data (no pixels, no arrays), frozen, and round-trips
through JSON with a schema version, so that a file written by one part is read by every other.

Text convention: `Turn.text` is what stands between the ChatML header and `<|im_end|>`. A video is marked by `VIDEO_MARK`
and an image by `IMAGE_MARK` in that text; `Turn.observations` lists, in order, what stands at the marks. `vo3.chat.encode` expands the marks into pad
tokens.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

from vo3 import json_fields, json_line

SCHEMA_VERSION = 1
VIDEO_MARK = "<video>"
IMAGE_MARK = "<image>"

Strategy = Literal["coarse", "medium", "fine"]
STRATEGIES: tuple[Strategy, ...] = ("coarse", "medium", "fine")

# What a turn is. The role follows from it: `system`; `question`, `observation`, `error`, `forced` are the user's;
# `call`, `answer`, `text` are the assistant's (`text`: a reply with neither a call nor an answer).
TurnKind = Literal["system", "question", "observation", "error", "forced", "call", "answer", "text"]
_ROLE: dict[str, str] = {
    "system": "system",
    **dict.fromkeys(("question", "observation", "error", "forced"), "user"),
    **dict.fromkeys(("call", "answer", "text"), "assistant"),
}

# How a trajectory ended, as Video-o3 (arXiv 2601.23224) tells the cases apart.
#   answered  the last turn holds <answer>...</answer>
#   text      the last turn has neither tag; its raw text is what is scored (evaluation)
#   refused   a forced last turn without an answer
#   exceeded  a round, video or context limit was hit while still calling
#   void      cut by length, a lost video, or a last turn without an answer (RL)
Outcome = Literal["answered", "text", "refused", "exceeded", "void"]


@dataclasses.dataclass(frozen=True)
class Clue:
    """A true interval of evidence, in seconds of the whole video."""

    start: float
    end: float
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a task's answer is scored against. `data_source` selects the reward (and the quadrant)."""

    answer: str
    clues: tuple[Clue, ...] = ()
    data_source: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """A question on a video.

    Attributes:
      id: unique in its data set.
      video: a path or URL; a folder of frames when `frame_fps` is set; a tuple of paths is a list of frame files.
      question: the question alone, without options.
      options: letter -> text, in order, or None for an open question.
      target: the truth, when known.
      frame_fps: the rate at which a frame folder was extracted.
    """

    id: str
    video: str | tuple[str, ...]
    question: str
    options: dict[str, str] | None = None
    target: Target | None = None
    frame_fps: float | None = None


@dataclasses.dataclass(frozen=True)
class Call:
    """A parsed call: a window in seconds of the whole video, and how closely to look at it.

    Attributes:
      start, end: seconds of the whole video.
      strategy: Video-o3's way to say how closely; None in a dialect that has none.
      fps: frames per second, in a dialect that asks for a rate; None: the crop policy's.
    """

    start: float
    end: float
    strategy: Strategy | None
    fps: float | None = None

    @property
    def how(self) -> str:
        """How closely, in words; empty where the call does not say."""
        return self.strategy or ("" if self.fps is None else f"{self.fps:g} fps")


@dataclasses.dataclass(frozen=True)
class Observation:
    """What the model was shown, without the pixels. Observation 0 is the overview.

    Attributes:
      index: 0 for the overview, then 1, 2, ... in order of appearance.
      start, end: seconds of the whole video.
      fps: frames per second of the sample shown.
      times: presentation time of every frame shown, seconds.
      indices: frame numbers on the nominal grid.
      height, width: pixels of the frames shown.
      grid: (t, h, w) in patches of 14 pixels (two frames share one t).
      tokens: tokens in the context, t * (h / 2) * (w / 2).
      strategy: the call's strategy; None for the overview and for images.
      media: "video"; "frames": a video shown frame by frame, each a picture of its own; "image": a picture that is no part
        of the video.
      labels: of "frames": the text before each.
    """

    index: int
    start: float
    end: float
    fps: float
    times: tuple[float, ...]
    indices: tuple[int, ...]
    height: int
    width: int
    grid: tuple[int, int, int]
    tokens: int
    strategy: Strategy | None = None
    media: Literal["video", "frames", "image"] = "video"
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Turn:
    """One ChatML turn.

    Attributes:
      kind: see `TurnKind`.
      text: the content; marks stand for videos and images.
      observations: what stands at the marks, in order.
      call: the parsed call of a `call` turn.
      answer: content of the last `<answer>` of an `answer` turn, stripped.
      error: the reason shown in an `error` turn.
      ids: the token ids as sampled (never decoded and tokenised again); None when the turn was not sampled.
      logprobs: log-probabilities of `ids` under the sampler, when asked for.
      stop: how sampling ended: a stop tag, the end token, or the length limit.
      seconds: wall time of producing the turn.
    """

    kind: TurnKind
    text: str
    observations: tuple[Observation, ...] = ()
    call: Call | None = None
    answer: str | None = None
    error: str | None = None
    ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    stop: Literal["tag", "end", "length"] | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in _ROLE:
            raise ValueError(f"unknown turn kind {self.kind!r}; one of {sorted(_ROLE)}")
        marks = self.text.count(VIDEO_MARK) + self.text.count(IMAGE_MARK)
        # An assistant may write anything, the marks' text included; only shown turns carry media.
        if self.role != "assistant" and marks != len(self.observations):
            raise ValueError(
                f"a {self.kind} turn has {marks} media marks but {len(self.observations)} observations"
            )

    @property
    def role(self) -> str:
        """`system`, `user` or `assistant`."""
        return _ROLE[self.kind]


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A task and the turns on it.

    Attributes:
      task: the question.
      turns: system and question first, then call / observation / error turns, an answer last.
      outcome: see `Outcome`.
      answer: the answer given (raw text when the outcome is `text`), or None.
      model: name or path of the model that produced it, if any.
      prompt_pack: name of the prompt pack.
      meta: JSON-serialisable extras (seed, dialect, provenance, timings).
    """

    task: Task
    turns: tuple[Turn, ...]
    outcome: Outcome
    answer: str | None = None
    model: str | None = None
    prompt_pack: str | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def observations(self) -> tuple[Observation, ...]:
        """Every observation in order of appearance."""
        return tuple(o for turn in self.turns for o in turn.observations)

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every parsed call in order."""
        return tuple(turn.call for turn in self.turns if turn.call is not None)

    def to_json(self) -> dict[str, Any]:
        """The trajectory as JSON-serialisable dicts and lists, with `schema_version`."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    def dumps(self) -> str:
        """One line of JSON, which UTF-8 can hold whatever the texts are."""
        return json_line.dumps(self.to_json())

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trajectory:
        """Inverse of `to_json`.

        Raises:
          ValueError: another schema version, or fields that do not fit.
        """
        if not isinstance(data, dict):
            raise ValueError(f"not a trajectory: a JSON {type(data).__name__}, not an object")
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"trajectory has schema version {version!r}, this reads {SCHEMA_VERSION}"
            )
        try:
            trajectory = _trajectory(data)
            json_fields.check(trajectory)
            return trajectory
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a trajectory: {type(error).__name__}: {error}") from error

    @classmethod
    def loads(cls, line: str) -> Trajectory:
        """Inverse of `dumps`."""
        return cls.from_json(json.loads(line))


def _trajectory(data: dict[str, Any]) -> Trajectory:
    task = dict(data["task"])
    if task.get("target") is not None:
        target = dict(task["target"])
        target["clues"] = tuple(Clue(**c) for c in target["clues"])
        task["target"] = Target(**target)
    if isinstance(task["video"], list):
        task["video"] = tuple(task["video"])
    rest = {k: v for k, v in data.items() if k not in ("schema_version", "task", "turns")}
    return Trajectory(task=Task(**task), turns=tuple(_turn(t) for t in data["turns"]), **rest)


def _turn(data: dict[str, Any]) -> Turn:
    turn = dict(data)
    turn["observations"] = tuple(_observation(o) for o in turn["observations"])
    turn["call"] = Call(**turn["call"]) if turn["call"] is not None else None
    for name in ("ids", "logprobs"):
        turn[name] = tuple(turn[name]) if turn[name] is not None else None
    return Turn(**turn)


def _observation(data: dict[str, Any]) -> Observation:
    return Observation(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
