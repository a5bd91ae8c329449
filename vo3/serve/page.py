"""The page on `/`: choose a video, ask, and watch the agent look. It is one file, and asks nobody but its own server."""

from __future__ import annotations

import functools
import importlib.resources

from vo3.serve.settings import Settings
from vo3.viewer.markup import Markup, join, tag
from vo3.viewer.page import document


def render(settings: Settings) -> str:
    """The page of a server."""
    main = tag(
        "main",
        tag("style", Markup(_asset("vo3.serve", "page.css"))),
        tag(
            "header",
            tag(
                "p",
                tag("span", f"vo3 with {settings.model}"),
                tag("span", "", id="state", role="status"),
                class_="eyebrow",
            ),
            tag("h1", "Ask a video"),
            class_="top",
        ),
        _form(settings),
        tag("p", id="problem", role="alert", hidden=""),
        tag("article", id="answer", aria_live="off", tabindex="-1"),
        tag("nav", id="earlier", aria_label="earlier questions", hidden=""),
        tag("noscript", "This page asks with a script of its own; allow scripts to use it."),
        class_="ask",
        data_model=settings.model,
        data_upload=settings.limits.upload,
    )
    code = _asset("vo3.viewer", "script.js") + "\n" + _asset("vo3.serve", "page.js")
    return document("Ask a video", main, code=code, connect=True, media=True)


def _form(settings: Settings) -> Markup:
    size = f"{settings.limits.upload / 2**20:,.0f} MiB at most"
    drop = tag(
        "div",
        tag("video", id="preview", controls="", muted="", playsinline="", hidden=""),
        tag("input", type="file", id="file", accept="video/*,.mkv", aria_describedby="size"),
        tag(
            "label",
            tag("strong", "Choose a video", id="chosen"),
            tag("span", f"or drop it here; {size}", id="size"),
            for_="file",
        ),
        tag("i", id="bar", aria_hidden="true"),
        class_="drop",
        id="drop",
    )
    path = None
    if settings.roots:
        path = tag(
            "p",
            tag("label", "or a file of the server", for_="path"),
            tag("input", id="path", autocomplete="off", spellcheck="false", placeholder="movies/long.mp4"),
            class_="path",
        )  # fmt: skip
    question = tag(
        "div",
        tag("label", "Question", for_="question"),
        tag(
            "textarea",
            id="question",
            rows="2",
            required="",
            placeholder="Which digit is on the red card?",
        ),
        class_="field",
    )
    options = tag(
        "fieldset",
        tag("legend", "Options"),
        tag("ol", id="options"),
        tag("button", "Add an option", type="button", id="add"),
    )
    key = tag(
        "p",
        tag("label", "API key", for_="key"),
        tag("input", id="key", type="password", autocomplete="off"),
        class_="field",
        hidden=None if settings.keys else "",
    )
    buttons = tag(
        "p",
        tag("button", "Ask", type="submit", id="go"),
        tag("button", "Stop", type="button", id="stop", hidden=""),
        tag("span", "Ctrl + Enter asks, Esc stops", class_="note"),
        class_="buttons",
    )
    fields = tag("div", question, options, key, buttons, class_="fields")
    return tag("form", join(tag("div", drop, path, class_="source"), fields), id="form")


@functools.cache
def _asset(package: str, name: str) -> str:
    return importlib.resources.files(package).joinpath(name).read_text("utf-8").strip()
