"""The page on `/`: self-contained; in a real browser it uploads, asks by keyboard, shows every look as it comes, and says what went wrong."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil

import httpx
import pytest
from serve_fakes import ANSWER, LOOK, ScriptedEngine

from vo3.serve import page
from vo3.serve.settings import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def test_it_is_one_file_and_asks_nobody_else(serve):
    answer = httpx.get(serve())
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    text = answer.text
    code = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(code) == 1
    digest = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert not re.search(r"(src|href)=", text.replace(code[0], ""))
    assert "http" not in re.sub(r"http-equiv", "", text)


def test_every_field_has_a_name():
    text = page.render(Settings("m", roots=("/",), keys=("k",)))
    for name in re.findall(r'<(?:input|textarea)[^>]* id="(\w+)"', text):
        assert f'for="{name}"' in text, name
    assert 'id="path"' not in page.render(Settings("m"))


def test_a_model_named_like_a_page_is_text():
    assert HOSTILE not in page.render(Settings(HOSTILE))


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium is installed to open the page in")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def tab(browser):
    """A tab that tolerates no error in it and no request to anybody but its server."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    wrong, asked = [], []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: wrong.append(dialog.message))
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    context.close()
    assert not wrong
    assert all(url.startswith(("http://127.0.0.1:", "blob:", "data:")) for url in asked)


def choose(tab, videos, text: str) -> None:
    tab.set_input_files("#file", str(videos / "a.mp4"))
    assert tab.inner_text("#chosen") == "a.mp4"
    tab.keyboard.type(text)  # the question has the focus now


@pytest.mark.soak
def test_by_keyboard_from_video_to_answer(serve, videos, tab, tmp_path):
    engine = ScriptedEngine(LOOK, LOOK.replace("[2, 6]", "[60, 90]"), ANSWER)
    tab.goto(serve(engine))
    choose(tab, videos, HOSTILE)
    tab.focus("#add")
    tab.keyboard.press("Enter")
    for option in ("six", "seven", HOSTILE):
        tab.keyboard.type(option)
        tab.keyboard.press("Enter")
    tab.keyboard.press("Backspace")  # an empty option goes
    assert tab.locator("#options li").count() == 3
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector("#answer .actions", timeout=60_000)
    assert engine.jobs[0].task.options == {"A": "six", "B": "seven", "C": HOSTILE}
    assert engine.jobs[0].task.question == HOSTILE
    assert "It answered B, seven." in tab.inner_text("#answer .verdict")
    assert tab.locator("#answer .strip .window").count() == 2
    assert tab.locator("#answer .boxes .box img").count() == 8
    assert tab.locator("#answer .story li").count() == 6
    assert tab.evaluate("document.activeElement.id") == "answer"
    tab.hover("#answer .strip")
    assert tab.locator("#answer .peek").is_visible()
    with tab.expect_download() as saving:
        tab.click("text=Save this page")
    saving.value.save_as(tmp_path / "answer.html")
    saved = (tmp_path / "answer.html").read_text()
    assert saved.startswith("<!doctype html>") and saved.count("data:image/jpeg") > 20
    assert not tab.locator("#earlier").is_visible()
    tab.click("text=Ask another question")
    tab.keyboard.type("And now?")
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector("#earlier li:nth-child(2)", timeout=60_000)
    assert len(httpx.get(tab.url + "metrics").text.split('path="/v1/files",status="200"} 1.0')) == 2


@pytest.mark.soak
def test_it_shows_what_is_written_while_it_is_written(serve, videos, tab):
    """The stream is looked at in the middle, by what the page adds to itself."""
    tab.goto(serve())
    tab.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
          const open = document.querySelector('.live .think:last-of-type')?.textContent;
          if (open) seen.push(open);
        }).observe(document.querySelector('#answer'), { subtree: true, childList: true, characterData: true }); }"""
    )
    choose(tab, videos, "Which digit?")
    tab.click("#go")
    tab.wait_for_selector("#answer .actions", timeout=60_000)
    seen = tab.evaluate("seen")
    assert any("I look closer.".startswith(text) and len(text) < 14 for text in seen)
    assert any("It shows six".startswith(text[:12]) for text in seen)


@pytest.mark.soak
def test_what_goes_wrong_is_said_and_the_page_goes_on(serve, videos, tab):
    engine = ScriptedEngine()
    tab.goto(serve(engine, keys=("right",)))
    tab.keyboard.press("Control+Enter")
    assert tab.inner_text("#problem") == "write a question"
    tab.fill("#question", "Which?")
    tab.keyboard.press("Control+Enter")
    assert tab.inner_text("#problem") == "choose a video first"
    tab.fill("#path", "../outside/secret.mp4")
    tab.fill("#key", "wrong")
    tab.click("#go")
    tab.wait_for_selector("#problem:has-text('key is wrong')")
    tab.fill("#key", "right")
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector("#problem:has-text('outside of the folders')")
    assert "req-" in tab.inner_text("#problem")
    tab.fill("#path", "a.mp4")
    engine.hold.set()
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector("#stop:visible")
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#stop", state="hidden")
    assert not tab.locator("#problem").is_visible() and tab.inner_text("#answer") == ""
    engine.hold.clear()
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector("#answer .actions", timeout=60_000)
    assert len(engine.left) == 1


@pytest.mark.soak
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_it_fits_every_screen_in_both_schemes(serve, videos, browser, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(serve())
    choose(tab, videos, "Which digit is on the red card?")
    tab.click("#go")
    tab.wait_for_selector("#answer .actions", timeout=60_000)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 384) == (scheme == "dark")
    context.close()
