"""JSON as models write it: found in prose and code fences, mended where the meaning is plain, checked against a schema.

What is mended is named, so that a report can count it. What is cut off or ambiguous is refused, not guessed: a truncated
list of clues is not a shorter list of clues.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
_FENCE = re.compile(r"```[A-Za-z]*\s*\n?(.*?)```", re.DOTALL)
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_CLOCK = re.compile(r"^(?:(\d+):)?(\d{1,3}):(\d{1,2}(?:\.\d+)?)$")
_SECONDS = re.compile(r"^(\d+(?:\.\d+)?)\s*(?:s|sec|secs|seconds?)?$", re.IGNORECASE)


class ReplyError(ValueError):
    """A reply that cannot be used.

    Attributes:
      kind: `empty`, `truncated`, `not_json`, `schema`.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A reply's value and what was mended to read it (empty when nothing was)."""

    value: Any
    repaired: str = ""


def parse_reply(text: str, schema: Mapping[str, Any], *, cut: bool = False) -> Parsed:
    """Reads a reply.

    Args:
      text: what the model wrote.
      schema: JSON schema, of the subset that `violations` knows.
      cut: the endpoint said that the reply hit the length limit.

    Raises:
      ReplyError: nothing usable in it; `kind` says why.
    """
    if not text.strip():
        raise ReplyError("empty", "the reply is empty")
    parsed = _find(text)
    if parsed is None:
        if cut or _unclosed(text):
            raise ReplyError("truncated", f"the reply is cut off after {len(text)} characters")
        raise ReplyError("not_json", f"the reply holds no JSON: {text.strip()[:80]!r}")
    value, repaired = parsed
    # A list where an object of one list is asked for: the name was left out, the meaning is plain.
    names = list(schema.get("properties", {}))
    if isinstance(value, list) and schema.get("type") == "object" and len(names) == 1:
        value, repaired = {names[0]: value}, _also(repaired, "bare list")
    if wrong := violations(value, schema):
        raise ReplyError("schema", f"the reply does not fit: {wrong[0]}")
    return Parsed(encodable(value), repaired)


def encodable(value: Any, put: str = "?") -> Any:
    """The value, half a surrogate pair in its texts (an escaped emoji that was cut) replaced: no request, file or database takes it."""
    if isinstance(value, str):
        return value if value.isascii() else _SURROGATE.sub(put, value)
    if isinstance(value, Mapping):
        return {encodable(k, put): encodable(v, put) for k, v in value.items()}
    if isinstance(value, list):
        return [encodable(x, put) for x in value]
    return value


def _find(text: str) -> tuple[Any, str] | None:
    """The JSON value in `text`, with what was mended; the whole text, then fences, then the outermost braces."""
    candidates = [(text.strip(), "")]
    candidates += [(body.strip(), "code fence") for body in _FENCE.findall(text)]
    for opening, closing in ("{}", "[]"):
        first, last = text.find(opening), text.rfind(closing)
        if 0 <= first < last:
            candidates.append((text[first : last + 1], "prose around it"))
    # The candidate that starts first in the text is the outermost one. It is mended in every way before an inner one is
    # taken, or a list would be read without the object around it.
    candidates[1:] = sorted(candidates[1:], key=lambda c: text.find(c[0]))
    for body, note in candidates:
        if not body or body[0] not in "{[":
            continue
        for mend in (_strict, _commas, _quotes):
            found = mend(body)
            if found is not None:
                return found[0], _also(note, found[1])
    return None


def _strict(body: str) -> tuple[Any, str] | None:
    try:
        return json.loads(body), ""
    except (ValueError, RecursionError):
        return None


def _commas(body: str) -> tuple[Any, str] | None:
    found = _strict(_TRAILING_COMMA.sub(r"\1", body))
    return (found[0], "trailing comma") if found is not None else None


def _quotes(body: str) -> tuple[Any, str] | None:
    """A Python literal: single quotes, None, True."""
    try:
        value = ast.literal_eval(body)
        json.dumps(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return (value, "python quotes") if isinstance(value, dict | list) else None


def _unclosed(text: str) -> bool:
    return text.count("{") > text.count("}") or text.count("[") > text.count("]")


def _also(first: str, second: str) -> str:
    return ", ".join(part for part in (first, second) if part)


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def violations(value: Any, schema: Mapping[str, Any], path: str = "reply") -> list[str]:
    """What in `value` breaks `schema`: type, enum, properties, required, items, minItems, maxItems, minLength."""
    wanted = schema.get("type")
    if wanted is not None:
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        fits = any(
            isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
            for name in names
        )
        if not fits:
            return [f"{path} is {type(value).__name__}, wanted {' or '.join(names)}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path} is {value!r}, wanted one of {schema['enum']}"]
    wrong: list[str] = []
    if isinstance(value, dict):
        wrong += [
            f"{path} lacks {name!r}" for name in schema.get("required", ()) if name not in value
        ]
        for name, part in schema.get("properties", {}).items():
            if name in value:
                wrong += violations(value[name], part, f"{path}.{name}")
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            wrong.append(f"{path} has {len(value)} items, wanted at least {schema['minItems']}")
        if len(value) > schema.get("maxItems", math.inf):
            wrong.append(f"{path} has {len(value)} items, wanted at most {schema['maxItems']}")
        for number, item in enumerate(value):
            wrong += violations(item, schema.get("items", {}), f"{path}[{number}]")
    if isinstance(value, str) and len(value.strip()) < schema.get("minLength", 0):
        wrong.append(f"{path} is too short")
    return wrong


def seconds(value: Any) -> float | None:
    """A time as models write it, in seconds: 83, 83.5, "83 s", "1:23", "0:01:23.5"; None when it is none of these."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            given = float(value)
        except OverflowError:  # a whole number of hundreds of digits
            return None
        return given if math.isfinite(given) and given >= 0 else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if match := _CLOCK.match(text):
        hours, minutes, secs = match.groups()
        if float(secs) >= 60 or (hours is not None and int(minutes) >= 60):
            return None
        return 3600 * int(hours or 0) + 60 * int(minutes) + float(secs)
    if match := _SECONDS.match(text):
        return float(match[1])
    return None


def interval(value: Any) -> tuple[float, float, str] | None:
    """Two times as (start, end, what was mended); reversed ends are swapped. None when they are not two times."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    start, end = seconds(value[0]), seconds(value[1])
    if start is None or end is None:
        return None
    return (end, start, "reversed times") if end < start else (start, end, "")


def clock_text(value: float) -> str:
    """Seconds as M:SS or H:MM:SS, rounded to whole seconds: how prompts and replies write times."""
    total = round(value)
    hours, rest = divmod(total, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
