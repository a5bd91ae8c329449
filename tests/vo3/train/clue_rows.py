"""Rows with real mp4 files: a few short worlds, questions on them, in the published row format."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from vo3.chat import PromptPack
from vo3.clueworld import tasks, trajectories
from vo3.clueworld.film import write_video
from vo3.clueworld.views import crop_policy
from vo3.clueworld.world import make_world


def write_rows(
    folder: pathlib.Path, *, worlds: int = 2, questions: int = 4, duration: int = 120
) -> pathlib.Path:
    """`rows.jsonl` and its videos in `folder`; every other question needs the tool."""
    pack, policy, lines = PromptPack.load("clueworld"), crop_policy(), []
    for seed in range(worlds):
        world = make_world(seed, duration=duration)
        name = f"world-{seed}.mp4"
        write_video(world, folder / name, crf=30)
        rng = np.random.default_rng(seed)
        for i in range(questions):
            kind = "digit" if i % 2 else tasks.OVERVIEW_KINDS[0]
            question = tasks.KINDS[kind](world, rng)
            task = tasks.make_task(
                world, question, video=name, task_id=f"{seed}-{i}", rng=rng, options=bool(i % 2)
            )
            told = trajectories.make_trajectory(world, question, task, pack=pack, policy=policy)
            lines.append(row_of(told, name))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def row_of(trajectory, name: str) -> dict:
    shown = trajectory.observations
    return {
        "id": trajectory.task.id,
        "system": trajectory.turns[0].text,
        "messages": [{"role": t.role, "content": t.text} for t in trajectory.turns[1:]],
        "videos": [name, *({"url": name, "crop": [o.start, o.end], "sample": "fine"} for o in shown[1:])],
    }  # fmt: skip
