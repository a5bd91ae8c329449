"""The served page: the list at once, a trajectory when it is asked for, nothing else and to nobody else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request

import eval_samples
import pytest

from tests.vo3.data.rows_makers import write_video
from vo3.trajectory import Observation, Task, Trajectory, Turn
from vo3.viewer import server
from vo3.viewer.server import Server

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture
def served(tmp_path):
    """Three trajectories and a broken line; beside them another checkpoint's answer to the second."""
    made = [eval_samples.answered(eval_samples.task(f"t/{i}"), "B", calls=i) for i in range(3)]
    lines = [made[0].dumps(), "no trajectory", "", made[1].dumps(), made[2].dumps()]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text(
        eval_samples.answered(eval_samples.task("t/1"), "A").dumps() + "\n"
    )
    with Server(tmp_path / "a.jsonl", other=tmp_path / "b.jsonl", frames=False) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def looked_at(video: str) -> Trajectory:
    """Of a video of eight seconds, its overview alone."""
    shown = Observation(0, 0.0, 8.0, 1.0, (0.0, 7.0), (0, 70), 56, 84, (1, 4, 6), 6)
    turns = (
        Turn("question", "<video>what?", observations=(shown,)),
        Turn("answer", "<think>x</think>\n<answer>A</answer>", answer="A"),
    )
    return Trajectory(Task("t", video, "what?"), turns, "answered", answer="A")


def get(server: Server, path: str, **headers: str) -> str:
    request = urllib.request.Request(server.url + path, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as reply:
        return reply.read().decode()


def test_the_list_holds_no_trajectory_yet(served):
    page = get(served, "")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert [r["n"] for r in data["rows"]] == [0, 1, 2] and "turns" not in data["rows"][0]
    assert data["rows"][1]["other"]["right"] is False and data["rows"][0]["other"] is None
    assert "connect-src 'self'" in page and "default-src 'none'" in page
    assert len(served.problems) == 1 and "line 2" in served.problems[0]


def test_a_record_and_a_trace(served):
    found = json.loads(get(served, "record?n=1"))
    assert found["id"] == "t/1" and [t[0] for t in found["turns"]][-1] == "answer"
    assert (found["page"], found["other"]["page"]) == ("trace?n=1", "other?n=0")
    assert found["other"]["turns"] and found["frames"] == {}
    assert json.loads(get(served, "record?n=2"))["other"] is None
    assert "What is t/1?" in get(served, "trace?n=1")
    assert "It answered <strong>A" in get(served, "other?n=0")


@pytest.mark.parametrize("path", ["record?n=9", "record?n=-1", "record?n=x", "record", "nope?n=0", "trace/../../etc/passwd", "other?n=1"])  # fmt: skip
def test_what_is_not_there(served, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(served, path)


def test_a_page_elsewhere_gets_nothing(served):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(served, "record?n=0", Host="evil.example")


def test_frames_are_kept_as_sent_and_a_failed_read_is_tried_again(tmp_path, monkeypatch):
    video, trajectory = tmp_path / "v.mp4", looked_at("v.mp4")
    (tmp_path / "a.jsonl").write_text(f"{trajectory.dumps()}\n{trajectory.dumps()}\n")
    shelf = server.Shelf(tmp_path / "a.jsonl", videos=tmp_path, frames=True)
    assert shelf.record(0, "trace")["frames"] == {} and b"<img" not in shelf.page(0)
    write_video(video)
    seen = shelf.record(0, "trace")
    assert seen["frames"]["0"] and b"<img" in shelf.page(0)
    video.unlink()
    assert shelf.record(0, "trace") == seen and shelf.record(1, "trace")["frames"] == {}
    write_video(video)
    shelf.page(1)
    # Little room: the first goes, and is made again.
    monkeypatch.setattr(server, "_KEPT", 3 * len(shelf.page(1)))
    assert shelf.record(0, "trace") == seen
    video.unlink()
    shelf = server.Shelf(tmp_path / "a.jsonl", videos=tmp_path, frames=True)
    write_video(video)
    shelf.page(0), shelf.page(1)
    video.unlink()
    assert b"<img" in shelf.page(1) and b"<img" not in shelf.page(0)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to run the page in")
def test_the_page_fetches_what_it_shows(served):
    """Its policy on: the script runs, and asks its own server."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom", served.url,
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout
    detail = shown[shown.index('id="detail"') : shown.index("</article>")]
    assert "What is t/0?" in detail and "the whole trace" in detail and "reading" not in detail
