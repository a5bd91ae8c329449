"""The page over many trajectories: what is on it, that nothing gets in, that it opens and filters quickly."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess

import eval_samples
import pytest
import viewer_samples

from vo3.trajectory import Clue, Target, Task
from vo3.viewer import browser, gallery

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium is installed to run the page in"
)


def data_of(page: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    )


def test_a_record():
    trajectory, _ = viewer_samples.sample((95.0, 119.0), error="no such window")
    found = browser.record(trajectory, page="00001.html")
    assert (found["right"], found["answer"], found["true"]) == (True, "B", "B")
    assert found["looks"][0][:3] == [95.0, 119.0, "fine"]
    assert found["clues"] == [[100.0, 112.0]]
    assert found["iou"] == pytest.approx(12 / 24)
    assert [t[0] for t in found["turns"]] == ["call", "observation", "call", "error", "answer"]
    assert found["category"] == "clue_single_w_tool"
    assert found["reward"]["accuracy"] == 1.0
    json.dumps(found)


def test_a_question_without_truth_reward_or_turns():
    bare = eval_samples.answered(Task("mlvu/plotQA-0007", "v/a.mp4", "What?"), "it")
    found = browser.record(bare)
    assert (found["right"], found["iou"], found["reward"], found["true"]) == (
        None,
        None,
        None,
        None,
    )
    assert found["category"] == "mlvu/plotQA"
    empty = dataclasses.replace(
        bare,
        turns=(),
        outcome="void",
        answer=None,
        meta={"failure": {"kind": "video: missing", "message": "gone"}},
    )
    assert browser.record(empty)["failure"] == "video: missing: gone"
    odd = Task("t", "a.mp4", "q", None, Target("x", (), "no such source"))
    assert browser.record(eval_samples.answered(odd, "x"))["reward"] is None


def test_nothing_gets_out_of_the_data():
    evil = "</script><script>alert(1)</script><!--\u2028\ud800"
    trajectory, _ = viewer_samples.sample(question=evil, think=evil, answer=evil)
    page = browser.render(evil, [browser.record(trajectory)])
    assert page.count("<script") == 2
    assert "alert(1)</script>" not in page
    assert data_of(page)["rows"][0]["question"].startswith("</script><script>alert(1)")
    page.encode()
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=[\"']https?:", page)


def test_two_files_are_joined_by_id():
    one, two = (browser.record(eval_samples.answered(eval_samples.task("t/1"), a)) for a in "BA")
    lone = browser.record(eval_samples.answered(eval_samples.task("t/2"), "B"))
    rows = data_of(browser.render("x", [one, lone], other=[two], names=("a", "b")))
    assert rows["names"] == ["a", "b"]
    assert [r["other"] and r["other"]["right"] for r in rows["rows"]] == [False, None]


def test_the_index_holds_what_has_no_page(tmp_path):
    lines = [eval_samples.answered(eval_samples.task(f"t/{i}"), "B").dumps() for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text("\n".join(lines[:2]))
    made = gallery.write(
        tmp_path / "a.jsonl", tmp_path / "out", limit=1, frames=False, other=tmp_path / "b.jsonl"
    )
    assert (made.pages, made.shown) == (2, 4)
    found = data_of((tmp_path / "out" / "index.html").read_text())
    assert [r["page"] for r in found["rows"]] == ["00001.html", None, None, None]
    assert found["names"] == ["a.jsonl", "b.jsonl"]
    assert [r["other"] and r["other"]["page"] for r in found["rows"]] == ["beside-00001.html", None, None, None]  # fmt: skip
    assert (tmp_path / "out" / "beside-00001.html").exists()


@pytest.mark.parametrize(
    ("answer", "right", "iou"),
    [
        ('{"temporal_segment": [10, 20]}', True, 1.0),
        ('{"temporal_segment": [25.0, 10.0]}', True, 10 / 15),
        ('{"temporal_segment": [18, 28]}', False, 2 / 18),
        ('{"temporal_segment": ["x", 1]}', False, 0.0),
        ("at 12 s", False, 0.0),
    ],
)
def test_an_answered_window_is_right_when_it_meets_the_true_one(answer, right, iou):
    """As the cards count it: from an IoU of 0.5 on. Charades has no other true answer than the window."""
    target = Target("", (Clue(10.0, 20.0),), "temporal_grounding")
    asked = eval_samples.answered(Task("t", "a.mp4", "when?", None, target), answer)
    found = browser.brief(asked)
    assert found["right"] is right and found["iou"] == pytest.approx(iou, abs=1e-4)


# Runs in the page before its script: keeps errors, and drives keys and filters once the list is there.
_DRIVER = """
<script>
const errors = []; addEventListener("error", (e) => errors.push(e.message));
addEventListener("load", () => {
  const key = (k) => dispatchEvent(new KeyboardEvent("keydown", {key: k, bubbles: true}));
  const text = (s) => document.querySelector(s).textContent;
  const told = {errors, ready: +document.documentElement.dataset.ready, count: text("#count"), first: text("#detail h2")};
  key("j"); key("ArrowDown"); told.third = text("#detail h2");
  key("End"); told.last = text("#detail h2"); key("Home");
  told.rows = document.querySelectorAll(".row").length;
  const select = document.querySelector("select[name=verdict]");
  const began = performance.now();
  select.value = "wrong"; select.dispatchEvent(new Event("change"));
  told.filter = performance.now() - began;
  told.wrong = text("#count"); told.shown = text("#detail h2");
  const search = document.getElementById("search");
  search.value = "t/17 "; search.dispatchEvent(new Event("input")); told.none = text("#detail");
  document.querySelector("#filters button").click(); told.all = text("#count");
  document.body.dataset.told = JSON.stringify(told);
});
</script>
"""


def _drive(page: str, folder) -> dict:
    """What the driver saw in headless Chromium. The page's policy is taken off, so that the driver may run."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    (folder / "page.html").write_text(page.replace("<body>", "<body>" + _DRIVER))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1280,900",
        "--dump-dom",
        f"file://{folder}/page.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'data-told="([^"]*)"', done.stdout)
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))


@needs_chromium
def test_keys_and_filters(tmp_path):
    """Every 10th of 100 is wrong."""
    rows = [
        browser.record(
            eval_samples.answered(
                eval_samples.task(f"t/{i}"), "A" if i % 10 == 0 else "B", calls=i % 3
            )
        )
        for i in range(100)
    ]
    told = _drive(browser.render("many", rows), tmp_path)
    assert told["errors"] == []
    assert told["count"] == "100 trajectories, 90 of 100 right (90.0 %)"
    assert (told["first"], told["third"], told["last"]) == (
        "What is t/0?",
        "What is t/2?",
        "What is t/99?",
    )
    assert told["rows"] < 60  # the rest is not in the document
    assert told["wrong"].startswith("10 of 100 trajectories")
    assert told["none"] == "No trajectory fits these filters."
    assert told["all"] == told["count"]
