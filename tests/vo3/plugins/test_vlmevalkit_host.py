"""VLMEvalKit runs a tiny dataset with the embedded model and gives the answers of `vo3.evals.runner`.

VLMEvalKit is on no package index: give a checkout, `make soak VLMEVALKIT=DIR`.
"""

from __future__ import annotations

import csv
import os
import pathlib

import hosts
import pytest

pytestmark = pytest.mark.soak
RUN = pathlib.Path(__file__).parent / "vlmevalkit_run.py"


@pytest.fixture(scope="module")
def checkout() -> pathlib.Path:
    given = os.environ.get("VLMEVALKIT")
    if not given:
        pytest.skip("VLMEvalKit is on no package index; set VLMEVALKIT to a checkout of it")
    folder = pathlib.Path(given).absolute()
    if not (folder / "vlmeval").is_dir():
        pytest.fail(f"VLMEVALKIT={given} holds no vlmeval")
    return folder


def test_vlmevalkit_gives_the_same_answers(checkout, tmp_path):
    python = hosts.environment("vlmevalkit")
    own = hosts.runner_answers(tmp_path)
    rows = tmp_path / "Tiny.tsv"
    with rows.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "video", "question", "answer"])
        for index, row in enumerate(hosts.rows_of(own)):
            table.writerow([index, row["video"], row["prompt"], row["answer"]])
    work = tmp_path / "work"
    work.mkdir()
    hosts.run([python, RUN, rows, work, "max_new_tokens=160,max_turns=4"], cwd=tmp_path, PYTHONPATH=str(checkout),
              LMUData=str(tmp_path / "lmu"), PRED_FORMAT="tsv", CUDA_VISIBLE_DEVICES="")  # fmt: skip
    with (work / "vo3_Tiny.tsv").open(newline="") as file:
        given = [row["prediction"] for row in csv.DictReader(file, delimiter="\t")]
    assert given == [t.answer or "" for t in own]
    assert any(t.calls for t in own) and len(set(given)) > 1
