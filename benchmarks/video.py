"""Reading a 10 s window of a one-hour video: `python -m benchmarks.video`.

The video (720p, H.264, 25 fps, B-frames, a key frame every 250 frames) is made once in a cache folder: two minutes are encoded and
repeated by copying packets, so it takes under a minute. Compared are: decoding the whole file, PyAV's seek and decode without
anything around it, the same with the wanted frames as RGB and resized, qwen-vl-utils with decord, and VideoCrop. Every window is the same for all; the medians stand in the table.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import os
import pathlib
import random
import statistics
import threading
import time

import av
import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from vo3.video import VideoCrop
from vo3.video.deadline import Deadline
from vo3.video.decode import read_frames
from vo3.video.sampling import ClipPlan, plan_clip

FPS, GOP, HEIGHT, WIDTH = 25, 250, 720, 1280
PIECE_S, WINDOW_S = 120, 10.0
MB = 1 << 20


def make_video(path: pathlib.Path, seconds: int) -> None:
    """Writes the video if it is not there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    piece = path.with_name(f"piece-{os.getpid()}.mp4")
    whole = path.with_name(f"whole-{os.getpid()}.mp4")
    _encode(piece, min(seconds, PIECE_S))
    _repeat(piece, whole, seconds)
    piece.unlink()
    whole.rename(path)


def _encode(path: pathlib.Path, seconds: int) -> None:
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (HEIGHT // 8, 4 * WIDTH // 8, 3), np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        options = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=2"
        stream.options = {"preset": "ultrafast", "x264-params": options}
        for i in range(seconds * FPS):
            shift = (4 * i) % (3 * WIDTH)
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(texture[:, shift : shift + WIDTH]), format="rgb24"
            )
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _repeat(piece: pathlib.Path, path: pathlib.Path, seconds: int) -> None:
    with av.open(str(path), "w") as out:
        with av.open(str(piece)) as source:
            stream = out.add_stream_from_template(source.streams.video[0])
        for k in range(-(-seconds // PIECE_S)):
            with av.open(str(piece)) as source:
                video = source.streams.video[0]
                step = round(PIECE_S * k / video.time_base)
                for packet in source.demux(video):
                    if packet.dts is None:
                        continue
                    packet.pts += step
                    packet.dts += step
                    packet.stream = stream
                    out.mux(packet)


def decode_all(path: str) -> int:
    """Frames of the whole file, decoded and thrown away."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        return sum(1 for _ in container.decode(stream))


def bare(path: str, start: float, end: float) -> int:
    """Frames that PyAV decodes between the key frame before `start` and `end`."""
    count = 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        container.seek(int(start / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            count += 1
            if frame.time >= end:
                break
    return count


def bare_resized(path: str, start: float, end: float, plan: ClipPlan) -> np.ndarray:
    """The same, and the frames of the plan as RGB in its size by Pillow."""
    frames = []
    wanted = collections.deque(plan.indices.tolist())
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        container.seek(int(start / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if wanted and round(frame.time * FPS) >= wanted[0]:
                wanted.popleft()
                image = frame.to_image().resize((plan.width, plan.height), Image.BICUBIC)
                frames.append(np.asarray(image))
            if frame.time >= end:
                break
    return np.stack(frames)


def plan_window(video: VideoCrop, start: float, end: float) -> ClipPlan:
    """What VideoCrop shows of a window."""
    size = {"height": video.height, "width": video.width}
    return plan_clip(
        fps=video.fps, frames=video.frames, window=(start, end), strategy="fine", **size
    )


def ours(video: VideoCrop, start: float, end: float) -> int:
    """Frames that VideoCrop decodes for a window."""
    plan = plan_window(video, start, end)
    return read_frames(
        video._source,
        video._probe,
        plan.indices / video.fps,
        height=plan.height,
        width=plan.width,
        deadline=Deadline(60.0, "benchmark"),
    ).decoded


def qwen_vl_utils(path: str, start: float, end: float) -> None:
    """The original's reader on the same window and quota."""
    os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"
    _torchvision_operators()
    from qwen_vl_utils import fetch_video

    with contextlib.redirect_stderr(None):
        fetch_video(
            {"video": path, "video_start": start, "video_end": end, "total_pixels": 6144 * 28 * 28}
        )


_kept = []


def _torchvision_operators() -> None:
    """torchvision without its compiled half (no CPU build for this torch) imports once these two names exist."""
    import torch

    if not _kept:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)


def timed(work, windows: list[tuple[float, float]]) -> float:
    """Median seconds over the windows, after one call to warm up."""
    work(*windows[0])
    seconds = []
    for window in windows:
        began = time.perf_counter()
        work(*window)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def memory(video: VideoCrop, windows: int, rng: random.Random) -> tuple[float, float, float, float]:
    """MB: of the frames of one window, the peak over the start, the growth from early to late, and per-call Python threads."""
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    peak, running, levels = [before], True, []

    def watch() -> None:
        while running:
            peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    size = 0
    for _ in range(windows):
        start = rng.uniform(0, video.duration - WINDOW_S)
        size = max(size, video.crop(start, start + WINDOW_S, "fine").frames.nbytes)
        levels.append(process.memory_info().rss)
    running = False
    watcher.join()
    tenth = max(1, windows // 10)
    growth = statistics.median(levels[-tenth:]) - statistics.median(levels[tenth : 2 * tenth])
    return size / MB, (peak[0] - before) / MB, growth / MB, threading.active_count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vo3"
    parser.add_argument(
        "--cache", type=pathlib.Path, default=default, help="where the video is kept"
    )
    parser.add_argument("--seconds", type=int, default=3600, help="length of the video")
    parser.add_argument("--windows", type=int, default=15, help="windows to time")
    parser.add_argument("--soak", type=int, default=1000, help="windows for the memory figure")
    parser.add_argument("--skip-whole", action="store_true", help="do not decode the whole file")
    args = parser.parse_args()

    path = args.cache / f"bench-720p-{args.seconds}s.mp4"
    began = time.perf_counter()
    make_video(path, args.seconds)
    console = Console()
    console.print(
        f"{path}: {path.stat().st_size / MB:.0f} MB, ready in {time.perf_counter() - began:.1f} s"
    )
    rng = random.Random(0)
    starts = [rng.uniform(0, args.seconds - WINDOW_S) for _ in range(args.windows)]
    windows = [(start, start + WINDOW_S) for start in starts]
    name = str(path)
    video = VideoCrop(name)
    size, peak, growth, threads = memory(video, args.soak, rng)

    t_ours = timed(lambda a, b: video.crop(a, b, "fine"), windows)
    t_new = timed(lambda a, b: VideoCrop(name).crop(a, b, "fine"), windows)
    t_bare = timed(lambda a, b: bare(name, a, b), windows)
    same = lambda a, b: bare_resized(name, a, b, plan_window(video, a, b))
    t_same = timed(same, windows)
    np.testing.assert_array_equal(video.crop(*windows[0], "fine").frames, same(*windows[0]))
    n_ours = [ours(video, *window) for window in windows]
    n_bare = [bare(name, *window) for window in windows]
    window_frames = round(WINDOW_S * FPS)

    table = Table(
        title=f"a {WINDOW_S:g} s window of {args.seconds} s of 720p H.264, GOP {GOP}, medians of {len(windows)}"
    )
    for column in ("what", "ours", "compared with", "its figure", "ratio", "goal"):
        table.add_column(column, justify="left" if column in ("what", "compared with") else "right")
    if not args.skip_whole:
        began = time.perf_counter()
        decode_all(name)
        t_whole = time.perf_counter() - began
        table.add_row(
            "time",
            f"{t_ours * 1e3:.0f} ms",
            "whole file",
            f"{t_whole:.1f} s",
            f"{t_whole / t_ours:.0f}x",
            ">= 20x",
        )
    table.add_row(
        "time",
        f"{t_ours * 1e3:.0f} ms",
        "bare PyAV seek + decode",
        f"{t_bare * 1e3:.0f} ms",
        f"{t_ours / t_bare:.2f}x",
        "<= 1.2x",
    )
    table.add_row(
        "time",
        f"{t_ours * 1e3:.0f} ms",
        "and RGB, resized by Pillow",
        f"{t_same * 1e3:.0f} ms",
        f"{t_ours / t_same:.2f}x",
        "<= 1.2x",
    )
    table.add_row(
        "time, VideoCrop made anew",
        f"{t_new * 1e3:.0f} ms",
        "bare PyAV seek + decode",
        f"{t_bare * 1e3:.0f} ms",
        f"{t_new / t_bare:.2f}x",
        "",
    )
    try:
        t_qwen = timed(lambda a, b: qwen_vl_utils(name, a, b), windows[: max(3, len(windows) // 3)])
        table.add_row(
            "time",
            f"{t_ours * 1e3:.0f} ms",
            "qwen-vl-utils, decord",
            f"{t_qwen * 1e3:.0f} ms",
            f"{t_ours / t_qwen:.2f}x",
            "<= 1.2x",
        )
    except ImportError as error:
        console.print(f"qwen-vl-utils with decord is left out: {error}")
    mean = statistics.mean
    table.add_row(
        "frames decoded",
        f"{mean(n_ours):.0f}",
        "bare PyAV",
        f"{mean(n_bare):.0f}",
        f"{mean(n_ours) / mean(n_bare):.2f}x",
        "<= 1.2x",
    )
    table.add_row(
        "frames decoded, most",
        f"{max(n_ours)}",
        "window + one GOP",
        f"{window_frames + GOP}",
        f"{max(n_ours) / (window_frames + GOP):.2f}x",
        "<= 1x",
    )
    table.add_row(
        f"RSS over the start, {args.soak} windows",
        f"{peak:.0f} MB",
        "frames + 64 MB",
        f"{size + 64:.0f} MB",
        f"{peak / (size + 64):.2f}x",
        "<= 1x",
    )
    table.add_row("RSS, second to last tenth", f"{growth:+.1f} MB", "", "", "", "flat")
    table.add_row("threads left", f"{threads}", "", "", "", "1")
    console.print(table)


if __name__ == "__main__":
    main()
