"""Other evaluators' prompts as questions, and their settings as the evaluation's; the hosts themselves are in the soak tests."""

from __future__ import annotations

import types

import numpy as np
import pytest
from etils import epath

from tests.gcs_fake import fake_gcs
from vo3 import plugins
from vo3.chat import PromptPack
from vo3.evals import runner
from vo3.evals.journal import JournalError, failed
from vo3.models import CheckpointError
from vo3.plugins import vlmevalkit
from vo3.plugins.questions import Answers, settings_of, split_question
from vo3.train.config import ConfigError
from vo3.trajectory import Task, Trajectory
from vo3.video import CropPolicy


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("What is it?\nA. a cat\nB. a dog\n", "What is it?", ["a cat", "a dog"]),
        ("What is it?\n(A) a cat\n(B) a dog\n\nThe best answer is:", "What is it?", ["a cat", "a dog"]),
        ("Q?\nA) 1\nB) 2\nC) 3\nAnswer with the letter.", "Q?", ["1", "2", "3"]),
        ("Q?\nOptions:\n  A: one \n  B: two", "Q?", ["one", "two"]),
        # An example before the options, and an option before the question.
        ("Like\nA. x\nB. y\n\nQ?\nA. one\nB. two\nC. three", "Like\nA. x\nB. y\n\nQ?", ["one", "two", "three"]),
        ("Carriage A. and B. are seen. Which?\nA. the first\nB. the second", "Carriage A. and B. are seen. Which?", ["the first", "the second"]),
    ],
)  # fmt: skip
def test_options_are_taken_out(text, question, options):
    assert split_question(text) == (question, dict(zip("ABC", options, strict=False)))


@pytest.mark.parametrize(
    "text",
    ["What is it?", "Who?\nA. only one", "B. x\nA. y", "What?\nA. x\nC. z", "A. x\nB. y", "", "Is it A. Smith?\nOr B. Jones?"],
)  # fmt: skip
def test_no_options_are_made_up(text):
    assert split_question(text) == (text, None)


def test_values_of_a_command_line_have_the_configs_types():
    given = {"max_turns": "4", "temperature": "1", "checkpoint": "DIR", "partial": "True", "time_limit": 5, "clueworld.worlds": "2"}  # fmt: skip
    assert settings_of(given) == {"max_turns": 4, "temperature": 1.0, "checkpoint": "DIR", "partial": True, "time_limit": 5.0, "clueworld.worlds": 2}  # fmt: skip


class Asker:
    def __init__(self):
        self.opened = []

    def ask(self, videos):
        for asked in videos:
            self.opened.append(asked.source)
            for task in asked.tasks:
                if task.video == "lost.mp4":
                    yield failed(task, "video: missing", "no such file")
                else:
                    yield Trajectory(task, (), "answered", answer=task.question[-1])


@pytest.fixture
def asker(monkeypatch):
    model = types.SimpleNamespace(
        crop_policy=CropPolicy("eval"),
        config=types.SimpleNamespace(vision=types.SimpleNamespace(token_size=28)),
        embed=types.SimpleNamespace(table=np.zeros(1)),
    )
    made = Asker()
    monkeypatch.setattr(runner, "load", lambda config: (model, PromptPack.load()))
    monkeypatch.setattr(runner, "askers", lambda modes, model, config: [made])
    return made


def test_questions_are_asked_by_video_and_answered_in_order(asker, tmp_path):
    answers = Answers(trajectories=tmp_path / "kept.jsonl", dialect="longvt", max_new_tokens="8")
    assert answers.config.max_new_tokens == 8
    tasks = [Task(str(i), video, f"question {i}") for i, video in enumerate(("a", "lost.mp4", "a", "b"))]  # fmt: skip
    got = answers.ask(tasks)
    assert [t.task.id for t in got] == ["0", "1", "2", "3"]
    assert [t.answer for t in got] == ["0", None, "2", "3"] and asker.opened == [
        "a",
        "lost.mp4",
        "b",
    ]
    lines = (tmp_path / "kept.jsonl").read_text().splitlines()
    assert {Trajectory.loads(line).task.id for line in lines} == {"0", "1", "2", "3"}
    with pytest.raises(JournalError, match=r"kept\.jsonl is being written to by another run"):
        Answers(trajectories=tmp_path / "kept.jsonl")
    answers.close()
    for _ in range(2):  # a refusal leaves the file to others
        with pytest.raises(ConfigError, match=r"kept\.jsonl holds 4 of an earlier run"):
            Answers(trajectories=tmp_path / "kept.jsonl")


def test_a_model_that_cannot_be_loaded_leaves_the_file_to_others(asker, monkeypatch, tmp_path):
    def refuse(config):
        raise CheckpointError("no such checkpoint")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "load", refuse)
        with pytest.raises(CheckpointError) as refused:
            Answers(trajectories=tmp_path / "kept.jsonl")
    with Answers(trajectories=tmp_path / "kept.jsonl") as answers:
        answers.ask([Task("0", "a", "question 0")])
    assert refused.value and len((tmp_path / "kept.jsonl").read_text().splitlines()) == 1


def test_conversations_are_on_the_object_store_when_a_batch_is_answered(asker):
    with fake_gcs() as files:
        answers = Answers(trajectories="gs://bucket/kept.jsonl")
        for i in range(2):
            answers.ask([Task(str(i), "a", "question")])
            kept = epath.Path("gs://bucket/kept.jsonl").read_text().splitlines()
            assert [Trajectory.loads(line).task.id for line in kept] == ["0", "1"][: i + 1], files


def test_a_wrong_setting_names_the_nearest(asker):
    with pytest.raises(ConfigError, match=r"nearest is config\.checkpoint"):
        Answers(checkpont="DIR")
    with pytest.raises(ConfigError, match="dialect: unknown dialect 'longv'"):
        Answers(dialect="longv")


def test_the_hosts_are_imported_by_nobody_but_themselves():
    assert plugins.lmms_eval_models.__doc__
    with pytest.raises(SystemExit):
        vlmevalkit.main(["--vo3", "checkpoint", "run.py"])
    with pytest.raises(ModuleNotFoundError, match="vlmeval"):
        vlmevalkit.main(["run.py", "--data", "X"])
