"""Prompt packs: the wording of every turn that is not the model's, as data in one YAML file.

Templates hold fields written `{name}`; any other brace stands for itself, so that JSON examples need no escapes.
Texts come back with a `<video>` mark where a video stands (see `vo3.trajectory`).

Packs in this folder are found by name; any other by path.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import yaml
from etils import epath

from vo3.trajectory import IMAGE_MARK, VIDEO_MARK, Observation, Task

# What kind of task the system prompt is for.
#   tool: multiple choice, may look again       open: the same, answered in words
#   grounding: find a moment, one turn          single: any question, one turn, no tool
Mode = Literal["tool", "open", "grounding", "single"]

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
_MARKS = re.compile("|".join(map(re.escape, (VIDEO_MARK, IMAGE_MARK))))
# Fields that tell of an observation.
_SHOWN = "observation start end duration fps frames height width tokens strategy"


@dataclasses.dataclass(frozen=True)
class _Rule:
    """Fields that a template may use, and those it must."""

    allowed: frozenset[str]
    required: frozenset[str] = frozenset()


def _rule(required: str = "", optional: str = "") -> _Rule:
    needed = frozenset(required.split())
    return _Rule(needed | frozenset(optional.split()), needed)


# Every template of a pack, by its key. `path` is the video's file name, for tools that want one; `frame`, which may be left out, stands
# before each picture of a video that is shown frame by frame.
RULES: dict[str, _Rule] = {
    **{f"system.{mode}": _rule() for mode in get_args(Mode)},
    "question.choice": _rule("media question options", "overview path"),
    "question.open": _rule("media question", "overview path"),
    "question.grounding": _rule("media question", "overview path"),
    "overview": _rule("", _SHOWN),
    "option": _rule("letter text"),
    "observation": _rule("media", f"action {_SHOWN}"),
    "error": _rule("message", "action"),
    "forced": _rule("", "question options"),
    "frame": _rule("", "frame time"),
}
OPTIONAL = {"frame"}


@dataclasses.dataclass(frozen=True)
class PromptPack:
    """The wording of a conversation.

    Attributes:
      name: the pack's name.
      templates: template by key, see `RULES`.
      seconds_decimals, fps_decimals: digits after the point when times and rates are written.
      source: where it was read from.
    """

    name: str
    templates: Mapping[str, str]
    seconds_decimals: int = 1
    fps_decimals: int = 2
    source: str = ""

    def __post_init__(self) -> None:
        where = self.source or self.name
        if unknown := sorted(set(self.templates) - set(RULES)):
            raise ValueError(f"{where}: unknown keys {unknown}; a pack has {sorted(RULES)}")
        for key, rule in RULES.items():
            template = self.templates.get(key)
            if template is None and key in OPTIONAL:
                continue
            if not isinstance(template, str):
                raise ValueError(f"{where}: the template {key!r} is missing or is no text")
            if _MARKS.search(template):
                raise ValueError(
                    f"{where}: {key!r} holds a literal media mark; write {{media}} in its place"
                )
            fields = _FIELD.findall(template)
            if wrong := sorted(set(fields) - rule.allowed):
                raise ValueError(
                    f"{where}: {key!r} uses the unknown fields {wrong}; it may use {sorted(rule.allowed)}"
                )
            if lost := sorted(rule.required - set(fields)):
                raise ValueError(f"{where}: {key!r} must use the fields {lost}")
            if fields.count("media") > 1:
                raise ValueError(
                    f"{where}: {key!r} uses {{media}} more than once; a video is shown once"
                )
        for field in ("seconds_decimals", "fps_decimals"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 9:
                raise ValueError(
                    f"{where}: {field} is {value!r}; it must be an integer from 0 to 9"
                )

    @classmethod
    def load(cls, name_or_path: str | epath.PathLike = "default") -> PromptPack:
        """Reads a pack, by name from this package or by path (gs:// too).

        Raises:
          ValueError: no such pack, or one that does not fit `RULES`; the message names the file and the key.
        """
        packs = epath.Path(__file__).parent / "packs"
        path = epath.Path(name_or_path)
        if "/" not in str(name_or_path) and path.suffix not in (".yaml", ".yml"):
            path = packs / f"{name_or_path}.yaml"
        if not path.exists():
            names = sorted(p.stem for p in packs.glob("*.yaml"))
            raise ValueError(f"no prompt pack at {path}; give a path, or one of {names}")
        try:
            data = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not valid YAML: {error}") from error
        return cls.from_dict(data, source=str(path))

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "") -> PromptPack:
        """A pack from the contents of its YAML file.

        Raises:
          ValueError: see `load`.
        """
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            raise ValueError(f"{source}: a prompt pack is a mapping with a name")
        templates: dict[str, Any] = {}
        for key, value in data.items():
            if key in ("system", "question") and isinstance(value, dict):
                templates |= {f"{key}.{part}": text for part, text in value.items()}
            elif key not in ("name", "decimals"):
                templates[key] = value
        decimals = data.get("decimals") or {}
        if not isinstance(decimals, dict) or not set(decimals) <= {"seconds", "fps"}:
            raise ValueError(f"{source}: 'decimals' is a mapping with the keys 'seconds' and 'fps'")
        digits = {f"{key}_decimals": value for key, value in decimals.items()}
        return cls(name=data["name"], templates=templates, source=source, **digits)

    def to_dict(self) -> dict[str, Any]:
        """Inverse of `from_dict`."""
        data: dict[str, Any] = {
            "name": self.name,
            "decimals": {"seconds": self.seconds_decimals, "fps": self.fps_decimals},
        }
        for key, text in self.templates.items():
            group, _, part = key.partition(".")
            if part:
                data.setdefault(group, {})[part] = text
            else:
                data[key] = text
        return data

    def system(self, task: Task, *, mode: Mode | None = None) -> str:
        """The system prompt; `mode` is told from the task unless given."""
        mode = mode or task_mode(task)
        if mode not in get_args(Mode):
            raise ValueError(f"unknown mode {mode!r}; one of {get_args(Mode)}")
        return self.templates[f"system.{mode}"]

    def question(
        self,
        task: Task,
        *,
        mode: Mode | None = None,
        overview: Observation | None = None,
        images: int = 0,
    ) -> str:
        """The question's text, with the mark of observation 0.

        Args:
          task: the question and its options.
          mode: as for `system`.
          overview: what is shown; when given, its sentence stands in the text.
          images: images that follow the video.
        """
        mode = mode or task_mode(task)
        kind = "grounding" if mode == "grounding" else "choice" if task.options else "open"
        return self._fill(
            f"question.{kind}",
            media=VIDEO_MARK + IMAGE_MARK * images,
            overview=self._fill("overview", **self._numbers(overview)) if overview else "",
            question=plain(task.question),
            options=self.options(task),
            path=_file_name(task.video),
        )

    def labels(self, shown: Observation) -> tuple[str, ...]:
        """The words before each frame of what is shown frame by frame; none where the pack or the observation has none."""
        if shown.media != "frames" or "frame" not in self.templates:
            return ()
        return tuple(
            self._fill("frame", frame=str(number), time=f"{time:.{self.seconds_decimals}f}")
            for number, time in enumerate(shown.times)
        )

    def options(self, task: Task) -> str:
        """The options, one a line; empty for an open question."""
        return "\n".join(
            self._fill("option", letter=plain(letter), text=plain(text))
            for letter, text in (task.options or {}).items()
        )

    def observation(self, action: int, observation: Observation) -> str:
        """The text of a clip's turn: the `action`-th call (from 1) was carried out and this is what it showed."""
        return self._fill(
            "observation",
            media=VIDEO_MARK,
            action=str(action),
            **self._numbers(observation),
        )

    def error(self, action: int, message: str) -> str:
        """The text of the turn that says why the `action`-th call failed."""
        return self._fill("error", action=str(action), message=plain(message))

    def forced(self, task: Task) -> str:
        """The text that asks for the final answer. It has no video: put it after an observation's text, or alone."""
        return self._fill("forced", question=plain(task.question), options=self.options(task))

    def _numbers(self, shown: Observation) -> dict[str, str]:
        """The fields of an observation as text."""
        return {
            "observation": str(shown.index),
            "start": f"{shown.start:.{self.seconds_decimals}f}",
            "end": f"{shown.end:.{self.seconds_decimals}f}",
            "duration": f"{shown.end - shown.start:.{self.seconds_decimals}f}",
            "fps": f"{shown.fps:.{self.fps_decimals}f}",
            "frames": str(len(shown.times)),
            "height": str(shown.height),
            "width": str(shown.width),
            "tokens": str(shown.tokens),
            "strategy": shown.strategy or "",
        }

    def _fill(self, key: str, **fields: str) -> str:
        # one pass, so that a value that looks like a field stays as it is
        return _FIELD.sub(lambda match: fields[match[1]], self.templates[key])


def task_mode(task: Task) -> Mode:
    """The mode that a task asks for: grounding by its data source, else by whether it has options."""
    if task.target is not None and task.target.data_source == "temporal_grounding":
        return "grounding"
    return "tool" if task.options else "open"


def _file_name(video: str | tuple[str, ...]) -> str:
    """The last part of a path or URL, as words; folders are nobody's business."""
    return plain(posixpath.basename(video)) if isinstance(video, str) else "video"


def plain(text: str) -> str:
    """Text of people and models without media marks: `<video>` in a question is a word, and shows no video."""
    return _MARKS.sub(lambda match: f"< {match[0][1:-1]} >", text)
