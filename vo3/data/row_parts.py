"""Parts of a published row as our own: ids, paths, windows, rates, options, targets. A part that breaks a rule raises `RowError`."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vo3.data.rejects import RowError
from vo3.trajectory import Target

_WHOLE = (-1, -1)


def row_id(row: Mapping[str, Any], name: str) -> str:
    """Its own id, or `name` where it has none."""
    value = first_of(row, ("id", "doc_id"))
    return str(value) if isinstance(value, (str, int)) and str(value) else name


def first_of(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first of some keys that is not null; None where all are."""
    return next((row[key] for key in keys if row.get(key) is not None), None)


def nested(value: Any) -> Any:
    """A nested value; in Parquet it may be JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # or brackets nested thousands deep
            return value
    return value


def window_of(value: Any, where: str, id_: str) -> tuple[float, float] | None:
    """Two rising seconds, or None for the whole video ([-1, -1], or no crop at all)."""
    if value is None:
        return None
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or any(isinstance(t, bool) or not isinstance(t, (int, float)) for t in value)
    ):
        raise RowError(id_, "window", f"{where}.crop is {value!r}, not two seconds")
    if tuple(value) == _WHOLE:
        return None
    try:
        start, end = float(value[0]), float(value[1])
    except OverflowError:
        start = end = math.inf
    if not (math.isfinite(start) and math.isfinite(end)):
        raise RowError(id_, "window", f"{where}.crop is {value!r}, which is not finite")
    if start < 0:
        raise RowError(
            id_,
            "window",
            f"{where}.crop is {value!r}; it starts before the video (the whole is [-1, -1])",
        )
    if end <= start:
        raise RowError(id_, "window", f"{where}.crop is {value!r}; it ends before it starts")
    return start, end


def video_of(
    value: Any, where: str, id_: str, root: epath.PathLike | None
) -> str | tuple[str, ...]:
    """A path, or a tuple of frame files, with relative ones under `root`."""
    if isinstance(value, (list, tuple)):
        if not value or not all(isinstance(part, str) and part for part in value):
            raise RowError(id_, "videos", f"{where} is not a list of frame files")
        return tuple(under(_path(part, where, id_), root) for part in value)
    if not isinstance(value, str) or not value.strip():
        raise RowError(id_, "videos", f"{where} names no video: {value!r}")
    return under(_path(value, where, id_), root)


def _path(text: str, where: str, id_: str) -> str:
    """What a file system can be asked for: no NUL, no half of a surrogate pair."""
    try:
        if b"\0" not in os.fsencode(text):
            return text
    except UnicodeEncodeError:
        pass
    raise RowError(id_, "videos", f"{where} is {text!r}, which can be no path")


def under(path: str, root: epath.PathLike | None) -> str:
    """A video's path under the folder that relative ones start from; absolute ones and addresses (gs://) stay as they are."""
    if root is None or "://" in path or os.path.isabs(path):
        return path
    return os.fspath(epath.Path(root) / path)


def rate_of(row: Mapping[str, Any], id_: str) -> float | None:
    """Frames per second of a list of frames, or None where the row does not say."""
    value = row.get("frame_fps")
    if value is None or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise RowError(id_, "fields", f"frame_fps is {value!r}, not frames per second")
    return float(value)


_LETTERED = re.compile(r"\s*\(?([A-Z])[).:]\s*(.*)", re.DOTALL)


def options_of(value: Any, id_: str) -> dict[str, str] | None:
    """Letter -> text: from a mapping, or a list whose texts may begin with their letters."""
    if value is None or (isinstance(value, (str, list, dict)) and not value):
        return None
    if isinstance(value, Mapping):
        options = {str(k): v for k, v in value.items() if v is not None}
        if not options:  # a Parquet struct of nulls
            return None
    elif isinstance(value, (list, tuple)):
        letters = [chr(ord("A") + i) for i in range(len(value))]
        found = [_LETTERED.fullmatch(text) if isinstance(text, str) else None for text in value]
        if all(found) and [match[1] for match in found] == letters:
            options = {match[1]: match[2].strip() for match in found}
        else:
            options = dict(zip(letters, value, strict=True))
    else:
        raise RowError(id_, "fields", f"'options' is {value!r}, neither a list nor letter -> text")
    if len(options) > 26 or not all(isinstance(text, str) and text for text in options.values()):
        raise RowError(id_, "fields", "'options' holds something that is no text")
    return options


def check_target(target: Target, options: Mapping[str, str] | None, id_: str) -> None:
    """Refuses what no answer could be rewarded for, or an empty one would be."""
    for i, clue in enumerate(target.clues):
        where = f"solution.clue[{i}].timestamp is {[clue.start, clue.end]}"
        if not (math.isfinite(clue.start) and math.isfinite(clue.end)):
            raise RowError(id_, "window", f"{where}, which is not finite")
        if clue.start < 0:
            raise RowError(id_, "window", f"{where}; it starts before the video")
        if clue.end < clue.start:
            raise RowError(id_, "window", f"{where}; it ends before it starts")
    if target.data_source == "temporal_grounding":
        if not target.clues:
            raise RowError(id_, "fields", "a temporal grounding row needs a clue, its true segment")
        if target.clues[0].start == target.clues[0].end:
            raise RowError(
                id_, "window", "the true segment, solution.clue[0], is empty: no answer overlaps it"
            )
        return
    answer = target.answer.strip()
    if not answer:
        raise RowError(
            id_, "fields", "solution.answer is empty: a reply that says nothing would be right"
        )
    if options and answer not in options:
        raise RowError(
            id_,
            "fields",
            f"solution.answer is {answer!r}, no option's letter; the options are {', '.join(options)}",
        )
