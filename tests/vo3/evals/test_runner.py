"""The runner: each video opened once, no question lost or asked twice, failures counted and listed, one command end to end."""

from __future__ import annotations

import hashlib
import shutil
import types

import eval_samples
import numpy as np
import pytest
import rollout_fakes
from etils import epath

from vo3 import cli
from vo3.chat import PromptPack
from vo3.data import files
from vo3.evals import card_text, cards, config, report, runner
from vo3.evals.asking import open_video
from vo3.evals.benchmarks import base
from vo3.evals.journal import failed
from vo3.evals.judge import JudgeError
from vo3.evals.scoring import grade
from vo3.train.config import ConfigError, override
from vo3.trajectory import Trajectory
from vo3.video import CropPolicy, VideoError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """MLVU in small: seven tasks on one real video, and Video-Holmes on a video that is not there."""
    root = tmp_path_factory.mktemp("data")
    eval_samples.mlvu(root / "mlvu")
    rollout_fakes.write_mp4(root / "mlvu" / "plain.mp4", seconds=3)
    eval_samples.videoholmes(root / "videoholmes")
    return root


class Fake:
    """Says a letter that depends on the question alone; stops like a killed process after `lives` answers."""

    def __init__(self, mode, log, lives=None):
        self.mode, self.log, self.lives = mode, log, lives

    def ask(self, videos):
        for asked in videos:
            try:
                video = open_video(asked, self.mode.crop, 60.0)
            except VideoError as error:
                yield from (
                    failed(task, f"video: {error.kind}", str(error)) for task in asked.tasks
                )
                continue
            self.log.append(("open", video.name))
            for task in asked.tasks:
                if self.lives is not None and not self.lives[0]:
                    raise KeyboardInterrupt
                if self.lives is not None:
                    self.lives[0] -= 1
                self.log.append((self.mode.key, task.id))
                letters = list(task.options or "A")
                letter = letters[hashlib.sha256(task.id.encode()).digest()[0] % len(letters)]
                yield eval_samples.answered(task, letter, seconds=len(self.log))


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Replaces model and engine; returns the log of what was opened and asked, and the answers until death."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    model = types.SimpleNamespace(
        crop_policy=CropPolicy(recipe="eval"),
        config=types.SimpleNamespace(
            mrope_time="constant", vision=types.SimpleNamespace(token_size=28)
        ),
        embed=types.SimpleNamespace(table=np.zeros((2, 2), np.float32)),
        source=tmp_path / "checkpoint",
    )
    log, lives = [], []

    def askers(modes, model, config):
        return [Fake(mode, log, lives or None) for mode in modes]

    monkeypatch.setattr(runner, "load", lambda config: (model, PromptPack.load("default")))
    monkeypatch.setattr(runner, "askers", askers)
    return types.SimpleNamespace(log=log, lives=lives, model=model)


def settings(data, **changes):
    kept = {"benchmarks": "mlvu", "data_root": str(data), "partial": True}
    return override(config.defaults(), **{**kept, **changes})


def without_clock(card):
    return {k: v for k, v in card.items() if k != "measured"}


def test_every_video_is_opened_once_and_the_card_is_written(data, fake, tmp_path):
    (card,) = runner.evaluate(settings(data), tmp_path / "out")
    opened = [name for what, name in fake.log if what == "open"]
    assert len(opened) == 1
    assert len(fake.log) == 15
    folder = tmp_path / "out" / "mlvu" / "tools"
    assert cards.load(folder) == card
    assert card["benchmark"]["partial"]
    assert card["score"]["total"] == 14
    lines = (folder / "trajectories.jsonl").read_text().splitlines()
    assert all(Trajectory.loads(line).meta["video_hash"] for line in lines)
    # A second call asks nothing and changes nothing.
    (again,) = runner.evaluate(settings(data), tmp_path / "out")
    assert len(fake.log) == 15
    assert again == card


def test_a_video_that_cannot_be_hashed_costs_no_answer(data, fake, tmp_path, monkeypatch):
    """Object stores have errors of their own."""

    of_file = runner.fingerprint.of_file

    def failing(path):
        if str(path).endswith(".mp4"):
            raise RuntimeError("429: too many requests")
        return of_file(path)

    monkeypatch.setattr(runner.fingerprint, "of_file", failing)
    (card,) = runner.evaluate(settings(data), tmp_path / "out")
    assert card["score"]["total"] == 14
    text = (tmp_path / "out" / "mlvu" / "tools" / "trajectories.jsonl").read_text()
    assert all(Trajectory.loads(x).meta["video_hash"] is None for x in text.splitlines())


@pytest.mark.parametrize("moment", [0, 1, 5, 13])
def test_a_killed_run_goes_on_without_repeating_or_losing_a_question(moment, data, fake, tmp_path):
    (whole,) = runner.evaluate(settings(data), tmp_path / "whole")
    fake.log.clear()
    fake.lives.append(moment)
    with pytest.raises(KeyboardInterrupt):
        runner.evaluate(settings(data), tmp_path / "killed")
    assert not (tmp_path / "killed" / "mlvu" / "tools" / "card.json").exists()
    with (tmp_path / "killed" / "mlvu" / "tools" / "trajectories.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "task": {"id": "torn')
    fake.lives[0] = 1000
    (card,) = runner.evaluate(settings(data), tmp_path / "killed")
    asked = [name for what, name in fake.log if what == "tools"]
    assert sorted(asked) == sorted(set(asked))
    assert len(asked) == 14
    assert without_clock(card) == without_clock(whole)


def test_processes_share_the_videos_and_the_last_writes_the_card(data, fake, tmp_path):
    names = {"benchmarks": "mlvu,videoholmes", "shards": 2}
    (first,) = runner.evaluate(settings(data, shard=1, **names), tmp_path / "out") or (None,)
    both = runner.evaluate(settings(data, shard=0, **names), tmp_path / "out")
    assert first is None
    assert [card["benchmark"]["name"] for card in both] == ["mlvu", "videoholmes"]
    alone = runner.evaluate(settings(data, benchmarks="mlvu,videoholmes"), tmp_path / "alone")
    assert [without_clock(c) for c in both] == [without_clock(c) for c in alone]
    # Another number of processes finds everything answered.
    before = len(fake.log)
    runner.evaluate(settings(data, shard=2, **{**names, "shards": 3}), tmp_path / "out")
    assert len(fake.log) == before


def test_a_video_that_is_not_there_costs_its_questions_and_is_named(data, fake, tmp_path, capsys):
    (card,) = runner.evaluate(settings(data, benchmarks="videoholmes"), tmp_path / "out")
    assert fake.log == []
    assert (card["score"]["right"], card["score"]["total"]) == (0, 2)
    assert card["failures"]["count"] == 2
    listed = card["failures"]["listed"][0]
    assert listed["id"] == "videoholmes/Q1w2E3-1"
    assert listed["kind"] == "video: missing"
    assert "Q1w2E3.mp4" in listed["message"]
    assert (card["videos"]["count"], card["videos"]["unread"]) == (1, 1)
    assert card["videos"]["hashes"] == {"videos/Q1w2E3.mp4": None}
    assert "2 failed" in capsys.readouterr().err


@pytest.mark.parametrize("shards", [1, 2])
def test_what_the_storage_failed_is_asked_again_and_kept_once(data, fake, tmp_path, shards):
    for shard in range(2):  # the first run: every part
        runner.evaluate(
            settings(data, benchmarks="videoholmes", shards=2, shard=shard), tmp_path / "out"
        )
    root = tmp_path / "data"
    shutil.copytree(data / "videoholmes", root / "videoholmes")
    (root / "videoholmes" / "videos").mkdir(exist_ok=True)
    shutil.copy(data / "mlvu" / "plain.mp4", root / "videoholmes" / "videos" / "Q1w2E3.mp4")
    made = []
    for shard in range(shards):
        made = runner.evaluate(
            settings(root, benchmarks="videoholmes", shards=shards, shard=shard), tmp_path / "out"
        )
    assert made[0]["failures"]["count"] == 0
    asked = [name for what, name in fake.log if what == "tools"]
    assert len(asked) == len(set(asked)) == 2
    # Nothing is left to ask.
    runner.evaluate(settings(root, benchmarks="videoholmes"), tmp_path / "out")
    assert [name for what, name in fake.log if what == "tools"] == asked


def test_other_settings_do_not_mix_with_earlier_answers(data, fake, tmp_path):
    runner.evaluate(settings(data, limit=2), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"rollout\.max_new_tokens was 4096, is 64"):
        runner.evaluate(settings(data, max_new_tokens=64), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"quantize was .*, is 'int8'"):
        runner.evaluate(settings(data, quantize="int8"), tmp_path / "out")
    (tmp_path / "checkpoint" / "config.json").write_text("{ }")
    with pytest.raises(ConfigError, match=r"checkpoint\.hash was"):
        runner.evaluate(settings(data), tmp_path / "out")


def test_a_card_names_what_made_its_answers_not_what_made_it(data, fake, tmp_path, monkeypatch):
    (card,) = runner.evaluate(settings(data), tmp_path / "out")
    ((maker, count),) = card["environment"]["answers"].items()
    assert count == 14 and "cpu" in maker and "jax " in maker
    here = runner.fingerprint.environment()
    monkeypatch.setattr(
        runner.fingerprint, "environment", lambda: here | {"device": "4 x TPU v5e (tpu)"}
    )
    (again,) = runner.evaluate(settings(data), tmp_path / "out")
    assert again["environment"]["device"] == "4 x TPU v5e (tpu)"
    assert again["environment"]["answers"] == card["environment"]["answers"]
    assert maker in card_text.markdown(again)


def test_a_limit_that_leaves_nothing_out_makes_no_part(data, fake, tmp_path):
    kept = {"partial": False, "benchmarks": "clueworld", "clueworld.worlds": 1}
    (card,) = runner.evaluate(settings(data, **kept, limit=10_000), tmp_path / "whole")
    assert not card["benchmark"]["partial"]
    (card,) = runner.evaluate(settings(data, **kept, limit=2), tmp_path / "part")
    assert card["benchmark"]["partial"] and card["benchmark"]["questions"] == 2


def test_a_time_window_is_asked_for_in_one_turn_whatever_the_mode(data, fake, tmp_path):
    eval_samples.charades(data / "charades")
    found = runner.evaluate(settings(data, benchmarks="mlvu,charades"), tmp_path / "out")
    limits = {c["benchmark"]["name"]: c["settings"]["rollout"] for c in found}
    assert {name: (r["max_turns"], r["max_videos"]) for name, r in limits.items()} == {
        "mlvu": (8, 12),
        "charades": (1, 1),
    }


def test_modes_and_quotas_stand_side_by_side(data, fake, tmp_path):
    made = runner.evaluate(
        settings(data, modes="tools,direct", sweep="4096,16384", limit=3), tmp_path / "out"
    )
    assert [(c["mode"], c["quota"]) for c in made] == [
        ("tools", 4096), ("direct", 4096), ("tools", 16384), ("direct", 16384),
    ]  # fmt: skip
    policy = made[1]["settings"]["crop_policy"]
    assert (policy["overview_quota"], policy["max_frames"]) == (4096, 192)
    table = (tmp_path / "out" / "summary.md").read_text()
    assert table.count("MLVU (part)") == 4
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<svg") == 2
    assert 'href="mlvu/direct-4096/card.html"' in page
    assert [c["quota"] for c in report.load_all(tmp_path / "out")[0]] == [4096, 4096, 16384, 16384]


def test_the_command_end_to_end(data, tmp_path, capsys):
    """A random model with a real engine on a real video: the number means nothing, everything around it does."""
    checkpoint = rollout_fakes.write_checkpoint(tmp_path / "tiny")
    command = ["eval", "mlvu", "--checkpoint", str(checkpoint), "--workdir", str(tmp_path / "out"), "--data", str(data),
               "--limit", "2", "--set", "partial=True", "--set", "max_new_tokens=4", "--set", "quantize=int8"]  # fmt: skip
    assert cli.main(command) == 0
    told = capsys.readouterr()
    assert "| MLVU (part) | tools | M-Avg |" in told.out
    card = cards.load(tmp_path / "out" / "mlvu" / "tools")
    assert card["benchmark"]["questions"] == 2
    assert card["outcomes"] == {"text": 2}
    assert card["settings"]["crop_policy"] == rollout_fakes.CROP.to_json()
    assert card["shown"]["overview_frames"] == 6.0
    assert card["settings"]["quantize"] == "int8"
    assert card["environment"]["packages"]["jax"]
    assert cli.main(["view", str(tmp_path / "out" / "mlvu" / "tools" / "trajectories.jsonl")]) == 0
    again = cli.main(
        [
            "compare",
            str(tmp_path / "out" / "mlvu" / "tools"),
            str(tmp_path / "out/mlvu/tools/card.json"),
        ]
    )
    assert again == 0
    assert "Nothing that the cards record." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mlvv"], "benchmarks: 'mlvv' is none of"),
        (["mlvu", "--set", "max_turn=3"], "unknown key config.max_turn; the nearest is config.max_turns"),
        (["mlvu", "--set", "max_turns=three"], "max_turns is like 0, and 'three' is not"),
        (["mlvu", "--set", "max_turns"], "is not KEY=VALUE"),
        (["mlvu", "--set", "quantize=int4"], "quantize='int4'; one of '', int8"),
        (["mlvu", "--modes", "tool"], "modes: 'tool' is none of"),
        (["mlvu", "--data", "nowhere"], "nowhere/mlvu has no json/1_plotQA.json"),
        (["clueworld", "--set", "clueworld.first=99990"], "held out from training are 0 to 99999"),
        (["mlvu", "--set", "open_questions=True"], "scored by a judge alone"),
        (["mlvu", "--set", "temperature=-1"], "temperature must be 0 or more"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_line_before_a_model_is_loaded(
    words, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runner, "load", lambda config: pytest.fail("a model was loaded"))
    assert cli.main(["eval", *words, "--workdir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("vo3: ")


def test_a_judge_that_is_lost_costs_no_answer(data, fake, tmp_path, monkeypatch, capsys):
    def lost(question, answer):
        raise JudgeError("the judge is gone")

    monkeypatch.setattr(runner, "_judge", lambda config, workdir: lost)
    monkeypatch.setattr(runner, "grade", lambda q, t, scorer, judge=None: grade(q, t, scorer) if judge is None else judge(q, ""))  # fmt: skip
    monkeypatch.setattr(cards, "make", lambda *_, judge, **__: judge(None, ""))
    with pytest.raises(JudgeError):  # by the card, when all is asked
        runner.evaluate(settings(data), tmp_path / "out")
    assert len((tmp_path / "out/mlvu/tools/trajectories.jsonl").read_text().splitlines()) == 14
    assert "the judge is gone. Asking goes on" in capsys.readouterr().err


def test_a_batch_that_the_mesh_cannot_share_is_refused_before_anything_is_written(tmp_path, capsys):
    """By the name of the key, not by a traceback of the engine."""
    command = ["eval", "clueworld", "--workdir", str(tmp_path / "out"), "--set", "mesh.fsdp=-1"]
    assert cli.main(command) == 2
    assert "batch=1 conversations at a time" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch, capsys):
    def gone(path, **_):
        raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")

    monkeypatch.setattr(files, "find_files", gone)
    parquet = tmp_path / "videomme" / "a.parquet"
    parquet.parent.mkdir()
    parquet.touch()
    monkeypatch.setattr(base, "_find", lambda root, names, benchmark: epath.Path(parquet))
    command = ["eval", "videomme", "--data", str(tmp_path), "--workdir", str(tmp_path / "out"), "--set", "partial=True"]  # fmt: skip
    assert cli.main(command) == 2
    assert "vo3: pyarrow is not installed; pip install -e '.[eval]'" in capsys.readouterr().err


def test_the_config_file_is_the_defaults():
    from vo3.train import config as train_config

    loaded = train_config.load("configs/eval.py")
    assert train_config.to_text(loaded) == train_config.to_text(config.defaults())
    config.validate(loaded)


def test_the_module(data, fake, tmp_path, monkeypatch, capsys):
    """The flags of the command reach the evaluation; a known fault ends in one line."""
    from absl import flags

    out = tmp_path / "out"
    given = types.SimpleNamespace(config=settings(data, limit=1), workdir=str(out))
    monkeypatch.setattr(flags, "FLAGS", given)
    runner.main([])
    assert "| MLVU (part) |" in capsys.readouterr().out
    given.config = settings(data, limit=1, max_turns=2)
    with pytest.raises(
        SystemExit, match=r"vo3\.evals\.runner: .*\(rollout\.max_turns was 8, is 2\)"
    ):
        runner.main([])
