"""The RL trainer end to end: with scripted rollouts (resume, replacement, limits) and with the engine on real videos."""

import hashlib
import json
import pathlib

import fake_groups
import jax
import numpy as np
import pytest
from rollout_fakes import CROP, NoiseVideo

from configs import rl_clueworld
from vo3.chat import PromptPack
from vo3.rollout import GroupRollout
from vo3.train import grpo
from vo3.train.collect import CollectError
from vo3.train.config import ConfigError, override
from vo3.train.prompts import Prompt
from vo3.trajectory import Trajectory

BASE = {
    "steps": 3, "init_from": "random", "checkpoint.every": 1, "checkpoint.background": False, "checkpoint.export_hf": False,
    "optim.rate": 1e-3, "data.rows_per_device": 2, "loss.chunk": 64, "checkpoint.keep": 9,
    "rl.prompts_per_step": 2, "rl.group": 3, "rl.align": 8, "rl.shapes": ((1280, 128, 512),), "rl.when_short": "stop",
    "rl.rollout.max_length": 1024, "rl.trajectories_every": 1,
}  # fmt: skip


def config(**changes):
    return override(rl_clueworld.get_config(), **{**BASE, **changes})


class FakePrompts:
    """Tasks named by their number."""

    plan = "cc"

    def __init__(self, per_epoch=None):
        self.per_epoch = per_epoch

    def __getitem__(self, number):
        return Prompt(number, fake_groups.task(f"p{number}"))

    def ready(self, numbers):
        pass


class FakeRoller:
    """Rollouts that depend on weights, task, seed and number, as sampled ones do. `equal`: prompts whose rollouts are all alike."""

    def __init__(self, equal=(), broken=()):
        self.equal, self.broken, self.asked = set(equal), set(broken), []
        self._weights = b""

    def update(self, model):
        self._weights = hashlib.sha256(np.asarray(model.embed.table[...]).tobytes()).digest()

    def roll(self, tasks, *, seed):
        groups = []
        for task in tasks:
            self.asked.append(task.id)
            if task.id in self.broken:
                groups.append(GroupRollout(task, (), "VideoError: gone"))
                continue
            key = hashlib.sha256(self._weights + f"{task.id}/{seed}".encode()).digest()
            rng = np.random.default_rng(list(key))
            # The first two always differ in reward.
            kinds = [0, 1, int(rng.integers(5))] if task.id not in self.equal else [1, 1, 1]
            salt = int(rng.integers(1 << 30))
            groups.append(
                GroupRollout(task, tuple(fake_groups.rollout(task.id, k, salt) for k in kinds))
            )
        return groups


def parts(roller=None, per_epoch=None):
    return grpo.Parts(
        prompts=FakePrompts(per_epoch),
        roller=roller or FakeRoller(),
        model=fake_groups.architecture(),
        setting=grpo.Setting(fake_groups.tokenizer(), PromptPack.load("clueworld"), CROP),
        open_video=lambda task: NoiseVideo(seed=1),
    )


def run(workdir, *, roller=None, per_epoch=None, stop_after=None, **changes):
    return grpo.train(
        config(**changes), workdir, parts=parts(roller, per_epoch), devices=jax.devices()[:1], stop_after=stop_after
    )  # fmt: skip


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return run(workdir, roller=FakeRoller(equal=["p1", "p4"])), workdir


def test_groups_of_equal_reward_are_replaced_and_everything_is_logged(whole):
    result, workdir = whole
    assert (result.step, result.finished) == (3, True)
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3]
    # p1 and p4 are replaced: steps take p0-p2, p3-p5, p6-p7.
    assert [r["prompts"] for r in rows] == [3, 6, 8] and {r["groups"] for r in rows} == {2}
    assert rows[0]["dropped"] == pytest.approx(1 / 3) and rows[2]["dropped"] == 0
    wanted = {
        "reward", "accuracy", "accuracy_with_call", "calls", "grounding", "turns", "tokens_per_turn", "exceeded", "void",
        "entropy", "ratio", "clipped_high", "gap", "gap_max", "rollout_tokens_per_second", "update_tokens_per_second",
        "host_wait", "loss", "gradient_norm", "programs", "accuracy/clue_single_w_tool",
    }  # fmt: skip
    assert wanted <= set(rows[0])
    assert rows[0]["ratio"] == 1 and rows[0]["gradient_norm"] > 0
    assert rows[0]["programs"] == rows[2]["programs"] == 3
    lines = (workdir / "trajectories" / "step-000002.jsonl").read_text().splitlines()
    found = [Trajectory.loads(line) for line in lines]
    assert len(found) == 9 and {t.meta["rl"]["prompt"] for t in found} == {3, 4, 5}
    assert {t.meta["rl"]["trained"] for t in found} >= {True}


@pytest.mark.parametrize("stop", [1, 1.5])
def test_a_run_that_goes_on_is_bitwise_the_uninterrupted_one(whole, tmp_path, stop):
    result, _ = whole
    first = run(tmp_path, roller=FakeRoller(equal=["p1", "p4"]), stop_after=stop)
    assert (first.step, first.finished) == (1, False)
    roller = FakeRoller(equal=["p1", "p4"])
    again = run(tmp_path, roller=roller)
    assert_same(again.params, result.params)
    # Between rollouts and update the rollouts are kept; after the update they are made.
    assert roller.asked == (["p3", "p4", "p5"] if stop == 1 else []) + ["p6", "p7"]


def test_several_updates_make_the_ratio_matter(tmp_path):
    result = run(tmp_path, steps=1, **{"rl.mini_batches": 2, "rl.epochs": 2, "optim.rate": 0.02})
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["ratio_max"] > 1.001 and row["programs"] == 4 and result.finished
    from vo3.train import checkpoints

    saved = json.loads((tmp_path / "checkpoints" / "1" / "position" / "metadata").read_text())
    assert checkpoints.Position(**saved).cursor == 2


def test_too_few_groups_end_the_run_with_the_reason(tmp_path):
    roller = FakeRoller(equal=[f"p{i}" for i in range(99) if i != 2], broken=["p1"])
    with pytest.raises(
        CollectError, match=r"1 of 2 groups after 6 prompts.*'unreadable': 1.*raise rl.draw_limit"
    ):
        run(tmp_path / "a", roller=roller, **{"rl.draw_limit": 3.0})
    short = run(
        tmp_path / "b", roller=roller, steps=1, **{"rl.draw_limit": 3.0, "rl.when_short": "train"}
    )
    assert short.finished
    row = json.loads((tmp_path / "b" / "log.jsonl").read_text())
    assert row["groups"] == 1 and row["unreadable"] == pytest.approx(1 / 6)


def test_the_run_ends_with_the_data(tmp_path):
    result = run(tmp_path, per_epoch=3, steps=9)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (result.step, result.finished) == (2, True) and [r["groups"] for r in rows] == [2, 1]


def test_a_workdir_of_another_configuration_is_refused(whole):
    _, workdir = whole
    with pytest.raises(ConfigError, match=r"rl\.group=3, now 4"):
        run(workdir, **{"rl.group": 4})


def test_the_embedded_model_learns_from_real_videos(tmp_path):
    """Videos, engine, reward, update, export: by the names in the config alone. What the sampler says of a token is what the trainer says."""
    small = {
        "init_from": "model", "steps": 1, "rl.clueworld.worlds": 1, "rl.clueworld.longest": 121, "rl.clueworld.options_share": 1.0,
        "rl.min_std": 0.0, "rl.group": 2, "rl.prompts_per_step": 1, "rl.shapes": ((1280, 1024, 256),), "data.rows_per_device": 1,
        "rl.clueworld.tool_share": 1.0, "checkpoint.export_hf": True,
    }  # fmt: skip
    result = grpo.train(config(**small), tmp_path, devices=jax.devices()[:1])
    assert result.finished
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["gap_max"] <= 1e-4 and row["trained_tokens"] > 20
    assert len(list((tmp_path / "videos").iterdir())) == 1
    lines = (tmp_path / "trajectories" / "step-000001.jsonl").read_text().splitlines()
    assert len(lines) == 2 and pathlib.Path(Trajectory.loads(lines[0]).task.video).exists()
    assert (tmp_path / "export" / "config.json").exists()
