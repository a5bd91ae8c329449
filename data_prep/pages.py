"""A page's frame: one style sheet, at most one script, nothing fetched from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources

from vo3.viewer.markup import Markup, tag


def asset(name: str) -> str:
    """A file of this package as text."""
    return importlib.resources.files("data_prep").joinpath(name).read_text(encoding="utf-8").strip()


def document(title: str, *body: Markup, script: str = "", pictures: str = "data:") -> str:
    """A whole page.

    Args:
      title: of the page.
      body: markup.
      script: JavaScript that may run; any other is refused by the page's policy.
      pictures: where pictures may come from, as a policy source.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src {pictures}; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(asset("pages.css"))),
    )
    end = tag("script", Markup(script)) if script else None
    return "<!doctype html>\n" + tag("html", head, tag("body", *body, end), lang="en") + "\n"
