"""The ablation grid: its cells and figures by hand, and a grid of a few steps end to end, twice."""

import io
import json
import math

import ml_collections
import numpy as np
import pytest
from rich.console import Console

from benchmarks import ablate
from benchmarks.ablate import Result, cells, key_of
from vo3.clueworld.evaluate import Share
from vo3.train import config as config_lib
from vo3.trajectory import Trajectory


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


def test_fingerprints_tell_settings_apart():
    one = ml_collections.ConfigDict({"a": 1, "b": (2, 3)})
    assert key_of(one, "x") == key_of(ml_collections.ConfigDict({"b": (2, 3), "a": 1}), "x")
    assert key_of(one, "x") != key_of(one, "y")


def test_intervals_over_seeds_by_hand():
    result = Result((Share(8, 10), Share(9, 10), Share(10, 10)))
    assert result.pooled == Share(27, 30)
    mean, low, high = result.over_seeds
    # Student's t of 2 degrees of freedom at 97.5 %: 4.303.
    half = 4.302653 * 0.1 / math.sqrt(3)
    np.testing.assert_allclose((mean, low, high), (0.9, 0.9 - half, 0.9 + half), rtol=1e-6)
    assert "seeds 90.0 % [65.2, 114.8]" in str(result)
    alone = Result((Share(1, 2),))
    assert alone.over_seeds == (0.5, 0.0, 1.0) and "seeds" not in str(alone)


def small(config):
    config.worlds, config.quadrants = 1, ("clue_single_w_tool",)
    config.cell.vision.update({"steps": 2, "worlds": 1})
    for stage in ablate.STAGES:
        config.cell[stage].update({"steps": 2, "warmup": 1, "workers": 0, "log_every": 1})
        config.cell[stage].data.worlds = 1
    return config


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
    for path in rows:
        for line in path.read_text().splitlines():
            assert Trajectory.loads(line).observations[0].tokens in (24, 56)

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(ablate, "train", never)
    monkeypatch.setattr(ablate, "train_vision", never)
    again = io.StringIO()
    ablate.show(config, tmp_path, Console(file=again, width=200))
    assert again.getvalue() == shown.getvalue()
