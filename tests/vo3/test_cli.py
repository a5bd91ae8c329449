"""The command line: what it writes, and that every bad input ends in one clear line and exit code 2."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import rollout_fakes as fakes
from safetensors.numpy import load_file, save_file

import vo3
from vo3 import cli
from vo3.trajectory import Trajectory


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    """A Hugging Face directory of a random tiny model with a byte tokenizer and small quotas."""
    return fakes.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def mp4(tmp_path_factory) -> str:
    return fakes.write_mp4(tmp_path_factory.mktemp("video") / "blocks.mp4")


@pytest.fixture
def says(monkeypatch):
    """Puts turns into the model's mouth."""

    def script(*turns: str) -> None:
        engine = functools.partial(fakes.ScriptedEngine, script=turns)
        monkeypatch.setattr("vo3.agent.Engine", engine)

    return script


@pytest.fixture
def no_model(monkeypatch):
    """The input must be refused before a model is loaded."""

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("vo3.models.load", load)


OPTIONS = ("--option", "A=a cat", "--option", "B=a dog")


def test_ask_streams_and_writes_the_page_and_the_trajectory(
    checkpoint, mp4, says, tmp_path, capsys
):
    says(fakes.call(3, 9, think="look there"), fakes.call(5, 5.2), fakes.answer("B"))
    page, data = tmp_path / "trace.html", tmp_path / "trace.json"
    code = cli.main(
        ["ask", mp4, "What is it?", *OPTIONS, "--checkpoint", str(checkpoint), "--html", str(page),
         "--json", str(data), "--target", "B", "--clue", "4-8.5"]
    )  # fmt: skip
    told = capsys.readouterr().out
    assert code == 0
    trajectory = Trajectory.loads(data.read_text())
    assert [t.kind for t in trajectory.turns] == [
        "system", "question", "call", "observation", "call", "error", "answer"
    ]  # fmt: skip
    assert (trajectory.outcome, trajectory.answer) == ("answered", "B")
    assert trajectory.task.target.clues[0].end == 8.5
    for words in (
        "look there",
        "looks at 0:03 \u2013 0:09, fine",
        "refused",
        "answers B",
        "B  a dog   \u2713 right",
    ):
        assert words in told
    spent = [line for line in told.splitlines() if line.startswith("spent")]
    overview, clip = (o.tokens for o in trajectory.observations)
    assert f"{overview} overview + {clip} clip + " in spent[0]
    html = page.read_text()
    assert html.startswith("<!doctype html>")
    assert html.count("data:image/jpeg") > 8
    assert "\u2713 right" in html


def test_json_alone_leaves_standard_output_to_the_trajectory(checkpoint, mp4, says, capsys):
    says(fakes.answer("A"))
    assert cli.main(["ask", mp4, "What?", *OPTIONS, "--checkpoint", str(checkpoint), "--json"]) == 0
    captured = capsys.readouterr()
    assert Trajectory.loads(captured.out).answer == "A"
    assert "answers A" in captured.err


def test_limits_reach_the_engine(checkpoint, mp4, says, tmp_path):
    says(*[fakes.call()] * 2, fakes.answer("A"))
    out = tmp_path / "t.json"
    cli.main(
        ["ask", mp4, "What?", *OPTIONS, "--checkpoint", str(checkpoint), "--json", str(out),
         "--max-turns", "2", "--temperature", "0.5", "--seed", "9"]
    )  # fmt: skip
    trajectory = Trajectory.loads(out.read_text())
    assert [t.kind for t in trajectory.turns][-2:] == ["forced", "answer"]
    assert (trajectory.meta["temperature"], trajectory.meta["seed"]) == (0.5, 9)


def test_a_random_model_is_asked_for_real(checkpoint, mp4, tmp_path, capsys):
    page = tmp_path / "page.html"
    code = cli.main(
        [
            "ask",
            mp4,
            "What?",
            "--checkpoint",
            str(checkpoint),
            "--max-new-tokens",
            "5",
            "--html",
            str(page),
        ]
    )
    assert code == 0
    assert "cut by the length limit" in capsys.readouterr().out
    assert "ended without an answer tag" in page.read_text()


def test_a_model_of_int8_weights_is_asked_for_real(checkpoint, mp4, capsys):
    flags = ["--quantize", "int8", "--max-new-tokens", "5"]
    assert cli.main(["ask", mp4, "What?", "--checkpoint", str(checkpoint), *flags]) == 0
    assert "cut by the length limit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--option", "A"], "--option 'A' is not LETTER=TEXT"),
        (["--option", "A="], "is not LETTER=TEXT"),
        (["--option", "=x"], "'' is no option letter"),
        (["--option", "a=x"], "'a' is no option letter"),
        (["--option", "AB=x"], "'AB' is no option letter"),
        (["--option", "\u00c4=x"], "is no option letter"),
        (["--option", "A=x", "--option", "A=y"], "option A is given twice: 'x' and 'y'"),
        (["--option", "A=x", "--option", "C=y"], "leave letters out; use A, B without gaps"),
        (["--option", "A=x"], "one option leaves no choice"),
        ([*OPTIONS, "--target", "C"], "--target 'C' is none of the options A, B"),
        (["--clue", "3-4"], "give --target as well"),
        (["--target", "x", "--clue", "4-3"], "--clue '4-3' is not START-END"),
        (["--target", "x", "--clue", "4"], "--clue '4' is not START-END"),
        (["--target", "x", "--clue", "nan-4"], "--clue 'nan-4' is not START-END"),
        (["--temperature", "-1"], "--temperature -1 is below 0"),
        (["--frame-fps", "2"], "is a file, which knows its own"),
        (["--top-p", "0"], "--top-p 0 lies outside"),
        (["--seed", "-1"], "--seed -1 lies outside"),
        (["--html", "/nowhere/at/all.html"], "the folder /nowhere/at does not exist"),
        (["--json", "/"], "--json / is a directory"),
        (["--prompt-pack", "nosuch"], "--prompt-pack nosuch: no prompt pack at "),
        (["--checkpoint", "/nowhere"], "/nowhere does not exist; give the directory of a checkpoint"),
    ],
)  # fmt: skip
def test_bad_arguments(flags, message, checkpoint, mp4, capsys):
    checkpoint_flag = [] if "--checkpoint" in flags else ["--checkpoint", str(checkpoint)]
    assert cli.main(["ask", mp4, "What?", *checkpoint_flag, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("vo3: ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "flags",
    [
        ["--max-turns", "0"],
        ["--max-turns", "two"],
        ["--temperature", "nan"],
        ["--temperature", "warm"],
        ["--frame-fps", "inf"],
        ["--frame-fps", "-4"],
        ["--dtype", "int8"],
        ["--nonsense"],
    ],
)
def test_arguments_that_argparse_refuses(flags, mp4, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["ask", mp4, "What?", *flags])
    assert stop.value.code == 2
    assert flags[0] in capsys.readouterr().err


def _missing(folder: pathlib.Path, mp4: str) -> str:
    return str(folder / "missing.mp4")


def _directory(folder: pathlib.Path, mp4: str) -> str:
    return str(folder)


def _text(folder: pathlib.Path, mp4: str) -> str:
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    return str(folder / "text.mp4")


def _empty(folder: pathlib.Path, mp4: str) -> str:
    (folder / "empty.mp4").touch()
    return str(folder / "empty.mp4")


def _cut(folder: pathlib.Path, mp4: str) -> str:
    data = pathlib.Path(mp4).read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 3])
    return str(folder / "cut.mp4")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("make", [_missing, _directory, _text, _empty, _cut])
def test_bad_videos_are_refused_before_a_model_is_loaded(make, mp4, tmp_path, capsys):
    video = make(tmp_path, mp4)
    assert cli.main(["ask", video, "What?"]) == 2
    error = capsys.readouterr().err
    assert video in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("no_model")
def test_an_empty_question(mp4, capsys):
    assert cli.main(["ask", mp4, " "]) == 2
    assert "the question is empty" in capsys.readouterr().err


def test_a_question_longer_than_the_context(checkpoint, mp4, capsys):
    assert cli.main(["ask", mp4, "why " * 2000, "--checkpoint", str(checkpoint)]) == 2
    assert "shorten the question" in capsys.readouterr().err


def _change(name: str, change) -> Callable[[pathlib.Path], None]:
    """Rewrites the weights with one tensor changed, removed (None) or added."""

    def damage(folder: pathlib.Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        changed = change(tensors.pop(name, None))
        save_file(
            tensors | ({} if changed is None else {name: changed}), folder / "model.safetensors"
        )

    return damage


def _shards(folder: pathlib.Path) -> list[pathlib.Path]:
    """The same weights in several files."""
    vo3.models.load(folder).save_hf(folder / "again", max_shard_bytes=100_000)
    (folder / "model.safetensors").unlink()
    files = [shutil.move(file, folder) for file in (folder / "again").glob("model*")]
    assert len(files) > 3
    return sorted(folder.glob("model-*.safetensors"))


def _set_config(**changes) -> Callable[[pathlib.Path], None]:
    """Changes keys of config.json."""

    def damage(folder: pathlib.Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


_NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change(_NORM, lambda x: None), f"lacks 1 tensors: {_NORM}"),
        (_change(_NORM, lambda x: x[:-1]), f"1 tensors of the wrong shape: {_NORM} is"),
        (_change("model.extra", lambda _: np.zeros(3, np.float32)), "no place for: model.extra"),
        (lambda d: os.truncate(_shards(d)[1], 5000), "model-00002-of-"),
        (lambda d: _shards(d)[1].unlink(), "model-00002-of-"),
        (lambda d: (d / "config.json").unlink(), "config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json"),
        (lambda d: (d / "config.json").write_text("[]"), "config.json is no JSON object"),
        (_set_config(quantization_config={"quant_method": "awq"}), "are quantised (awq)"),
        (_set_config(num_attention_heads=0), "num_attention_heads is 0"),
        (lambda d: (d / "model.safetensors").unlink(), "safetensors"),
        (lambda d: os.truncate(d / "model.safetensors", 1000), "model.safetensors"),
        (lambda d: [p.unlink() for p in d.glob("tokenizer*")], "tokenizer"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer"),
        (lambda d: (d / "vo3.json").write_text('["dialect"]'), "vo3.json is no JSON object"),
        (lambda d: (d / "vo3.json").write_text('{"colour": 1}'), "colour"),
        (lambda d: (d / "vo3.json").write_text('{"prompt_pack": 7}'), "prompt_pack is 7"),
        (lambda d: (d / "vo3.json").write_text('{"mrope_time": "s"}'), "vo3.json: mrope_time"),
        (lambda d: (d / "vo3.json").write_text('{"crop_policy": {"quota": 1}}'), "quota"),
        (lambda d: (d / "vo3.json").write_text('{"crop_policy": 7}'), "crop_policy"),
        (lambda d: (d / "vo3.json").write_text('{"prompt_pack": "none"}'), "prompt_pack"),
    ],
)
def test_bad_checkpoints(damage, message, checkpoint, mp4, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    damage(broken)
    assert cli.main(["ask", mp4, "What?", "--checkpoint", str(broken)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vo3: ")
    assert message in error
    assert str(broken) in error
    assert ";" in error, f"no remedy: {error}"


def test_the_embedded_model_says_how_to_get_it_where_it_is_missing(
    mp4, monkeypatch, tmp_path, capsys
):
    from etils import epath

    monkeypatch.setitem(vo3.models.loading.NAMES, "clueworld", epath.Path(tmp_path))
    assert cli.main(["ask", mp4, "What?"]) == 2
    assert "make clueworld" in capsys.readouterr().err


def test_convert_there_and_back_is_bitwise(checkpoint, tmp_path, capsys):
    orbax, back = tmp_path / "orbax", tmp_path / "hf"
    assert cli.main(["convert", str(checkpoint), str(orbax), "--to", "orbax"]) == 0
    assert cli.main(["convert", str(orbax), str(back), "--to", "hf"]) == 0
    assert "wrote" in capsys.readouterr().out
    first, again = (load_file(d / "model.safetensors") for d in (checkpoint, back))
    assert first.keys() == again.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    assert (back / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()


def test_convert_overwrites_nothing(checkpoint, tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert cli.main(["convert", str(checkpoint), str(tmp_path), "--to", "hf"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert cli.main(["convert", str(tmp_path / "no"), str(tmp_path / "out"), "--to", "hf"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_view_writes_an_index(checkpoint, mp4, says, tmp_path, capsys):
    says(fakes.call(), fakes.answer("A"))
    data = tmp_path / "trace.json"
    cli.main(["ask", mp4, "What?", "--checkpoint", str(checkpoint), "--json", str(data)])
    assert cli.main(["view", str(data)]) == 0
    assert "wrote 1 pages" in capsys.readouterr().out
    assert (tmp_path / "trace" / "00001.html").exists()
    assert "00001.html" in (tmp_path / "trace" / "index.html").read_text()


def test_view_of_bad_input(tmp_path, capsys):
    assert cli.main(["view", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err
    assert cli.main(["view", str(tmp_path / "no.jsonl")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "bad.jsonl").write_text("{}\n")
    assert cli.main(["view", str(tmp_path / "bad.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "line 1" in error
    assert "holds no trajectory" in error


def test_an_unexpected_error_is_not_dressed_up(checkpoint, mp4, monkeypatch):
    def ask(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("vo3.agent.VideoAgent.ask", ask)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["ask", mp4, "What?", "--checkpoint", str(checkpoint)])


@pytest.mark.quick
def test_the_module_runs():
    command = [sys.executable, "-m", "vo3.cli"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"vo3 {vo3.__version__}\n"
    missing = subprocess.run(
        [*command, "ask", "no.mp4", "?"], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert missing.stderr.startswith("vo3: no.mp4 does not exist")
    nothing = subprocess.run(command, capture_output=True, text=True, check=False)
    assert nothing.returncode == 2
