"""HTML that cannot be injected: text is escaped unless it was built here."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

# Elements without content or end tag.
_VOID = frozenset(("img", "br", "hr", "meta", "input", "path", "polygon", "rect"))


class Markup(str):
    """A piece of HTML whose text is escaped already."""

    __slots__ = ()


def escape(value: Any) -> Markup:
    """`value` as text: unchanged when it is markup, escaped (quotes too) otherwise."""
    if isinstance(value, Markup):
        return value
    # A lone surrogate cannot be written as UTF-8; a NUL is no character of HTML.
    text = (
        str(value)
        .encode("utf-8", "replace")
        .decode("utf-8")
        .replace("\0", "\N{REPLACEMENT CHARACTER}")
    )
    return Markup(html.escape(text, quote=True))


def join(*children: Any) -> Markup:
    """Children one after the other; None is left out, iterables are flattened, anything else is text."""
    pieces = []
    for child in children:
        if child is None:
            continue
        if not isinstance(child, str) and isinstance(child, Iterable):
            pieces.append(join(*child))
        else:
            pieces.append(escape(child))
    return Markup("".join(pieces))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. A trailing underscore of an attribute is dropped, others become hyphens; None leaves it out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        if children:
            raise ValueError(f"<{name}> has no content")
        return Markup(
            f"<{name}{written}>"
            if name in ("img", "br", "hr", "meta", "input")
            else f"<{name}{written}/>"
        )
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")
