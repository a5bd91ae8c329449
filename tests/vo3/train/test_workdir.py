"""Whose a workdir is, through kills and damage."""

import json

import pytest
from etils import epath
from runs import run_config

from vo3.models.safetensors_io import CheckpointError
from vo3.train import finished
from vo3.train.config import ConfigError
from vo3.train.workdir import claim, stored


@pytest.fixture
def claimed(tmp_path):
    """A workdir with a checkpoint, by its name."""
    claim(tmp_path, run_config())
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    return tmp_path


def test_what_changes_nothing_of_the_result_may_change_and_is_kept(claimed):
    claim(claimed, run_config(**{"log.every": 7}))
    assert stored(claimed)["log.every"] == 7
    with pytest.raises(ConfigError, match="seed=0, now 1"):
        claim(claimed, run_config(seed=1))
    assert stored(claimed)["seed"] == 0
    assert [p.name for p in claimed.iterdir() if p.is_file()] == ["config.json"]


def test_a_run_of_before_a_key_was_there_goes_on_with_what_it_did(claimed):
    kept = stored(claimed)
    del kept["optim.scales"]
    (claimed / "config.json").write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match=r"optim\.scales=\[\], now \[\['embed', 0\.5\]\]"):
        claim(claimed, run_config(**{"optim.scales": (("embed", 0.5),)}))
    claim(claimed, run_config())
    assert stored(claimed)["optim.scales"] == []


def test_killed_while_it_is_written_the_configuration_is_the_one_before(claimed, monkeypatch):
    def killed(self, text, **_):
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    before = stored(claimed)
    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(claimed)), "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            claim(claimed, run_config(**{"log.every": 7}))
    assert stored(claimed) == before
    with pytest.raises(ConfigError, match="another configuration"):
        claim(claimed, run_config(seed=1))
    claim(claimed, run_config(**{"log.every": 7}))
    assert stored(claimed)["log.every"] == 7


@pytest.mark.parametrize("text", ['{"seed": 0,', "", "[]"])
def test_checkpoints_without_a_readable_configuration_are_refused(claimed, text):
    (claimed / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is no JSON .*delete it and start"):
        claim(claimed, run_config())
    assert (claimed / "config.json").read_text() == text
    with pytest.raises(CheckpointError, match="is no JSON"):
        finished.load_run(claimed)
    (claimed / "config.json").unlink()
    claim(claimed, run_config())
    assert json.loads((claimed / "config.json").read_text())["seed"] == 0


def test_half_a_configuration_of_which_nothing_came_is_replaced(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 0,')
    claim(tmp_path, run_config(seed=1))
    assert stored(tmp_path)["seed"] == 1
