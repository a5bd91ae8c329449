"""A few ClueWorld questions for other people's evaluators, the answers of `vo3.evals.runner` on them, and the hosts' environments."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest

from vo3.evals import config as config_lib
from vo3.evals import runner
from vo3.train.config import override
from vo3.trajectory import Trajectory

ROOT = pathlib.Path(__file__).resolve().parents[3]
QUESTIONS = 5
# A world of two minutes: its video is soon made.
SETTINGS = {"clueworld.worlds": 1, "clueworld.first": 50_017, "max_new_tokens": 160, "max_turns": 4}
POST_PROMPT = "Answer with the option's letter from the given choices directly."
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}


def environment(name: str) -> pathlib.Path:
    """The interpreter of a host's environment; `make` installs what is missing."""
    done = subprocess.run(
        ["make", "--no-print-directory", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"make {name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return ROOT / f".venv-{name}" / "bin" / "python"


def run(command: list[str], *, cwd: pathlib.Path, **variables: str) -> str:
    """Runs a command of a host and returns what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **OFFLINE, **variables},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    # lmms-eval ends with 0 after an error that it has logged.
    assert done.returncode == 0 and "Traceback" not in done.stderr, (
        done.stdout[-3000:],
        done.stderr[-3000:],
    )
    return done.stdout


def runner_answers(folder: pathlib.Path, **settings) -> list[Trajectory]:
    """What the project's own evaluation answers."""
    config = override(config_lib.defaults(), **SETTINGS, limit=QUESTIONS, data_root=str(folder / "data"), **settings)  # fmt: skip
    runner.evaluate(config, folder / "own")
    lines = next((folder / "own").glob("clueworld/*/trajectories.jsonl")).read_text().splitlines()
    return [Trajectory.loads(line) for line in lines]


def prompt_of(trajectory: Trajectory) -> str:
    """Question, options and instructions in one text, as benchmarks write them."""
    task = trajectory.task
    options = [f"{letter}. {text}" for letter, text in (task.options or {}).items()]
    return "\n".join([task.question, *options, *([POST_PROMPT] if options else [])])


def rows_of(answers: list[Trajectory]) -> list[dict]:
    """The questions as rows of a data set."""
    return [
        {"id": t.task.id, "video": t.task.video, "prompt": prompt_of(t), "answer": t.task.target.answer}
        for t in answers
    ]  # fmt: skip


def as_lines(rows: list[dict]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)
