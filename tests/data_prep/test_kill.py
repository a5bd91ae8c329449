"""Killed anywhere: the same rows, and no reply that was stored is asked for again."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from stub_server import KEY, Serving, Stub, status

from configs.data_prep import get_config
from data_prep import videos
from data_prep.cache import SqliteCache
from data_prep.patience import EndpointFailed
from data_prep.schema import Triplet, VideoInfo
from data_prep.store import Store
from data_prep.synthesize import synthesize

ROOT = pathlib.Path(__file__).resolve().parents[2]


def configured(tmp_path: pathlib.Path, url: str, *, rows: int):
    """A run against the stub: one small video, questions that carry their answers."""
    import numpy as np

    from vo3.video import VideoCrop  # noqa: F401  (the run below needs it: fail here, not in the child)

    videos = tmp_path / "videos"
    if not videos.exists():
        import av

        videos.mkdir(parents=True)
        with av.open(str(videos / "v.mp4"), "w") as out:
            stream = out.add_stream("mpeg4", rate=2)
            stream.width, stream.height, stream.pix_fmt = 56, 56, "yuv420p"
            for n in range(40):
                frame = np.full((56, 56, 3), 6 * n, np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            out.mux(stream.encode(None))
        with (tmp_path / "triplets.jsonl").open("w") as out:
            for n in range(rows):
                triplet = Triplet(
                    id=f"t{n}", video="v.mp4", question=f"Item {n * 7919} {n}: Pick {'ABCD'[n % 4]}, as the sign says?",
                    answer="ABCD"[n % 4], options={k: f"{k} {n}" for k in "ABCD"}, source="test", info=VideoInfo(2.0, 40, 56, 56),
                )  # fmt: skip
                out.write(json.dumps(triplet.to_json()) + "\n")
    config = get_config("openai")
    config.source.path = str(tmp_path / "triplets.jsonl")
    config.videos = str(videos)
    config.admission.similarity = 2.0
    config.model.name, config.model.base_url = "stub", url
    config.model.api_key_env = "STUB_KEY"
    config.model.frames.whole = config.model.frames.clip = 4
    config.model.frames.side = 56
    config.limits.first_wait = 0.05
    config.under_way, config.limits.concurrency = 8, 8
    return config


def test_a_run_over_http_makes_rows_and_keeps_the_key_out_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    stub = Stub()
    with Serving(stub) as url:
        outcome = synthesize(configured(tmp_path, url, rows=4), tmp_path / "run")
    assert outcome.files == {"trajectories.jsonl": 4, "rl.jsonl": 4, "rejected.jsonl": 0}
    assert set(stub.calls.values()) == {1}
    written = [p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert len(written) >= 6 and not any(KEY.encode() in data for data in written)


def test_rows_without_a_reply_have_no_verdict_and_are_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    stub = Stub()
    with Serving(stub) as url:
        config = configured(tmp_path, url, rows=2)
        config.limits.attempts = 1
        stub.script = [status(500)]
        first = synthesize(config, tmp_path / "run")
        assert first.progress.failed == 1 and first.files["trajectories.jsonl"] == 1
        second = synthesize(config, tmp_path / "run")
    assert second.progress.failed == 0 and second.files["trajectories.jsonl"] == 2


def test_a_refused_key_ends_the_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    stub = Stub()
    with Serving(stub) as url:
        stub.script = [status(401)] * 100
        with pytest.raises(EndpointFailed, match="401") as error:
            synthesize(configured(tmp_path, url, rows=30), tmp_path / "run")
    assert KEY not in str(error.value) and sum(stub.calls.values()) <= 8


@pytest.mark.parametrize("code", [402, 404])
def test_an_endpoint_that_refuses_everything_rejects_nothing(tmp_path, monkeypatch, code):
    monkeypatch.setenv("STUB_KEY", KEY)
    stub = Stub()
    with Serving(stub) as url:
        config = configured(tmp_path, url, rows=70)
        stub.script = [status(code)] * 100
        with pytest.raises(EndpointFailed, match=rf"50 rows .* HTTP {code}: .*base_url .*credits"):
            synthesize(config, tmp_path / "run")
        # Among others it costs its row nothing but this run.
        stub.script = [status(code)] * 3
        second = synthesize(config, tmp_path / "run")
        assert second.progress.failed == 3 and second.files["rejected.jsonl"] == 0
        third = synthesize(config, tmp_path / "run")
    assert third.progress.failed == 0 and third.files["trajectories.jsonl"] == 70


def ask_about(tmp_path: pathlib.Path, video) -> None:
    """Gives row n of the source the video `video(n)`; every other row tells its grid."""
    path = tmp_path / "triplets.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    for n, row in enumerate(rows):
        row["video"] = video(n)
        if n % 2:
            row["info"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_missing_video_waits_and_stops_nothing(tmp_path, monkeypatch):
    """However many questions it has."""
    monkeypatch.setenv("STUB_KEY", KEY)
    stub = Stub()
    with Serving(stub) as url:
        config = configured(tmp_path, url, rows=64)
        ask_about(tmp_path, lambda n: "later.mp4" if n < 60 else "v.mp4")
        first = synthesize(config, tmp_path / "run")
        assert first.files == {"trajectories.jsonl": 4, "rl.jsonl": 4, "rejected.jsonl": 0}
        assert first.progress.failed == 60 and "config.videos" in first.progress.failure
        assert json.loads((tmp_path / "run" / "report.json").read_text())["waiting"] == 60
        videos = tmp_path / "videos"
        (videos / "later.mp4").write_bytes((videos / "v.mp4").read_bytes())
        second = synthesize(config, tmp_path / "run")
    assert second.progress.failed == 0 and second.files["trajectories.jsonl"] == 64


def test_videos_that_are_not_mounted_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    stub = Stub()
    with Serving(stub) as url:
        config = configured(tmp_path, url, rows=70)
        ask_about(tmp_path, lambda n: f"{n}.mp4")
        with pytest.raises(EndpointFailed, match=r"50 videos .*config\.videos is mounted"):
            synthesize(config, tmp_path / "run")
    store = Store(tmp_path / "run")
    assert store.counts() == (70, 0, 0) and not stub.calls


def test_storage_that_fails_is_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    stub, real, failures = (
        Stub(),
        type(videos.epath.Path("x")).open,
        [OSError(5, "Input/output error")],
    )

    def fails_once(path, *args, **options):
        if path.name == "v.mp4" and failures:
            raise failures.pop()
        return real(path, *args, **options)

    with Serving(stub) as url:
        config = configured(tmp_path, url, rows=2)
        videos._identity.cache_clear()
        monkeypatch.setattr(type(videos.epath.Path("x")), "open", fails_once)
        first = synthesize(config, tmp_path / "run")
        assert first.progress.failed == 1 and "Input/output error" in first.progress.failure
        second = synthesize(config, tmp_path / "run")
    assert second.progress.failed == 0 and second.files["trajectories.jsonl"] == 2


CHILD = """
import sys, ml_collections, json
from data_prep.synthesize import synthesize
config = ml_collections.ConfigDict(json.loads(open(sys.argv[1]).read()))
synthesize(config, sys.argv[2])
"""


@pytest.mark.soak
def test_kill_minus_nine_at_ten_moments(tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    stub, rng, rows = Stub(delay=0.05), random.Random(0), 60
    with Serving(stub) as url:
        config = configured(tmp_path, url, rows=rows)
        whole = synthesize(config, tmp_path / "whole")
        assert whole.files["trajectories.jsonl"] == rows
        once = dict(stub.calls)
        stub.calls.clear()
        stub.finished.clear()
        (tmp_path / "config.json").write_text(config.to_json_best_effort())
        run = tmp_path / "killed"
        kills, repeated_stored, in_flight = 0, 0, 0
        while True:
            known = stored(run)
            before = dict(stub.calls)
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(tmp_path / "config.json"), str(run)],
                cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            if kills < 10:
                # Moments count from the child's first call: its start takes seconds, and nothing happens in it.
                target = sum(before.values()) + rng.randint(1, len(once) // 11)
                while sum(stub.calls.values()) < target and child.poll() is None:
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.08))
                child.send_signal(signal.SIGKILL)
                kills += 1
            code = child.wait(300)
            repeated_stored += sum(stub.calls[k] > before.get(k, 0) for k in known)
            in_flight += sum(stub.calls[k] > 1 and before.get(k, 0) == 1 for k in stub.calls)
            if code == 0:
                break
    assert kills == 10
    for name in ("trajectories.jsonl", "rl.jsonl", "rejected.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert set(stub.calls) == set(once)
    print(
        f"{len(once)} calls, {repeated_stored} stored ones repeated, {in_flight} that were under way at a kill"
    )
    assert repeated_stored == 0
    # What was under way when the process died has no reply here; it carries the same idempotency key again.
    assert in_flight <= kills * 8


def stored(run: pathlib.Path) -> set[str]:
    """Keys of the replies that are in the cache."""
    if not (run / "replies.sqlite").exists():
        return set()
    cache = SqliteCache(run / "replies.sqlite")
    try:
        return {key for (key,) in cache._db.execute("SELECT key FROM replies")}
    finally:
        cache.close()
