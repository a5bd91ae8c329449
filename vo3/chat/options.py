"""Lettered options in the text of a question, as people and benchmarks write them."""

from __future__ import annotations

import dataclasses
import re
import string

# Both are asked of stripped lines: with `\s*$` at their ends they took the square of a line's spaces, and a server reads whatever is sent.
# "A. red", "A) red", "(A) red", "A: red".
_LINE = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])\s+(\S.*)")
# A line that only announces them.
_HEADING = re.compile(r"(?:the\s+)?(?:answer\s+)?(?:options|choices|candidates)\s*:?", re.I)


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
    lines = [line.strip() for line in text.splitlines()]
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
    # As they were written: the lines between are kept with their spaces.
    written = text.splitlines()
    before, after = written[:start], written[start + len(options) :]
    while before and (not lines[len(before) - 1] or _HEADING.fullmatch(lines[len(before) - 1])):
        before.pop()
    rest = (line for line in after if line.strip())
    return Lettered("\n".join(before).strip(), options, "\n".join(rest).strip())


def _from(lines: list[str], start: int) -> dict[str, str]:
    """The options in the stripped lines from `start` on, as far as they are lettered in order."""
    options: dict[str, str] = {}
    for letter, at in zip(string.ascii_uppercase, range(start, len(lines)), strict=False):
        match = _LINE.fullmatch(lines[at])
        if match is None or (match[1] or match[2]) != letter:
            break
        options[letter] = match[3]
    return options
