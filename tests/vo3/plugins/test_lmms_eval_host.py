"""The installed lmms-eval runs a tiny task with the embedded model and gives the answers of `vo3.evals.runner`."""

from __future__ import annotations

import json
import pathlib

import hosts
import pytest
import serve_fakes

from vo3.trajectory import Trajectory

pytestmark = pytest.mark.soak
TASK = pathlib.Path(__file__).parent / "tiny_task"


@pytest.fixture(scope="module")
def python() -> pathlib.Path:
    return hosts.environment("lmms-eval")


def task_of(rows: list[dict], folder: pathlib.Path) -> pathlib.Path:
    """The tiny task with these rows."""
    table, task = folder / "rows.jsonl", folder / "task"
    table.write_text(hosts.as_lines(rows))
    task.mkdir()
    (task / "utils.py").write_text((TASK / "utils.py").read_text())
    (task / "vo3_tiny.yaml").write_text(
        (TASK / "vo3_tiny.yaml").read_text().replace("ROWS", str(table))
    )
    return task


def results_of(folder: pathlib.Path) -> tuple[dict[int, str], float]:
    """Replies by document, and the score."""
    (samples,) = folder.rglob("*samples*.jsonl")
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    (result,) = folder.rglob("*results.json")
    score = json.loads(result.read_text())["results"]["vo3_tiny"]["score,none"]
    return {sample["doc_id"]: "".join(sample["filtered_resps"]) for sample in logged}, score


def test_lmms_eval_gives_the_same_answers(python, tmp_path):
    own = hosts.runner_answers(tmp_path)
    task = task_of(hosts.rows_of(own), tmp_path)
    kept = tmp_path / "kept.jsonl"
    settings = f"max_new_tokens=160,max_turns=4,trajectories={kept}"
    command = [python, "-m", "lmms_eval", "--model", "vo3", "--model_args", settings, "--tasks", "vo3_tiny", "--include_path", task,
               "--batch_size", "1", "--log_samples", "--output_path", tmp_path / "out"]  # fmt: skip
    hosts.run(command, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"))

    given, score = results_of(tmp_path / "out")
    assert [given[i] for i in range(len(own))] == [t.answer or "" for t in own]
    right = [t.answer == t.task.target.answer for t in own]
    assert score == pytest.approx(sum(right) / len(right))
    # Not only the answers: the whole conversations.
    theirs = [Trajectory.loads(line) for line in kept.read_text().splitlines()]
    assert [[turn.ids for turn in t.turns] for t in theirs] == [[turn.ids for turn in t.turns] for t in own]  # fmt: skip
    assert any(t.calls for t in own) and len({t.answer for t in own}) > 1


def test_lmms_eval_asks_the_server(python, tmp_path):
    """Its own client of OpenAI's API, as docs/dialects.md has it: the file is named, the options are found, every answer comes back."""
    task = task_of(hosts.card_rows(tmp_path / "videos"), tmp_path)
    engine, settings = hosts.scripted(tmp_path / "videos")
    with serve_fakes.running(serve_fakes.app(engine, settings)) as url:
        client = f"model_version=clueworld,base_url={url}/v1,api_key=none,pass_video_url=True,timeout=600"
        command = [python, "-m", "lmms_eval", "--model", "openai", "--model_args", client, "--gen_kwargs", "max_new_tokens=1024",
                   "--tasks", "vo3_tiny", "--include_path", task, "--batch_size", "1", "--log_samples", "--output_path", tmp_path / "out"]  # fmt: skip
        hosts.run(command, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"))
    given, score = results_of(tmp_path / "out")
    assert given == {0: "B", 1: "B", 2: "B"} and score == pytest.approx(2 / 3)
    hosts.check_cards(engine.jobs)
