"""A small world for the loader: a few seconds of video, trajectories on them, a source and a plan that can be picked."""

from __future__ import annotations

import dataclasses
import pathlib
import time

import av
import numpy as np

from vo3.clueworld.config import model_config
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.data.clips import ClipRef, open_observation, with_refs
from vo3.data.plan import StepPlan
from vo3.trajectory import Task, Trajectory, Turn
from vo3.video import CropPolicy

VISION = model_config().vision
TOKENIZER = build_tokenizer()
POLICY = CropPolicy(
    max_frames=8, max_crop_frames=4, overview_quota=16, overview_min=4,
    coarse_quota=4, medium_quota=8, fine_quota=12, crop_min=2,
)  # fmt: skip
LENGTH, PATCHES = 256, 256


def write_video(path: pathlib.Path, *, seed: int = 0, frames: int = 40, fps: int = 4) -> str:
    """A textured video of 96 x 64 pixels that moves."""
    texture = np.random.default_rng(seed).integers(0, 255, (64, 200, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "g": "10"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for i in range(frames):
            shift = i % 100
            image = np.ascontiguousarray(texture[:, shift : shift + 96])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return str(path)


def trajectory(number: int, video: str, *, clip: bool = True) -> Trajectory:
    """A question on the video, with one call unless `clip` is False; observations are still open."""
    refs = [ClipRef(video)]
    turns = [
        Turn("system", "Answer the question ."),
        Turn("question", "<video> Which digit ?", observations=(open_observation(0, refs[0]),)),
    ]
    if clip:
        refs.append(ClipRef(video, (1.0 + number % 3, 5.0 + number % 3), "fine"))
        say = '<think>look</think>\n<grounding>{"temporal_segment": [1, 5], "sampling_strategy": "fine"}</grounding>'
        seen = (open_observation(1, refs[1]),)
        turns += [
            Turn("call", say),
            Turn("observation", "Observation 1 : <video>", observations=seen),
        ]
    turns.append(Turn("answer", f"<think>seen</think>\n<answer>{number % 10}</answer>", answer="-"))
    task = Task(id=f"row-{number}", video=video, question="Which digit?")
    return with_refs(Trajectory(task, tuple(turns), outcome="answered"), refs)


@dataclasses.dataclass
class Source:
    """Trajectories by number; those of `gone` cannot be read, as after a shard has vanished."""

    items: list[Trajectory]
    gone: frozenset[int] = frozenset()
    slow: float = 0.0
    fingerprint: str = "-"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Trajectory:
        time.sleep(self.slow)
        if index in self.gone:
            raise FileNotFoundError(f"shard of row {index} does not exist")
        return self.items[index]


@dataclasses.dataclass(frozen=True)
class ListedPlan:
    """Steps as they are listed, over and over."""

    steps: tuple[tuple[tuple[int, ...], ...], ...]
    length: int = LENGTH
    patches: int = PATCHES

    def step(self, index: int) -> StepPlan:
        rows = self.steps[index % len(self.steps)]
        return StepPlan(index, self.length, self.patches, rows)
