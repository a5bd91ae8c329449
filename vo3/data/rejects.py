"""Rows that cannot be used: counted, named, written down, and no reason to stop until their share passes a limit."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from etils import epath

from vo3 import json_line

# What a row broke.
#   json     it is not readable as a JSON object (JSONL) or as a row
#   fields   a field is missing or of another type
#   roles    turns out of order, an unknown role, no answer at the end
#   marks    marks of media do not agree with the videos
#   videos   an entry of `videos` is none of the known forms
#   window   a window is not two rising times, or reaches outside of the video
#   sample   an unknown way of sampling
#   source   an unknown data source (RL)
#   file     a video is missing or cannot be read
#   length   longer than a row of tokens may be
Rule = Literal[
    "json",
    "fields",
    "roles",
    "marks",
    "videos",
    "window",
    "sample",
    "source",
    "file",
    "length",
]
RULES: tuple[Rule, ...] = get_args(Rule)


class RowError(ValueError):
    """A row that breaks a rule.

    Attributes:
      id: the row's own id, or "row N" where it has none.
      rule: one of `RULES`; decide on this, never on the text.
      reason: what is wrong and where in the row.
    """

    def __init__(self, id: str, rule: Rule, reason: str):
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}; one of {RULES}")
        super().__init__(id, rule, reason)  # all three in args: the error survives pickling
        self.id, self.rule, self.reason = id, rule, reason

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


class RejectLimitError(ValueError):
    """Too large a share of the rows was rejected."""


@dataclasses.dataclass(frozen=True)
class Reject:
    """One row that was left out.

    Attributes:
      id: the row's own id, or "row N".
      index: its number in the source, from 0.
      rule: what it broke, see `RULES`.
      reason: in words.
    """

    id: str
    index: int
    rule: Rule
    reason: str


class Rejects:
    """The rows of a source that were left out, in order of their numbers.

    Attributes:
      total: rows of the source, good and bad.
    """

    def __init__(self, total: int = 0, items: Iterable[Reject] = ()):
        self.total = total
        self._items = {item.index: item for item in items}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Reject]:
        return iter(self._items[index] for index in sorted(self._items))

    def add(self, index: int, error: RowError) -> None:
        """Notes a row; the first reason of a row stands."""
        self._items.setdefault(index, Reject(error.id, index, error.rule, error.reason))

    @property
    def share(self) -> float:
        """Rejected rows over all rows, in [0, 1]."""
        return len(self) / self.total if self.total else 0.0

    def by_rule(self) -> dict[Rule, int]:
        """Rejected rows by what they broke, the most frequent first."""
        return dict(collections.Counter(item.rule for item in self).most_common())

    def metrics(self) -> dict[str, float]:
        """Figures for the log: `rejects/share`, `rejects/rows` and `rejects/<rule>`."""
        return {
            "rejects/share": self.share,
            "rejects/rows": float(len(self)),
            **{f"rejects/{rule}": float(count) for rule, count in self.by_rule().items()},
        }

    def save(self, path: epath.PathLike) -> None:
        """Writes one JSON object a line: id, row number, rule, reason. The file is there even when it is empty."""
        path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{json_line.dumps(dataclasses.asdict(r))}\n" for r in self))

    def check(self, limit: float, *, where: str = "") -> None:
        """Stops the run when the share is above `limit`, in [0, 1].

        Args:
          limit: the largest share that a run goes on with.
          where: the rejects file, for the message.

        Raises:
          RejectLimitError: it is above; the message counts by rule and quotes the first rows.
        """
        if not 0 <= limit <= 1:
            raise ValueError(f"the limit of rejected rows is a share in [0, 1], not {limit!r}")
        if self.share <= limit:
            return
        counts = ", ".join(f"{rule} {count}" for rule, count in self.by_rule().items())
        first = "; ".join(f"{r.id}: {r.reason}" for r in list(self)[:3])
        raise RejectLimitError(
            f"{len(self)} of {self.total} rows ({100 * self.share:.2f} %) cannot be used, more than the limit of "
            f"{100 * limit:g} % ({counts}). The first: {first}. "
            f"{f'All of them are in {where}. ' if where else ''}Correct the rows, or raise data.reject_limit"
        )
