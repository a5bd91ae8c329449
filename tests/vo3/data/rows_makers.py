"""Rows of every form, and small videos for them."""

from __future__ import annotations

import json
import pathlib

import av
import numpy as np
from PIL import Image

from vo3.trajectory import VIDEO_MARK

CALL = '<think>look</think>\n<grounding>{"temporal_segment": [%s, %s], "sampling_strategy": "%s"}</grounding>'
ANSWER = "<think>seen</think>\n<answer>%s</answer>"


def write_video(path: pathlib.Path, *, seconds: float = 8.0, fps: int = 10, size=(64, 96)) -> str:
    """A drifting gradient, mpeg4; returns the path."""
    height, width = size
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(round(seconds * fps)):
            image = np.add.outer(np.arange(height) + 3 * i, np.arange(width)) % 256
            image = np.repeat(image[..., None], 3, axis=2).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return str(path)


def write_frames(folder: pathlib.Path, count: int, *, size=(64, 96)) -> list[str]:
    """Image files; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for i in range(count):
        path = folder / f"frame_{i}.png"
        Image.new("RGB", size[::-1], (5 * i % 256, 40, 90)).save(path)
        files.append(str(path))
    return files


def messages(*, clips=((2, 5, "fine"),), answer="B") -> list[dict]:
    """A question, a call and an observation for each clip, an answer."""
    turns = [{"role": "user", "content": f"{VIDEO_MARK}\nWhich digit is on the red card?"}]
    for i, (start, end, strategy) in enumerate(clips):
        turns.append({"role": "assistant", "content": CALL % (start, end, strategy)})
        turns.append({"role": "user", "content": f"Observation {i + 1}: {VIDEO_MARK}"})
    return [*turns, {"role": "assistant", "content": ANSWER % answer}]


def sft_row(id_="a", *, url="a.mp4", clips=((2, 5, "fine"),), **changes) -> dict:
    """A good row: per-video dicts."""
    videos = [{"url": url, "crop": [-1, -1], "sample": None}]
    videos += [{"url": url, "crop": [start, end], "sample": s} for start, end, s in clips]
    row = {
        "id": id_,
        "system": "You answer.",
        "messages": messages(clips=clips),
        "videos": videos,
    }
    return row | changes


def rl_row(id_="q", **changes) -> dict:
    """A good RL row."""
    return {
        "doc_id": id_,
        "data_source": "clue_single_w_tool",
        "problem": "Which digit is on the red card?",
        "options": ["A. 1", "B. 2"],
        "video": "frames/q",
        "frame_fps": 4.0,
        "solution": {"answer": "B", "clue": [{"timestamp": [3.0, 5.5], "text": "the card"}]},
    } | changes


def write_jsonl(path: pathlib.Path, rows) -> pathlib.Path:
    """One row a line; strings are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path
