"""Whether two answers say the same, by rule."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

_ALONE = re.compile(r"\(?([A-Z])\)?[.:]?")
_MARKED = re.compile(r"\(?([A-Z])(?:\)|[.:])")
_SPACED = re.compile(r"([A-Z])\s+(.+)", re.DOTALL)
_WORDS = "AI"  # letters that begin sentences as words of their own
_ARTICLES = re.compile(r"\b(?:the|a|an)\b")
_SPACE = re.compile(r"[^\w%.-]+")
_NUMBER = re.compile(r"^-?\d+(?:\.\d+)?$")

UNKNOWN = frozenset(("unknown", "", "none", "n/a", "cannot tell", "not shown"))


def normal(text: str) -> str:
    """Case, articles, punctuation and spacing do not count."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _SPACE.sub(" ", _ARTICLES.sub(" ", folded)).strip(" .")


def letter_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names: by its letter, or by its whole text. None when it names none, or more than one."""
    text = answer.strip()
    if (match := _ALONE.fullmatch(text)) and match[1] in options:
        return match[1]
    if len(text) == 1 and text.upper() in options:
        return text.upper()
    if (match := _MARKED.match(text)) and match[1] in options:
        return match[1]
    # Before a letter that only a space parts from what follows: "A red car" may be the text of option B.
    same = [letter for letter, option in options.items() if normal(option) == normal(text)]
    if same:
        return same[0] if len(same) == 1 else None
    if (match := _SPACED.match(text)) and match[1] in options:
        own = normal(match[2]) == normal(options[match[1]])
        return match[1] if own or match[1] not in _WORDS else None
    return None


def same(given: str, known: str, options: Mapping[str, str] | None) -> bool:
    """Whether an answer is the known one."""
    if options:
        return letter_of(given, options) == known
    a, b = normal(given), normal(known)
    if _NUMBER.match(a) and _NUMBER.match(b):
        return float(a) == float(b)
    return a == b


def is_unknown(answer: str) -> bool:
    """Whether an answer says that the pictures do not tell."""
    return normal(answer) in UNKNOWN
