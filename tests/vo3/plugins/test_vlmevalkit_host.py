"""VLMEvalKit runs a tiny dataset with the embedded model and gives the answers of `vo3.evals.runner`.

VLMEvalKit is on no package index: give a checkout, `make soak VLMEVALKIT=DIR`.
"""

from __future__ import annotations

import csv
import os
import pathlib

import hosts
import pytest
import serve_fakes

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


def ask(checkout, folder, rows: list[dict], model) -> list[str]:
    """The predictions of a table of rows."""
    python = hosts.environment("vlmevalkit")
    table = folder / "Tiny.tsv"
    with table.open("w", newline="") as file:
        lines = csv.writer(file, delimiter="\t")
        lines.writerow(["index", "video", "question", "answer"])
        lines.writerows([i, r["video"], r["prompt"], r["answer"]] for i, r in enumerate(rows))
    work = folder / "work"
    work.mkdir()
    hosts.run([python, RUN, table, work, model], cwd=folder, PYTHONPATH=str(checkout),
              LMUData=str(folder / "lmu"), PRED_FORMAT="tsv", CUDA_VISIBLE_DEVICES="")  # fmt: skip
    with (work / "vo3_Tiny.tsv").open(newline="") as file:
        return [row["prediction"] for row in csv.DictReader(file, delimiter="\t")]


def test_vlmevalkit_gives_the_same_answers(checkout, tmp_path):
    own = hosts.runner_answers(tmp_path)
    given = ask(checkout, tmp_path, hosts.rows_of(own), "max_new_tokens=160,max_turns=4")
    assert given == [t.answer or "" for t in own]
    assert any(t.calls for t in own) and len(set(given)) > 1


def test_vlmevalkit_asks_the_server(checkout, tmp_path):
    """Its own client of such servers, as docs/dialects.md has it: the file is named, the options are found, every answer comes back."""
    rows = hosts.card_rows(tmp_path / "videos")
    engine, settings = hosts.scripted(tmp_path / "videos")
    example, config = hosts.page_block("docs/dialects.md", "LMDeployAPI"), tmp_path / "vo3.json"
    with serve_fakes.running(serve_fakes.app(engine, settings)) as url:
        config.write_text(
            example.replace("http://127.0.0.1:8000", url).replace('"DIR"', '"clueworld"')
        )
        given = ask(checkout, tmp_path, rows, config)
    assert given == ["B"] * 3
    hosts.check_cards(engine.jobs)
