"""A few ClueWorld questions for other people's evaluators, the answers of `vo3.evals.runner` on them, and the hosts' environments."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess

import pytest
import rollout_fakes
import serve_fakes

from vo3.evals import config as config_lib
from vo3.evals import runner
from vo3.serve.settings import Limits, Settings
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


def card_rows(folder: pathlib.Path) -> list[dict]:
    """Three questions with two options each, on small videos written to this folder."""
    folder.mkdir()
    rows = []
    for number, answer in enumerate("BAB"):
        path = folder / f"{number}.mp4"
        rollout_fakes.write_mp4(path, seconds=2, size=(32, 48), seed=number)
        prompt = f"Which digit is on card {number}?\nA. six\nB. seven\n{POST_PROMPT}"
        rows.append({"id": str(number), "video": str(path), "prompt": prompt, "answer": answer})
    return rows


def scripted(root: pathlib.Path) -> tuple[serve_fakes.ScriptedEngine, Settings]:
    """An engine that answers B, and the settings of a server of these videos."""
    settings = Settings("clueworld", roots=(str(root.resolve()),), limits=Limits(slots=2))
    return serve_fakes.ScriptedEngine(), settings


def check_cards(jobs: list) -> None:
    """The server was asked all of `card_rows`, the file by its name and the options as options."""
    asked = {job.task.question.split("?")[0] for job in jobs}
    assert asked == {f"Which digit is on card {number}" for number in range(3)}
    for job in jobs:
        assert job.task.options == {"A": "six", "B": "seven"}
        assert job.task.video.startswith("file://")


def page_block(page: str, word: str) -> str:
    """The JSON on a page of the documentation that holds this word."""
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found
