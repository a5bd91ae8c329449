"""Lettered options in the text of a question, as people and benchmarks write them."""

from __future__ import annotations

import dataclasses
import re
import string

# "A. red", "A) red", "(A) red", "A: red", at the beginning of a line.
_LINE = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])\s+(\S.*?)\s*$")
# A line that only announces them.
_HEADING = re.compile(r"\s*(?:the\s+)?(?:answer\s+)?(?:options|choices|candidates)\s*:?\s*$", re.I)


@dataclasses.dataclass(frozen=True)
class Lettered:
    """A text around its options.

    Attributes:
      before: it up to them, without a line that only announces them; after: what follows, without empty lines.
      options: letter -> text.
    """

    before: str
    options: dict[str, str]
    after: str


def find_options(text: str) -> Lettered | None:
    """The options of a text: two or more lines in a row, lettered A, B, C, ... in order; the last such block counts."""
    lines = text.splitlines()
    block: tuple[int, dict[str, str]] | None = None
    at = 0
    while at < len(lines):
        found = _from(lines, at)
        if len(found) >= 2:
            block = (at, found)
        at += max(len(found), 1)
    if block is None:
        return None
    start, options = block
    before, after = lines[:start], lines[start + len(options) :]
    while before and (not before[-1].strip() or _HEADING.match(before[-1])):
        before.pop()
    rest = (line for line in after if line.strip())
    return Lettered("\n".join(before).strip(), options, "\n".join(rest).strip())


def _from(lines: list[str], start: int) -> dict[str, str]:
    """The options in the lines from `start` on, as far as they are lettered in order."""
    options: dict[str, str] = {}
    for letter, line in zip(string.ascii_uppercase, lines[start:], strict=False):
        match = _LINE.match(line)
        if match is None or (match[1] or match[2]) != letter:
            break
        options[letter] = match[3]
    return options
