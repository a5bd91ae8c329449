"""The frame of a page: one style sheet, at most one script, and a policy that refuses whatever else a video, a model or a row may have written into it."""

from __future__ import annotations

import base64
import hashlib

from vo3.viewer.markup import Markup, tag


def frame(
    title: str,
    *body: Markup,
    style: str,
    script: str = "",
    pictures: str = "data:",
    connect: bool = False,
    media: bool = False,
) -> str:
    """A whole page that fetches nothing from elsewhere.

    Args:
      title: of the page.
      body: markup.
      style: the style sheet.
      script: JavaScript that may run.
      pictures: where pictures may come from, as a policy source.
      connect: whether the script may ask the page's own server.
      media: whether it may play a video that its reader chose.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src {pictures}; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    policy += "; connect-src 'self'" if connect else ""
    policy += "; media-src blob:" if media else ""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    end = tag("script", Markup(script)) if script else None
    return "<!doctype html>\n" + tag("html", head, tag("body", *body, end), lang="en") + "\n"
