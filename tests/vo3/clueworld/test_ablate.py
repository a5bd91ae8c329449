"""The ablation grid: its cells and figures by hand, and a grid of a few steps end to end, twice."""

import io
import json
import types

import jax
import ml_collections
import numpy as np
import pytest
from etils import epath
from flax import nnx
from rich.console import Console

from benchmarks import ablate
from benchmarks.ablate import Result, cells, key_of
from vo3.clueworld.figures import Share
from vo3.clueworld.scales import get_scale
from vo3.models.qwen2_5_vl import Qwen2_5_VL
from vo3.train import config as config_lib
from vo3.train import grpo, rl_config
from vo3.train.sft import latest_params
from vo3.trajectory import Call, Clue, Target, Task, Trajectory, Turn


def grid(*products):
    config = config_lib.load("configs/ablate.py")
    config.grid = products
    return config


def test_the_first_grid():
    found = cells(config_lib.load("configs/ablate.py"))
    assert [(c.config.view, c.config.tdam.policy, c.config.tdam.mask_ratio) for c in found] == [
        ("agent", "off", 0.0),
        ("middle", "off", 0.0),
        *(("agent", p, r) for p in ("released", "predictor", "turn") for r in (1.0, 0.1)),
    ]


def test_a_grid_is_a_union_of_products_without_repeats():
    found = cells(grid({"whole.steps": (3, 4), "view": ("agent", "fine")}, {"whole.steps": (4,)}))
    assert [(c.config.whole.steps, c.config.view) for c in found] == [
        (3, "agent"), (3, "fine"), (4, "agent"), (4, "fine"),
    ]  # fmt: skip
    assert found[0].name == "view agent, steps 3"
    with pytest.raises(config_lib.ConfigError, match=r"unknown key config\.whole\.stops"):
        cells(grid({"whole.stops": (3,)}))
    with pytest.raises(config_lib.ConfigError, match="given as a tuple"):
        cells(grid({"view": "agent"}))


def test_the_grid_of_rl_changes_one_thing_at_a_time():
    found = cells(config_lib.load("configs/ablate_rl.py"))
    assert [c.name for c in found] == [
        "steps 0", "steps 40", "bonus_weight 0.0", "decay 0.0", "group 4", "tree False",
    ]  # fmt: skip
    for cell in found:
        rl_config.validate(cell.config.rl)
        changed = [
            key
            for key, value in config_lib.flatten(cell.config).items()
            if value != config_lib.flatten(found[1].config)[key]
        ]
        assert changed == ([] if cell is found[1] else [key for key, _ in cell.changes])


def test_an_agent_that_stops_calling_loses_its_overlap():
    turns = (
        Turn("call", "", call=Call(10.0, 20.0, "fine")),
        Turn("call", "", call=Call(30.0, 40.0, "fine")),
    )
    target = Target("A", (Clue(15.0, 25.0),), "clue_single_w_tool")
    task = Task("t", "v.mp4", "q", None, target)
    # Shared 5 of a union of 10 + 10 + 5.
    assert ablate.iou(Trajectory(task, turns, "answered")) == pytest.approx(1 / 5)
    assert ablate.iou(Trajectory(task, (), "answered")) == 0


def test_fingerprints_tell_settings_apart():
    one = ml_collections.ConfigDict({"a": 1, "b": (2, 3)})
    assert key_of(one, "x") == key_of(ml_collections.ConfigDict({"b": (2, 3), "a": 1}), "x")
    assert key_of(one, "x") != key_of(one, "y")


def answers(*seeds):
    return Result(np.array(seeds, bool), tuple(str(i // 3) for i in range(len(seeds[0]))))


def test_intervals_cover_questions_and_seeds():
    good, bad = [True] * 27 + [False] * 3, [True] * 15 + [False] * 15
    agreed, split = answers(good, good, good), answers(good, bad, good)
    assert agreed.shares == (Share(27, 30),) * 3 and split.shares[1] == Share(15, 30)
    # Three seeds that agree tell no more than one: not the narrower interval of 90 questions.
    low, high = agreed.interval
    np.testing.assert_allclose(agreed.interval, answers(good).interval, atol=0.02)
    assert high - low > np.diff(Share(81, 90).interval)
    # Seeds that differ are less sure than their questions.
    assert np.diff(split.interval) > 1.5 * np.diff(agreed.interval)
    assert str(agreed) == f"90.0 % [{100 * low:.1f}, {100 * high:.1f}]"
    assert agreed.beside(agreed) == f"{agreed}; +0.0 [+0.0, +0.0]"
    lost, won = split.difference(agreed)
    assert lost < -0.2 and won == pytest.approx(0, abs=0.15)
    assert split.beside(agreed).startswith(f"{split}; -13.3 [")


def asked(name, answer):
    task = Task(name, "v.mp4", "q", None, Target("A", (), "clue_single_w_tool"))
    return Trajectory(task, (), "answered", answer)


def test_answers_of_seeds_are_paired_by_question():
    rows = [[asked("7-x", "A"), asked("8-x", "B")], [asked("7-x", "A"), asked("8-x", "A")]]
    found = ablate.result(rows, "clue_single_w_tool")
    assert found.worlds == ("7", "8") and found.right.tolist() == [[True, False], [True, True]]
    with pytest.raises(ValueError, match="not asked the same questions"):
        ablate.result([rows[0], rows[1][::-1]], "clue_single_w_tool")


def small(config):
    config.worlds, config.quadrants = 1, ("clue_single_w_tool",)
    config.cell.vision.update({"steps": 2, "worlds": 1})
    for stage in ablate.STAGES:
        config.cell[stage].update({"steps": 2, "warmup": 1, "workers": 0, "log_every": 1})
        config.cell[stage].data.worlds = 1
    return config


def test_a_stage_that_was_asked_to_end_is_not_done(tmp_path, monkeypatch):
    ended = types.SimpleNamespace(step=8, finished=False)
    monkeypatch.setattr(ablate, "train_vision", lambda *args, **kwargs: None)
    monkeypatch.setattr(ablate, "train", lambda *args, **kwargs: ended)
    cell = cells(config_lib.load("configs/ablate.py"))[0].config
    with pytest.raises(SystemExit, match=r"asked to end after 8 steps of .*read-"):
        ablate.Stages(tmp_path).run(cell, 0)
    done = [p.parent.name.split("-")[0] for p in tmp_path.glob("stages/*/done.json")]
    assert done == ["vision"]


@pytest.mark.soak
def test_a_grid_end_to_end_and_again(tmp_path, monkeypatch):
    changes = {"tdam.policy": ("turn",), "tdam.mask_ratio": (0.5,)}
    config = small(
        grid({"view": ("agent",)}, changes, {"view": ("middle",), "read.data.length": (480,)})
    )
    shown = io.StringIO()
    ablate.show(config, tmp_path, Console(file=shown, width=200))
    table = json.loads((tmp_path / "table.json").read_text())
    assert [row["cell"].get("view") for row in table] == ["agent", None, "middle"]
    assert all(row["right"]["clue_single_w_tool"][0][1] == 3 for row in table)
    # The agents share vision and transcripts; each cell has its own last stage.
    stages = sorted(p.name.split("-")[0] for p in (tmp_path / "stages").iterdir())
    assert stages == ["read"] * 2 + ["vision"] * 2 + ["whole"] * 3
    rows = list((tmp_path / "stages").glob("whole-*/questions-*/trajectories.jsonl"))
    assert len(rows) == 3
    kept = {}
    for path in rows:
        asked = [Trajectory.loads(line) for line in path.read_text().splitlines()]
        (tokens,) = {row.observations[0].tokens for row in asked}
        kept[tokens] = keeps_its_tower(path.parents[1], tmp_path / "stages")
    # Fine-tuning leaves the tower of a baseline alone.
    assert kept == {24: False, 56: True}

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(ablate, "train", never)
    monkeypatch.setattr(ablate, "train_vision", never)
    again = io.StringIO()
    ablate.show(config, tmp_path, Console(file=again, width=200))
    assert again.getvalue() == shown.getvalue()


def keeps_its_tower(trained, stages):
    model = Qwen2_5_VL(get_scale("micro").model(), rngs=nnx.Rngs(0))
    nnx.update(model, latest_params(model, epath.Path(trained)))
    tower = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model.vision, nnx.Param))]
    for path in stages.glob("vision-*/vision.npz"):
        with np.load(path) as file:
            if all(np.array_equal(a, file[f"arr_{i}"]) for i, a in enumerate(tower)):
                return True
    return False


@pytest.mark.soak
def test_a_grid_of_rl_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    config = small(config_lib.load("configs/ablate_rl.py"))
    config.seeds = (0,)
    config.grid = ({"rl.steps": (0,)}, {"rl.steps": (2,)}, {"rl.rl.tree": (False,)})
    with config.cell.rl.unlocked():
        # An untrained model earns nothing: groups of equal reward are trained on, without effect.
        config.cell.rl.steps = 2
        config.cell.rl.checkpoint.every = 1
        config.cell.rl.rl.update({"prompts_per_step": 1, "group": 2, "min_std": 0.0})
        config.cell.rl.rl.clueworld.worlds = 1
        config.cell.rl.rl.rollout.update({"max_new_tokens": 8, "slots": 1})
    trained = grpo.train
    monkeypatch.setattr(grpo, "train", lambda *a, **k: trained(*a, stop_after=1, **k))
    with pytest.raises(SystemExit, match="asked to end after 1 steps"):
        ablate.show(config, tmp_path, Console(file=io.StringIO(), width=200))
    monkeypatch.setattr(grpo, "train", trained)
    ablate.show(config, tmp_path, Console(file=io.StringIO(), width=200))
    table = json.loads((tmp_path / "table.json").read_text())
    assert [row["cell"] for row in table] == [
        {"rl.steps": 0},
        {"rl.steps": 2},
        {"rl.rl.tree": False},
    ]
    stages = sorted(p.name.split("-")[0] for p in (tmp_path / "stages").iterdir())
    assert stages == ["read", "rl", "rl", "vision", "whole"]
    for folder in (tmp_path / "stages").glob("rl-*"):
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2]
