"""The page: what it shows, that nothing can be injected, that it needs nothing from outside, that it can be read."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import importlib.resources
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
import viewer_samples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vo3.trajectory import Target, Turn
from vo3.viewer import render
from vo3.viewer.markup import Markup, escape, join, tag
from vo3.viewer.page import answered_window, judge

pytestmark = pytest.mark.quick

EVIL = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<svg/onload=alert(1)>",
    "' onmouseover='alert(1)",
    "<!-- --> &lt;b&gt; ]]>",
    "</title></style><style>*{display:none}",
)
VOID = {"meta", "img", "br", "hr", "polygon", "path"}


class Page(html.parser.HTMLParser):
    """Elements with their attributes, the text outside scripts and styles, and proof that tags are balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self.stack: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        where = self.stack[-1] if self.stack else ""
        {"script": self.scripts, "style": self.styles}.get(where, self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def asset(name: str) -> str:
    return importlib.resources.files("vo3.viewer").joinpath(name).read_text().strip()


def test_the_page_tells_the_whole_story():
    trajectory, clips = viewer_samples.sample(
        (95.0, 119.0), (300.0, 302.5), error="too short a window"
    )
    page = Page(render(trajectory, clips=clips))
    for words in (
        "Which digit is on the red card?", "long one.mp4", "10:00", "six", "seven", "It answered B, seven",
        "looks at 1:35 \u2013 1:59", "looks at 5:00.0 \u2013 5:02.5", "too short a window", "I look closer.",
        "true evidence: 1:40 \u2013 1:52", "twice", "right", "Where it looked", "What it cost", "Facts",
    ):  # fmt: skip
        assert words in page.text, words
    # Tokens: overview 32 temporal patches of 1 x 2; clips 2 x (3 x 6) each; written 3 + 3 + 1 + 2.
    assert "overview 64 tokens, 44 %" in page.text
    assert "clips 72" in page.text
    assert "written 9" in page.text
    assert "3.60 s" in page.text  # 0.5 + 2 * (1.0 + 0.1) + 0.2 + 0.0 + 0.7


def test_a_wrong_answer_names_the_true_one():
    trajectory, clips = viewer_samples.sample((95.0, 119.0), answer="A", true="B")
    text = Page(render(trajectory, clips=clips)).text
    assert "\u2717 wrong" in text
    assert "the answer is B, seven" in text
    assert "\u2713 right" not in text


def test_nothing_is_said_of_right_or_wrong_where_the_truth_is_unknown():
    trajectory, clips = viewer_samples.sample((95.0, 119.0), true=None)
    text = Page(render(trajectory, clips=clips)).text
    assert "\u2713" not in text
    assert "\u2717" not in text
    assert "true evidence" not in text


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_becomes_markup(evil):
    trajectory, clips = viewer_samples.sample(
        (95.0, 119.0), question=evil, think=evil, answer=evil, options={"A": evil, "B": "b"}, error=evil, meta={evil: evil}
    )  # fmt: skip
    task = dataclasses.replace(trajectory.task, video=evil, id=evil, target=Target(evil))
    trajectory = dataclasses.replace(trajectory, task=task, model=evil, prompt_pack=evil)
    page = Page(render(trajectory, clips=clips))
    assert page.scripts == [asset("script.js")]
    assert page.styles == [asset("style.css")]
    assert page.text.count(" ".join(evil.split())) >= 8  # shown as what it is
    names = {name for _, attributes in page.elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    calm, _ = viewer_samples.sample((95.0, 119.0), error="x", meta={"a": "b"})
    kinds = {tag for tag, _ in Page(render(calm, clips=clips)).elements}
    assert {tag for tag, _ in page.elements} <= kinds


@given(st.text())
def test_any_text_survives_as_text(text):
    clean = escape(text)
    parsed = Page(str(tag("p", clean, title=text)))
    assert [name for name, _ in parsed.elements] == ["p"]
    shown = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    # HTML reads a carriage return as a line feed; the parser here keeps it.
    assert "".join(parsed.words) == shown
    assert parsed.elements[0][1]["title"] == shown


def test_markup_is_never_escaped_twice():
    assert tag("b", tag("i", "a < b")) == "<b><i>a &lt; b</i></b>"
    assert join("<", Markup("<br>"), None, ["&"]) == "&lt;<br>&amp;"
    with pytest.raises(ValueError, match="no content"):
        tag("img", "x")


def test_nothing_is_fetched_and_no_other_script_may_run():
    trajectory, clips = viewer_samples.sample((95.0, 119.0))
    page = Page(render(trajectory, clips=clips))
    sources = [
        a[k]
        for _, a in page.elements
        for k in ("src", "href", "srcset", "data", "action")
        if k in a
    ]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not page.all("link")
    assert "url(" not in asset("style.css")
    assert "@import" not in asset("style.css")
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_pictures_are_the_frames_enlarged_by_whole_pixels():
    trajectory, clips = viewer_samples.sample((95.0, 119.0))
    page = Page(render(trajectory, clips=clips))
    images = [a for a in page.all("img") if a["alt"].startswith("clip 1, frame")]
    assert len(images) == 4
    assert [a["alt"] for a in images][1] == "clip 1, frame 2 at 1:43"
    for attributes, frame in zip(images, clips[1].frames, strict=True):
        data = base64.b64decode(attributes["src"].split(",")[1])
        picture = np.asarray(Image.open(io.BytesIO(data)))
        assert picture.shape == (168, 336, 3)
        assert np.abs(picture.astype(int) - frame[0, 0].astype(int)).max() <= 4


def test_every_picture_has_a_description():
    trajectory, clips = viewer_samples.sample((95.0, 119.0), (300.0, 302.5))
    page = Page(render(trajectory, clips=clips))
    # The strip's images are one picture with one description; the others have their own.
    bare = [a for a in page.all("img") if not a.get("alt")]
    strip = [a for a in page.all("div") if a.get("role") == "img"]
    assert len(strip) == 1
    assert "frames of the overview" in strip[0]["aria-label"]
    assert all("title" in a for a in bare)
    assert page.elements[0][1]["lang"] == "en"


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 12])
def test_any_number_of_looks(count):
    windows = [(40.0 * i, 40.0 * i + 10) for i in range(count)]
    trajectory, clips = viewer_samples.sample(*windows)
    page = Page(render(trajectory, clips=clips))
    assert len([a for a in page.all("span") if a.get("class", "").startswith("window")]) == count
    assert len(page.all("polygon")) == (count if 1 <= count <= 4 else 0)


def test_without_frames_everything_is_said_in_words():
    trajectory, _ = viewer_samples.sample((95.0, 119.0))
    page = Page(render(trajectory))
    assert page.all("img") == []
    assert "1:35 \u2013 1:59 in 4 frames, one every 6" in page.text


@pytest.mark.parametrize("outcome", ["refused", "exceeded", "void"])
def test_a_trajectory_without_an_answer(outcome):
    trajectory, clips = viewer_samples.sample((95.0, 119.0))
    forced = Turn("forced", "answer now <video>", observations=trajectory.observations[1:])
    turns = (*trajectory.turns[:-2], forced, Turn("text", "I do not know", ids=(1,), stop="length"))
    trajectory = dataclasses.replace(trajectory, turns=turns, outcome=outcome, answer=None)
    text = Page(render(trajectory, clips=clips)).text
    assert "I do not know" in text
    assert "Cut off by the length limit" in text
    assert "No looks left" in text
    assert "\u2717 wrong" in text


def test_a_trajectory_of_nothing():
    trajectory, _ = viewer_samples.sample()
    trajectory = dataclasses.replace(trajectory, turns=(), answer=None, outcome="void")
    assert "no window was asked for" in Page(render(trajectory)).text


@pytest.mark.parametrize(
    ("answer", "true", "options", "right"),
    [
        ("B", "B", {"A": "x", "B": "y"}, True),
        ("B.", "B", {"A": "x", "B": "y"}, True),
        ("(B) y", "B", {"A": "x", "B": "y"}, True),
        ("A", "B", {"A": "x", "B": "y"}, False),
        ("Bob", "B", {"A": "x", "B": "y"}, False),
        ("Seven", "seven.", {}, True),
        ("six", "seven", {}, False),
        ("B", None, {"A": "x", "B": "y"}, None),
    ],
)
def test_judge(answer, true, options, right):
    trajectory, _ = viewer_samples.sample(answer=answer, true=true, options=options)
    assert judge(trajectory) is right


def test_a_number_that_no_float_holds_is_no_window():
    trajectory, _ = viewer_samples.sample(answer=f'{{"temporal_segment": [0, {10**400}]}}')
    assert answered_window(trajectory) is None


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG 2.2's contrast ratio of two #rrggbb colours."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured_right():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(scheme):
    blocks = re.findall(r":root \{(.*?)\}", asset("style.css"), re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    if scheme == "dark":
        colors |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1]))
    for ground in ("paper", "raised"):
        for name in ("ink", "muted", "good", "bad"):
            assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)
    for number in range(1, 7):
        assert contrast(colors["on"], colors[f"c{number}"]) >= 4.5, number
        assert contrast(colors[f"c{number}"], colors["paper"]) >= 3.0, number


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to run the page in")
def test_a_browser_runs_the_page(tmp_path):
    trajectory, clips = viewer_samples.sample((95.0, 119.0), question=EVIL[0] + EVIL[1])
    page = tmp_path / "page.html"
    page.write_text(render(trajectory, clips=clips))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
         "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert '<div class="peek"' in done.stdout  # the script ran, so the policy's hash is right
    assert "Refused to" not in done.stderr
    assert "CONSOLE" not in done.stderr
