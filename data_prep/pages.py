"""Pages of data preparation, in its own style sheet."""

from __future__ import annotations

import importlib.resources

from vo3.viewer.frame import frame
from vo3.viewer.markup import Markup


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
    return frame(
        title, *body, style=asset("pages.css"), script=script, pictures=pictures, connect=True
    )
