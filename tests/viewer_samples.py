"""Trajectories with frames for the viewer's tests: drawn with numpy, no video, no model."""

from __future__ import annotations

import numpy as np

from vo3.trajectory import Call, Clue, Target, Task, Trajectory, Turn
from vo3.video import Clip

DURATION = 600.0


def clip(
    start: float, end: float, *, frames: int = 4, size: tuple[int, int] = (84, 168), seed: int = 0
) -> Clip:
    """A window of noise, one colour a frame."""
    rng = np.random.default_rng(seed)
    height, width = size
    colors = rng.integers(0, 256, (frames, 1, 1, 3), np.uint8)
    times = np.linspace(start, end, frames)
    return Clip(
        frames=np.broadcast_to(colors, (frames, height, width, 3)).copy(),
        times=times,
        indices=(times * 4).astype(np.int64),
        fps=frames / (end - start),
        start=start,
        end=end,
        grid=(frames // 2, height // 14, width // 14),
        tokens=frames // 2 * (height // 28) * (width // 28),
    )


def sample(
    *windows: tuple[float, float],
    question: str = "Which digit is on the red card?",
    think: str = "I look closer.",
    answer: str = "B",
    true: str | None = "B",
    options: dict[str, str] | None = None,
    error: str | None = None,
    **fields,
) -> tuple[Trajectory, dict[int, Clip]]:
    """A trajectory that looks at each window and answers, and its clips."""
    clips = {0: clip(0.0, DURATION, frames=64, size=(28, 56))}
    options = {"A": "six", "B": "seven"} if options is None else options
    target = None if true is None else Target(true, (Clue(100.0, 112.0),), "clue_single_w_tool")
    task = Task("t1", "videos/long one.mp4", question, options, target)
    turns = [
        Turn("system", "Look, then answer."),
        Turn(
            "question",
            f"<video>\n{question}",
            observations=(clips[0].observation(0),),
            seconds=0.5,
        ),
    ]
    for number, (start, end) in enumerate(windows, start=1):
        clips[number] = clip(start, end, seed=number)
        text = f'<think>{think}</think>\n<grounding>{{"temporal_segment": [{start}, {end}]}}</grounding>'
        turns.append(
            Turn(
                "call", text, call=Call(start, end, "fine"), ids=(1, 2, 3), seconds=1.0, stop="tag"
            )
        )
        shown = (clips[number].observation(number, "fine"),)
        turns.append(Turn("observation", "seen: <video>", observations=shown, seconds=0.1))
    if error is not None:
        turns.append(Turn("call", "<grounding>?</grounding>", ids=(1,), seconds=0.2, stop="tag"))
        turns.append(Turn("error", f"failed: {error}", error=error, seconds=0.0))
    turns.append(
        Turn(
            "answer",
            f"<think>{think}</think>\n<answer>{answer}</answer>",
            answer=answer,
            ids=(4, 5),
            seconds=0.7,
        )
    )
    return Trajectory(
        task, tuple(turns), "answered", answer, model="m", prompt_pack="default", **fields
    ), clips
