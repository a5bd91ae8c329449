"""A thousand random 10 s windows of a video: most and growing memory over the start, in bytes, as JSON.

python many_windows.py FILE [WINDOWS]
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import threading

import psutil

from vo3.video import VideoCrop


def measure(path: str, windows: int) -> dict[str, float]:
    """Reads them one after the other, watched every two milliseconds."""
    crop = VideoCrop(path)
    process, rng = psutil.Process(), random.Random(0)
    gc.collect()
    before, most, levels = process.memory_info().rss, [0], []
    done = threading.Event()

    def watch():
        while not done.wait(0.002):
            most[0] = max(most[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    frames = 0
    try:
        for _ in range(windows):
            start = rng.uniform(0, crop.duration - 10)
            frames = max(frames, crop.crop(start, start + 10, "fine").frames.nbytes)
            levels.append(process.memory_info().rss)
    finally:
        done.set()
        watcher.join()
    tenth = windows // 10
    growth = statistics.median(levels[-tenth:]) - statistics.median(levels[tenth : 2 * tenth])
    return {
        "frames": frames, "most": most[0] - before, "growth": growth, "threads": threading.active_count(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int((sys.argv[2:] or ["1000"])[0]))))
