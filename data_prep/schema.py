"""What flows through the synthesis: triplets, what each stage adds to them, and the record that carries both.

Every struct is plain data and round-trips through JSON. Each stage's output has a schema version of its own, which is part
of the record's key: when a stage changes what it writes, its rows are made again, and others are not.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from vo3.trajectory import Clue

TRIPLET_SCHEMA = 1

# What is asked: a question with an answer, or "when does this happen", answered with an interval.
Kind = Literal["qa", "grounding"]
Detail = Literal["low", "medium", "high"]
DETAILS: tuple[Detail, ...] = ("low", "medium", "high")

# Where a row lands. The names are the rewards' data sources.
SINGLE_TOOL = "clue_single_w_tool"
MULTI_TOOL = "clue_multi_w_tool"
SINGLE_PLAIN = "clue_single_wo_tool"
MULTI_PLAIN = "clue_multi_wo_tool"
GROUNDING = "temporal_grounding"
QUADRANTS = (SINGLE_TOOL, MULTI_TOOL, SINGLE_PLAIN, MULTI_PLAIN, GROUNDING)


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """A video's nominal grid: frames per second, number of frames, pixels as displayed."""

    fps: float
    frames: int
    height: int
    width: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.fps


@dataclasses.dataclass(frozen=True)
class Caption:
    """What happens in [start, end] seconds of a video, in words."""

    start: float
    end: float
    text: str


@dataclasses.dataclass(frozen=True)
class Material:
    """A video without a question: stage 0 makes triplets of it.

    Attributes:
      id: unique in its source.
      video: path below the video root.
      captions: dense captions, when the source has them; else the model is asked for them.
      source: name of the data set.
    """

    id: str
    video: str
    captions: tuple[Caption, ...] = ()
    source: str = ""
    info: VideoInfo | None = None


@dataclasses.dataclass(frozen=True)
class Origin:
    """A reply that stage 0 made a triplet of: the prompt's name, the reply's key in the reply cache, the model, the prompt's hash."""

    stage: str
    key: str
    model: str
    prompt: str


@dataclasses.dataclass(frozen=True)
class Triplet:
    """A question on a video with its known answer.

    Attributes:
      id: unique in its source.
      video: path below the video root.
      question: the question alone; for grounding, the description of what happens.
      answer: a letter of `options`, or words; empty for grounding, whose answer is `clues[0]`.
      options: letter -> text, or None for an open question.
      kind: see `Kind`.
      clues: intervals of evidence that the source itself knows, if any.
      source: name of the data set.
      info: the video's grid when the source knows it; else the file is probed.
      frame_fps: the rate of extraction of a folder of frames.
      origin: the replies that it was made of, when stage 0 made it.
    """

    id: str
    video: str
    question: str
    answer: str
    options: dict[str, str] | None = None
    kind: Kind = "qa"
    clues: tuple[Clue, ...] = ()
    source: str = ""
    info: VideoInfo | None = None
    frame_fps: float | None = None
    origin: tuple[Origin, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable, with its schema version."""
        return {"schema_version": TRIPLET_SCHEMA, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Triplet:
        """Inverse of `to_json`; people's own rows may leave the schema version out.

        Raises:
          ValueError: another schema version, or fields that do not fit.
        """
        if not isinstance(data, dict):
            raise ValueError(f"not a triplet: {type(data).__name__}")
        if (version := data.get("schema_version", TRIPLET_SCHEMA)) != TRIPLET_SCHEMA:
            raise ValueError(f"triplet has schema version {version!r}, this reads {TRIPLET_SCHEMA}")
        fields = {k: v for k, v in data.items() if k != "schema_version"}
        try:
            fields["clues"] = tuple(Clue(**c) for c in fields.get("clues", ()))
            if fields.get("info") is not None:
                fields["info"] = VideoInfo(**fields["info"])
            fields["origin"] = tuple(Origin(**o) for o in fields.get("origin", ()))
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a triplet: {error}") from error


# The name of stage 0, which turns videos into triplets; the other stages name themselves.
MATERIAL = "material"


@dataclasses.dataclass(frozen=True)
class Localised:
    """Stage 1: where the evidence lies.

    Attributes:
      clues: merged intervals in order, in seconds.
      detail: how closely the evidence must be looked at.
      found: intervals as the model gave them, before merging.
    """

    schema: ClassVar[int] = 1
    clues: tuple[Clue, ...]
    detail: Detail
    found: int


@dataclasses.dataclass(frozen=True)
class Verified:
    """Stage 2: whether the evidence decides the answer.

    Attributes:
      clip: the answers given from the clue clips alone, one a vote.
      overview: the answers given from the overview alone.
      clip_right, overview_right: how many of them are the known answer.
      tool: whether looking again is needed: the overview alone does not do.
    """

    schema: ClassVar[int] = 1
    clip: tuple[str, ...]
    overview: tuple[str, ...]
    clip_right: int
    overview_right: int
    tool: bool


@dataclasses.dataclass(frozen=True)
class Step:
    """One assistant turn: what is thought, then a window to look at or the answer."""

    think: str
    window: tuple[float, float] | None = None
    strategy: str | None = None
    answer: str | None = None


@dataclasses.dataclass(frozen=True)
class Generated:
    """Stage 3: the turns."""

    schema: ClassVar[int] = 1
    steps: tuple[Step, ...]


@dataclasses.dataclass(frozen=True)
class Violation:
    """Something that a consistency rule forbids: which rule, where, and the words that broke it."""

    rule: str
    step: int
    detail: str


@dataclasses.dataclass(frozen=True)
class Checked:
    """Stage 4: rules first, then the judge (which is not asked about what a rule rejected)."""

    schema: ClassVar[int] = 1
    violations: tuple[Violation, ...]
    judged: bool
    analysis: str = ""


@dataclasses.dataclass(frozen=True)
class CallNote:
    """One model reply that a record rests on: enough to find it again and to pay for it.

    Attributes:
      stage: the stage that asked.
      key: the reply's key in the reply cache.
      model: the model that answered.
      prompt: hash of the prompt file.
      prompt_tokens, reply_tokens: as the endpoint counted them.
      cost: in the currency of the configured prices.
      repaired: what was mended in the reply, in words; empty when it was sound.
    """

    stage: str
    key: str
    model: str
    prompt: str
    prompt_tokens: int
    reply_tokens: int
    cost: float
    repaired: str = ""


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Why a row ends: the stage, a reason that can be counted, and the particulars."""

    stage: str
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """A triplet on its way through the stages; frozen, each stage returns the next one."""

    key: str
    triplet: Triplet
    info: VideoInfo | None = None
    localised: Localised | None = None
    verified: Verified | None = None
    generated: Generated | None = None
    checked: Checked | None = None
    calls: tuple[CallNote, ...] = ()
    rejection: Rejection | None = None

    @property
    def quadrant(self) -> str | None:
        """Where the row lands, as far as the stages have decided; None before stage 2."""
        if self.triplet.kind == "grounding":
            return GROUNDING
        if self.localised is None or self.verified is None:
            return None
        many = len(self.localised.clues) > 1
        if self.verified.tool:
            return MULTI_TOOL if many else SINGLE_TOOL
        return MULTI_PLAIN if many else SINGLE_PLAIN

    @property
    def cost(self) -> float:
        """Of every call, in the currency of the prices."""
        return sum(call.cost for call in self.calls)

    def rejected(self, stage: str, reason: str, detail: str = "") -> Record:
        """This record, ended."""
        return dataclasses.replace(self, rejection=Rejection(stage, reason, detail[:400]))

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable, with every stage's schema version."""
        data = dataclasses.asdict(self)
        data["triplet"] = self.triplet.to_json()
        data["quadrant"] = self.quadrant
        for name, output in OUTPUTS.items():
            if data[name] is not None:
                data[name] = {"schema_version": output.schema, **data[name]}
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record:
        """Inverse of `to_json`.

        Raises:
          ValueError: a stage's output of another schema version, or fields that do not fit.
        """
        fields = {k: v for k, v in data.items() if k != "quadrant"}
        try:
            fields["triplet"] = Triplet.from_json(fields["triplet"])
            fields["info"] = VideoInfo(**fields["info"]) if fields["info"] else None
            fields["calls"] = tuple(CallNote(**c) for c in fields["calls"])
            if fields["rejection"]:
                fields["rejection"] = Rejection(**fields["rejection"])
            for name, output in OUTPUTS.items():
                if fields[name] is not None:
                    fields[name] = _output(output, name, dict(fields[name]))
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record: {type(error).__name__}: {error}") from error


OUTPUTS: dict[str, Any] = {
    "localised": Localised,
    "verified": Verified,
    "generated": Generated,
    "checked": Checked,
}


def _output(output: Any, name: str, data: dict[str, Any]) -> Any:
    version = data.pop("schema_version", None)
    if version != output.schema:
        raise ValueError(f"{name} has schema version {version!r}, this reads {output.schema}")
    if output is Localised:
        data["clues"] = tuple(Clue(**c) for c in data["clues"])
    if output is Generated:
        data["steps"] = tuple(
            Step(**{**s, "window": tuple(s["window"]) if s["window"] else None})
            for s in data["steps"]
        )
    if output is Checked:
        data["violations"] = tuple(Violation(**v) for v in data["violations"])
    return output(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
