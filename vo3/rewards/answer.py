"""Accuracy of an answer turn: a letter match for questions, an IoU for temporal grounding."""

from __future__ import annotations

import json
import math
import re

from vo3.rewards.grounding import Interval

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LETTER = re.compile(r"[A-Z]")


def last_answer(text: str) -> str | None:
    """Content of the last `<answer>...</answer>` of `text` as written, or None without one."""
    found = _ANSWER.findall(text)
    return found[-1] if found else None


def letter_accuracy(text: str, answer: str) -> float:
    """1.0 when the last answer of a turn is the true one, else 0.0.

    It is the true one when it equals `answer` after stripping, or, for a one-letter `answer`, when it begins with `(A)`
    or with `A.` (no space before: only the comparison of the whole is stripped).

    Args:
      text: the last turn of the assistant.
      answer: the true letter, or the true text of a free-form question.
    """
    given = last_answer(text)
    if given is None:
        return 0.0
    answer = answer.strip()
    if given.strip() == answer:
        return 1.0
    if not _LETTER.fullmatch(answer):
        return 0.0
    return float(given.startswith((f"({answer})", f"{answer}.")))


def answered_segment(text: str) -> Interval | None:
    """The segment that a grounding answer names, as written (maybe reversed), or None.

    The last answer must be JSON: an object whose `temporal_segment` is a pair of finite numbers, in seconds.
    """
    given = last_answer(text)
    pair = segment_pair(given) if given is not None else None
    if pair is None or not all(isinstance(x, (int, float)) for x in pair):
        return None
    try:
        start, end = map(float, pair)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return Interval(start, end) if math.isfinite(start) and math.isfinite(end) else None


def segment_pair(content: str) -> list | None:
    """The list of length two under `temporal_segment` of a JSON object, whatever stands in it, or None."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):  # a model may write brackets nested thousands deep
        return None
    pair = data.get("temporal_segment") if isinstance(data, dict) else None
    return pair if isinstance(pair, list) and len(pair) == 2 else None


def segment_accuracy(text: str, truth: Interval) -> float:
    """IoU of the answered segment and the true one, in [0, 1]; 0.0 where none is answered or it is reversed."""
    segment = answered_segment(text)
    if segment is None:
        return 0.0
    shared = max(0.0, min(segment.end, truth.end) - max(segment.start, truth.start))
    union = (segment.end - segment.start) + (truth.end - truth.start) - shared
    return shared / union if shared > 0.0 else 0.0
