"""Consistency rules: what no row may contain, found without a model.

Each rule names itself in the violation. The word lists are for English; other languages are the judge's.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

from data_prep import intervals, matching
from data_prep.schema import Generated, Localised, Step, Triplet, Violation
from data_prep.settings import StageSettings
from vo3.chat.tags import MIN_WINDOW, parse_segment

_TAGS = re.compile(r"</?(?:think|grounding|answer|video|image|tool_call|data)>|<\|")
_CLOCK = re.compile(r"(?<![\d:.])(?:(\d{1,2}):)?(\d{1,3}):(\d{2})(?:\.(\d+))?(?![\d:])")
_UNITS = re.compile(r"(?<![\w.:])(\d+(?:\.\d+)?)\s?(?:s|secs?|seconds?)\b", re.IGNORECASE)
_WEAK_AUDIO = (
    r"\b(?:i|you|we|one|they|he|she|viewers?)\s+(?:can\s+|could\s+|may\s+)?(?:clearly\s+)?hears?\b",
    r"\b(?:heard|hearing|audible|audio|soundtracks?|voice-?overs?|narrators?|narrat(?:es?|ion|ed))\b",
    r"\b(?:say(?:s|ing)?\s+(?:so|that|out)|said\s+(?:so|aloud)|spoken|speaks?\s+(?:of|about)|speech)\b",
    r"\b(?:aloud|out\s+loud|loud(?:ly|er)?\s+\w+|noises?|bang|applause|humming|singing|chants?)\b",
    r"\b(?:the|its|background|loud|soft)\s+music\b|\bmusic\s+(?:gets?|plays?|stops?|starts?|swells?)\b",
    r"\b(?:sound\s+of|sounds\s+like|by\s+the\s+sound|shouts?|shouted|shouting|commentary|commentators?)\b",
)
_AUDIO = re.compile("|".join(_WEAK_AUDIO), re.IGNORECASE)
_GIVEN = re.compile(
    r"\b(?:given|provided|supplied|known|annotated|labell?ed|reference)\s+(?:clues?|answers?|intervals?|hints?|segments?|windows?)\b"
    r"|\b(?:the|a|this)\s+hints?\b|\bhinted\b|\bground[- ]truth\b|\bannotat(?:ion|ions|ed|or)\b"
    r"|\b(?:was|were|been|am|are)\s+(?:told|given|provided)\b|\bthe\s+(?:clues?|task)\s+(?:say|says|state|states|point|points)\b",
    re.IGNORECASE,
)
# ANSWER stands for the answer's letter or words, or for what a time window is called.
_CIRCULAR = (
    r"\b(?:because|since|as)\s+(?:we\s+know\s+(?:that\s+)?)?"
    r"(?:it|that|the\s+(?:right\s+|correct\s+)?(?:answer|option)|(?:ANSWER))\s+(?:is|must\s+be)\s+(?:the\s+)?"
    r"(?:(?:ANSWER)(?!\w)|(?:right|correct)(?:\s+answer)?\b|answer\b)"
    r"|(?<!\w)(?:ANSWER)\s+is\s+(?:right|correct|the\s+answer)\s*,\s*so\b"
)
_WINDOW = r"(?:this|that|the)\s+(?:interval|segment|window|moment)"
_INJECTION = re.compile(
    r"\b(?:ignore|disregard|forget)\s+(?:all\s+|any\s+|everything\s+)?(?:of\s+)?(?:the\s+|your\s+|these\s+|this\s+)?"
    r"(?:above|previous|prior|earlier|preceding|instructions?|prompts?|rules)\b"
    r"|\bsystem\s+prompt\b|\byou\s+are\s+now\s+(?:a|an|in)\b|\b(?:output|print|reply\s+with|respond\s+with)\s+(?:only|exactly)\b",
    re.IGNORECASE,
)


def is_injection(text: str) -> bool:
    """Whether a text of the outside tries to give orders to a model."""
    return bool(_INJECTION.search(text))


def cited_times(text: str) -> list[tuple[float, str]]:
    """Times that a text names, in seconds, with the words: M:SS, H:MM:SS, `83 s`, `83.5 seconds`."""
    found = []
    for match in _CLOCK.finditer(text):
        hours, minutes, secs, part = match.groups()
        if int(secs) < 60:
            value = 3600 * int(hours or 0) + 60 * int(minutes) + int(secs) + float(f"0.{part or 0}")
            found.append((value, match[0]))
    for match in _UNITS.finditer(text):
        found.append((float(match[1]), match[0]))
    return found


def check(
    triplet: Triplet,
    localised: Localised,
    generated: Generated,
    *,
    tool: bool,
    duration: float,
    settings: StageSettings,
) -> tuple[Violation, ...]:
    """Every violation, in order of the steps."""
    wrong: list[Violation] = []
    steps = generated.steps
    clues = [(c.start, c.end) for c in localised.clues]
    seen: list[tuple[float, float]] = []
    for number, step in enumerate(steps):
        wrong += _words(step, number, triplet, settings)
        wrong += _times(step, number, seen, tool, duration, settings)
        if step.window is not None:
            wrong += _window(step, number, clues, duration, settings)
            seen.append(step.window)
    if tool:
        missed = [c for c in clues if not any(intervals.overlap(c, w) > 0 for w in seen)]
        wrong += [
            Violation("clue_missed", len(steps) - 1, f"no look at {a:g} to {b:g}")
            for a, b in missed
        ]
    return tuple(wrong + _answer(steps[-1], len(steps) - 1, triplet))


def _words(step: Step, number: int, triplet: Triplet, settings: StageSettings) -> list[Violation]:
    think = step.think
    found = []
    if not think:
        found.append(Violation("empty", number, "no think text"))
    if len(think) > settings.check.max_think:
        found.append(Violation("too_long", number, f"{len(think)} characters"))
    if _foreign(think, triplet.question):
        found.append(Violation("language", number, think[:60]))
    # What the question itself speaks of may be spoken of.
    asked = triplet.question + " " + " ".join((triplet.options or {}).values())
    rules = [("tags", _TAGS), ("given", _GIVEN), ("injection", _INJECTION)]
    if not _AUDIO.search(asked):
        rules.append(("audio", _AUDIO))
    for rule, pattern in rules:
        if match := pattern.search(think):
            found.append(Violation(rule, number, match[0]))
    if step.answer is not None and (
        match := _circular(
            step.answer, (triplet.options or {}).get(step.answer, ""), triplet.kind == "grounding"
        ).search(think)
    ):
        found.append(Violation("circular", number, match[0]))
    return found


@functools.lru_cache(maxsize=1024)
def _circular(answer: str, words: str, window: bool) -> re.Pattern[str]:
    """The rule's pattern with this answer's letter and words in it; a time window is spoken of as such."""
    names = [re.escape(name) for name in (answer, words) if name] + [_WINDOW] * window
    either = "|".join(names) or "(?!)"
    return re.compile(_CIRCULAR.replace("ANSWER", either), re.IGNORECASE)


def _times(
    step: Step,
    number: int,
    seen: Sequence[tuple[float, float]],
    tool: bool,
    duration: float,
    settings: StageSettings,
) -> list[Violation]:
    """Before a look any time of the video may be named; the last think of a row with looks only what was looked at."""
    slack = settings.check.slack
    last = step.answer is not None
    inside = list(seen) if tool and last else [(0.0, duration)]
    return [
        Violation("times", number, words)
        for value, words in cited_times(step.think)
        if not any(a - slack <= value <= b + slack for a, b in inside)
        # "for 5 seconds" is a length, not a time
        and not re.search(
            rf"\b(?:for|lasts?|takes?|about|another|within|every)\s+{re.escape(words)}", step.think
        )
    ]


def _window(
    step: Step,
    number: int,
    clues: Sequence[tuple[float, float]],
    duration: float,
    settings: StageSettings,
) -> list[Violation]:
    start, end = step.window
    if start < 0 or end > duration + 1e-6 or end - start < MIN_WINDOW:
        return [Violation("window", number, f"{start:g} to {end:g} of {duration:g} s")]
    share = settings.generate.inside
    for clue in clues:
        both = intervals.overlap(step.window, clue)
        if both >= share * (end - start) or both >= share * (clue[1] - clue[0]):
            return []
    return [Violation("window", number, f"{start:g} to {end:g} lies on no clue")]


def _answer(step: Step, number: int, triplet: Triplet) -> list[Violation]:
    given = step.answer or ""
    if triplet.kind == "grounding":
        segment, clue = parse_segment(given), triplet.clues[0]
        if isinstance(segment, str):
            return [Violation("answer", number, segment)]
        if intervals.iou((segment.start, segment.end), (clue.start, clue.end)) < 0.9:
            return [Violation("answer", number, given)]
        return []
    if matching.same(given, triplet.answer, triplet.options):
        return []
    return [Violation("answer", number, f"{given!r}, known {triplet.answer!r}")]


def _foreign(text: str, question: str) -> bool:
    """Whether a text is mostly in another script than the question."""
    return abs(_latin(text) - _latin(question)) > 0.5


def _latin(text: str) -> float:
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return 1.0
    return sum("LATIN" in unicodedata.name(c, "") for c in letters) / len(letters)


def leans_on_sound(text: str) -> bool:
    """Whether a text speaks of something heard."""
    return bool(_AUDIO.search(text))
