"""Paths, bytes, file objects and remote files; time limits; threads; memory."""

from __future__ import annotations

import concurrent.futures
import gc
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time

import av
import numpy as np
import psutil
import pytest
import video_makers

from vo3.video import CropPolicy, VideoCrop, VideoError
from vo3.video import source as sources
from vo3.video.deadline import Deadline, within


def same(a, b):
    return (a.frames == b.frames).all() and (a.times == b.times).all() and a.grid == b.grid


class Counting(io.BytesIO):
    """Counts what is read; `stall` makes it wait, `fail` raise."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self.bytes_read = self.reads = 0
        self.stall: threading.Event | None = None
        self.delay_s = 0.0
        self.fail: Exception | None = None

    def read(self, size=-1):
        if self.stall is not None:
            self.stall.wait()
        if self.fail is not None:
            raise self.fail
        time.sleep(self.delay_s)
        data = super().read(size)
        self.bytes_read += len(data)
        self.reads += 1
        return data


def test_percent_escapes_of_a_file_address_are_decoded_where_no_file_is_called_so(tmp_path):
    (tmp_path / "a b%41.mp4").touch()
    (tmp_path / "c%20d.mp4").touch()
    assert sources.plain_path(f"file://{tmp_path}/a%20b%2541.mp4") == f"{tmp_path}/a b%41.mp4"
    for name in ("a b%41.mp4", "c%20d.mp4"):
        assert sources.plain_path(f"file://{tmp_path}/{name}") == f"{tmp_path}/{name}"
    assert sources.plain_path("a%20b.mp4") == "a%20b.mp4"  # a path is no address


def test_every_source_gives_the_same(video, tmp_path):
    path = video("gop12.mp4")
    wanted = VideoCrop(str(path)).crop(5, 9, "coarse")
    assert same(VideoCrop(path).crop(5, 9, "coarse"), wanted)
    assert same(VideoCrop(f"file://{path}").crop(5, 9, "coarse"), wanted)
    assert same(VideoCrop(path.read_bytes()).crop(5, 9, "coarse"), wanted)
    assert same(VideoCrop(memoryview(path.read_bytes())).crop(5, 9, "coarse"), wanted)
    with path.open("rb") as file:
        crop = VideoCrop(file)
        assert same(crop.crop(5, 9, "coarse"), wanted)
        assert same(crop.crop(5, 9, "coarse"), wanted)
        assert not file.closed
    odd = tmp_path / "a: b %d #1 .mp4"
    odd.write_bytes(path.read_bytes())
    assert same(VideoCrop(odd).crop(5, 9, "coarse"), wanted)


@pytest.mark.parametrize("name", ["gop250.mp4", "plain.mkv", "live.webm", "mpeg4_b.avi"])
def test_file_objects_of_every_container(video, name):
    path = video(name)
    assert same(VideoCrop(path.read_bytes()).overview(), VideoCrop(path).overview())


class Bucket:
    """A path of an object store, as etils.epath gives it: it only opens."""

    suffix = ".mp4"

    def __init__(self, data: bytes):
        self.data = data
        self.opened: list[Counting] = []

    def __fspath__(self):
        return "gs://bucket/video.mp4"

    def open(self, mode):
        assert mode == "rb"
        self.opened.append(Counting(self.data))
        return self.opened[-1]


def test_a_remote_file_is_read_by_ranges(tmp_path, monkeypatch):
    def noisy(i, height, width):
        return np.random.default_rng(i).integers(0, 256, (height, width, 3)).astype(np.uint8)

    path = tmp_path / "large.mov"
    video_makers.write(
        path,
        frames=100,
        fps=10,
        codec="rawvideo",
        gop=1,
        height=192,
        width=256,
        pix_fmt="rgb24",
        image=noisy,
    )
    bucket = Bucket(path.read_bytes())
    assert len(bucket.data) > 12 << 20
    monkeypatch.setattr(sources.epath, "Path", lambda text: bucket)
    crop = VideoCrop("gs://bucket/video.mp4")
    bucket.opened.clear()
    clip = crop.crop(4, 6, "coarse")
    assert same(clip, VideoCrop(path).crop(4, 6, "coarse"))
    (file,) = bucket.opened
    assert file.closed
    assert file.bytes_read < 0.5 * len(bucket.data)
    assert file.reads < 30


def test_a_remote_file_that_cannot_be_opened():
    class Nowhere(Bucket):
        def open(self, mode):
            raise RuntimeError("no credentials")

    with pytest.raises(VideoError, match=r"gs://bucket/video\.mp4.*no credentials") as caught:
        with sources.RemoteSource(Nowhere(b"")).open(Deadline(5, "x")):
            pass
    assert caught.value.kind == "read"


def test_a_read_that_fails(video):
    file = Counting(video("gop12.mp4").read_bytes())
    crop = VideoCrop(file)
    file.fail = OSError("the disk is gone")
    with pytest.raises(VideoError, match="the disk is gone") as caught:
        crop.overview()
    assert caught.value.kind == "read"
    file.fail = None
    assert len(crop.overview().frames) == 56


def test_a_file_object_that_cannot_seek():
    class Socket(io.RawIOBase):
        def readable(self):
            return True

        def read(self, size=-1):
            return b""

    with pytest.raises(VideoError, match="seek") as caught:
        VideoCrop(Socket())
    assert caught.value.kind == "source"


# ---- time limits


def test_a_read_that_never_returns(video):
    """The caller is free again in time, and so is everybody else."""
    file = Counting(video("gop12.mp4").read_bytes())
    crop = VideoCrop(file, timeout_s=0.5)
    file.stall = threading.Event()
    for _ in range(2):  # the second one waits for the first one's turn
        began = time.monotonic()
        with pytest.raises(VideoError, match=r"0\.5 s") as caught:
            crop.overview()
        assert caught.value.kind == "timeout" and "timeout_s" in caught.value.remedy
        assert time.monotonic() - began < 5
    file.stall.set()
    file.stall = None
    crop.timeout_s = 120.0
    assert len(crop.overview().frames) == 56


def test_opening_has_a_limit_too(video):
    file = Counting(video("gop12.mp4").read_bytes())
    file.stall = threading.Event()
    began = time.monotonic()
    with pytest.raises(VideoError) as caught:
        VideoCrop(file, timeout_s=0.5)
    assert caught.value.kind == "timeout" and time.monotonic() - began < 5
    file.stall.set()


def test_a_demuxer_that_is_stopped_may_not_call_the_file_broken(video, monkeypatch):
    def stopped(*_, **__):
        time.sleep(0.05)
        raise av.error.InvalidDataError(1, "Invalid data found when processing input")

    path = str(video("gop250.mp4"))
    monkeypatch.setattr(sources.av, "open", stopped)
    for seconds, kind in ((0.02, "timeout"), (20.0, "format")):
        with pytest.raises(VideoError) as caught:
            with sources._opened(path, "v.mp4", Deadline(seconds, "v.mp4"), None):
                pass
        assert caught.value.kind == kind


@pytest.mark.parametrize("remote", [False, True])
def test_slow_work_is_stopped(video, remote):
    """Nothing blocks, there is just too much to do: the loop looks at the clock, and its thread ends."""
    path = video("gop250.mp4")
    crop = VideoCrop(Counting(path.read_bytes()) if remote else path)
    crop.timeout_s = 0.002
    before = threading.active_count()
    with pytest.raises(VideoError) as caught:
        crop.overview()
    assert caught.value.kind == "timeout"
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_the_limit_must_be_one(video):
    with pytest.raises(ValueError, match="timeout_s"):
        VideoCrop(video("gop12.mp4"), timeout_s=0)


def test_errors_of_the_work_reach_the_caller():
    with pytest.raises(KeyError, match="inside"):
        within(Deadline(5, "x"), lambda: {}["inside"])
    assert within(Deadline(5, "x"), lambda: 7) == 7


# ---- threads and processes


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_many_threads_on_one_video(video, kind):
    path = video("gop12.mp4")
    source = {"path": path, "bytes": path.read_bytes(), "file": io.BytesIO(path.read_bytes())}[kind]
    crop = VideoCrop(source)
    windows = [(k, k + 2.5) for k in range(0, 24, 2)]
    wanted = [VideoCrop(path).crop(*window, "coarse") for window in windows]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda window: crop.crop(*window, "coarse"), windows * 2))
    assert all(same(a, b) for a, b in zip(got, wanted * 2, strict=True))


def test_it_can_be_sent_to_another_process(video):
    path = video("gop12.mp4")
    for source in (path, path.read_bytes()):
        crop = VideoCrop(source, timeout_s=17)
        again = pickle.loads(pickle.dumps(crop))
        assert same(again.overview(), crop.overview()) and again.timeout_s == 17


def test_files_are_closed(video):
    path = str(video("gop12.mp4"))
    crop = VideoCrop(path)
    crop.overview()
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the listing's own descriptor
            continue
    assert path not in links


def test_memory_stays_flat(video):
    """No cache grows: hundreds of windows later the process is as large as after the first ones."""
    crop = VideoCrop(video("gop250.mp4"))
    process = psutil.Process()

    def some(count):
        for i in range(count):
            crop.crop(i % 20, i % 20 + 3, "coarse")
        gc.collect()
        return process.memory_info().rss

    before = some(40)
    assert some(150) - before < 24 << 20
    assert threading.active_count() < 40


def test_a_clip_that_nobody_holds_gives_its_memory_back(video):
    """Also when the next call runs on another thread, whose allocator knows nothing of what was freed."""
    crop = VideoCrop(video("gop250.mp4"), CropPolicy(crop_min=6000))
    process = psutil.Process()
    for start in range(5):
        clip = crop.crop(start, start + 6, "fine")
        size = clip.frames.nbytes
        held = process.memory_info().rss
        del clip
        gc.collect()
        assert size > 16 << 20
        assert held - process.memory_info().rss > 0.9 * size


@pytest.mark.soak
def test_memory_over_a_thousand_random_windows(tmp_path):
    """720p: at no moment more than the frames of the window and 64 MB over the start, and no growth."""
    path = tmp_path / "large.mp4"
    video_makers.write(path, frames=750, height=720, width=1280, image=video_makers.large_picture)
    # In a process of its own: what jax and the tests' type checks keep is not VideoCrop's.
    command = [sys.executable, str(pathlib.Path(__file__).with_name("many_windows.py")), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    got = json.loads(done.stdout)
    assert got["most"] <= got["frames"] + (64 << 20)
    assert got["growth"] < 4 << 20
    assert got["threads"] < 40


def test_a_path_may_be_relative_or_of_the_user(video, monkeypatch, tmp_path):
    data = video("two_frames.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("a.mp4", pathlib.Path("a.mp4"), "~/a.mp4"):
        assert VideoCrop(path).frames == 2
