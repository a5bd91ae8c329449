"""The installed lmms-eval runs a tiny task with the embedded model and gives the answers of `vo3.evals.runner`."""

from __future__ import annotations

import json
import pathlib

import hosts
import pytest

from vo3.trajectory import Trajectory

pytestmark = pytest.mark.soak
TASK = pathlib.Path(__file__).parent / "tiny_task"


@pytest.fixture(scope="module")
def python() -> pathlib.Path:
    return hosts.environment("lmms-eval")


def test_lmms_eval_gives_the_same_answers(python, tmp_path):
    own = hosts.runner_answers(tmp_path)
    rows, task = tmp_path / "rows.jsonl", tmp_path / "task"
    rows.write_text(hosts.as_lines(hosts.rows_of(own)))
    task.mkdir()
    (task / "utils.py").write_text((TASK / "utils.py").read_text())
    (task / "vo3_tiny.yaml").write_text(
        (TASK / "vo3_tiny.yaml").read_text().replace("ROWS", str(rows))
    )
    kept = tmp_path / "kept.jsonl"
    settings = f"max_new_tokens=160,max_turns=4,trajectories={kept}"
    command = [python, "-m", "lmms_eval", "--model", "vo3", "--model_args", settings, "--tasks", "vo3_tiny", "--include_path", task,
               "--batch_size", "1", "--log_samples", "--output_path", tmp_path / "out"]  # fmt: skip
    hosts.run(command, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"))

    (samples,) = (tmp_path / "out").rglob("*samples*.jsonl")
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    given = {sample["doc_id"]: sample["filtered_resps"][0] for sample in logged}
    assert [given[i] for i in range(len(own))] == [t.answer or "" for t in own]
    right = [t.answer == t.task.target.answer for t in own]
    (result,) = (tmp_path / "out").rglob("*results.json")
    score = json.loads(result.read_text())["results"]["vo3_tiny"]["score,none"]
    assert score == pytest.approx(sum(right) / len(right))
    # Not only the answers: the whole conversations.
    theirs = [Trajectory.loads(line) for line in kept.read_text().splitlines()]
    assert [[turn.ids for turn in t.turns] for t in theirs] == [[turn.ids for turn in t.turns] for t in own]  # fmt: skip
    assert any(t.calls for t in own) and len({t.answer for t in own}) > 1
