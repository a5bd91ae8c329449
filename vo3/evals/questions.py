"""A benchmark's question: the task that the model gets, and what scoring and tables need to know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from vo3.trajectory import Task

# choice   a letter is asked for          open   words are asked for
# segment  a time window is asked for
Kind = Literal["choice", "open", "segment"]


class AnnotationError(ValueError):
    """An annotation file that is not the published one, or cannot be used; names the file and the remedy."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its place in the tables.

    Attributes:
      task: what is asked; `task.target.answer` is the true letter or text, `task.target.clues` true windows.
      kind: what an answer looks like.
      categories: dimension ("duration") -> the groups of it that the question belongs to ("short",).
      counted: whether it is part of the headline metric; the others are reported apart.
      note: what is wrong with the annotation, if anything.
    """

    task: Task
    kind: Kind
    categories: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    counted: bool = True
    note: str = ""

    @property
    def id(self) -> str:
        """Unique in the benchmark."""
        return self.task.id

    @property
    def letters(self) -> tuple[str, ...]:
        """Letters of the options; empty for other kinds."""
        return tuple(self.task.options or ())
