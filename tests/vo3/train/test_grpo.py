"""The RL trainer end to end: with scripted rollouts (resume, replacement, limits) and with the engine on real videos."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from rl_runs import FakeRoller, config, parts

from configs import rl_clueworld
from vo3.clueworld.film import write_video
from vo3.clueworld.pixels import Renderer
from vo3.clueworld.world import FPS, make_world
from vo3.models import hf_io
from vo3.rollout import Sampling
from vo3.train import checkpoints, grpo
from vo3.train.collect import CollectError, GroupRoller
from vo3.train.config import ConfigError, load, override
from vo3.train.finished import load_run
from vo3.train.prompts import FIRST_WORLD
from vo3.trajectory import Trajectory
from vo3.video import VideoError

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]


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
    assert rows[0]["dropped"] == pytest.approx(1 / 3, rel=1e-4) and rows[2]["dropped"] == 0
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


@pytest.mark.parametrize("stop", [1, pytest.param(1.5, marks=pytest.mark.soak)])
def test_a_run_that_goes_on_is_bitwise_the_uninterrupted_one(whole, tmp_path, stop):
    result, _ = whole
    first = run(tmp_path, roller=FakeRoller(equal=["p1", "p4"]), stop_after=stop)
    assert (first.step, first.finished) == (1, False)
    roller = FakeRoller(equal=["p1", "p4"])
    again = run(tmp_path, roller=roller)
    assert_same(again.params, result.params)
    # Between rollouts and update the rollouts are kept; after the update they are made.
    assert roller.asked == (["p3", "p4", "p5"] if stop == 1 else []) + ["p6", "p7"]


class ScriptedEngine:
    """What `GroupRoller` needs of the engine, around scripted rollouts; `said`: what it was asked to do."""

    def __init__(self, said):
        self.said, self._roller = said, FakeRoller(equal=["p1", "p4"])

    def update(self, model):
        self._roller.update(model)

    def open_ahead(self, tasks, open_video):
        self.said.append("ahead")

    def run(self, tasks, open_video, *, sampling, seed):
        self.said.append("run")
        return self._roller.roll(tasks, seed=seed)

    def close(self):
        self.said.append("close")


def real_roller(said):
    def make(model):
        engine = ScriptedEngine(said)
        engine.update(model)
        return engine

    return GroupRoller(make, None, Sampling(temperature=1.0))


def test_the_engines_roller_goes_on_from_kept_rollouts(whole, tmp_path):
    """The step that was interrupted needs no engine, and the next one's videos are begun before there is one."""
    result, _ = whole
    said = []
    assert run(tmp_path, roller=real_roller(said), stop_after=1.5).step == 1
    assert said.count("ahead") == 1 and said[-1] == "close"
    said = []
    again = run(tmp_path, roller=real_roller(said))
    assert_same(again.params, result.params)
    assert said[0] == "run" and again.finished


def test_kept_rollouts_that_are_all_lost_are_made_anew(whole, tmp_path):
    result, _ = whole
    run(tmp_path, roller=FakeRoller(equal=["p1", "p4"]), stop_after=1.5)
    gone = dataclasses.replace(parts(FakeRoller(equal=["p1", "p4"])), open_video=no_video)
    again = grpo.train(config(), tmp_path, parts=gone, devices=jax.devices()[:1])
    assert gone.roller.asked == ["p3", "p4", "p5", "p6", "p7"]
    assert_same(again.params, result.params)


def no_video(task):
    raise VideoError("missing", f"{task.video} is gone", "put it back")


def test_data_that_ends_on_dropped_groups_leaves_the_last_state_behind(tmp_path):
    """Two prompts a step; those of the second step are all alike, so there is nothing to learn from after the first."""
    roller = FakeRoller(equal=[f"p{i}" for i in range(2, 4)])
    result = run(tmp_path, roller=roller, per_epoch=4, steps=9, **{"checkpoint.every": 5, "log.every": 5})  # fmt: skip
    assert (result.step, result.finished) == (1, True)
    [row] = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert row["step"] == 1 and (tmp_path / "checkpoints" / "1").exists()
    # Asked to end within the last, short step: it is the last one when the run goes on, too.
    short = {"per_epoch": 3, "steps": 9, "checkpoint.every": 5}
    run(tmp_path / "cut", stop_after=1.5, **short)
    assert run(tmp_path / "cut", roller=(one := FakeRoller()), **short).step == 2
    assert one.asked == [] and (tmp_path / "cut" / "checkpoints" / "2").exists()


@pytest.mark.soak
def test_several_updates_make_the_ratio_matter(tmp_path):
    result = run(tmp_path, steps=1, **{"rl.mini_batches": 2, "rl.epochs": 2, "optim.rate": 0.02})
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["ratio_max"] > 1.001 and row["programs"] == 4 and result.finished
    saved = json.loads((tmp_path / "checkpoints" / "1" / "position" / "metadata").read_text())
    assert checkpoints.Position(**saved).cursor == 2


def test_too_few_groups_end_the_run_with_the_reason_and_it_goes_on_with_the_remedy(tmp_path):
    """From the step before, for which no checkpoint was due; of the prompts after it only p7 has a group to learn from."""
    roller = FakeRoller(equal=[f"p{i}" for i in range(2, 99) if i != 7], broken=["p4"])
    changes = {"steps": 2, "rl.draw_limit": 2.0, "checkpoint.every": 9, "log.every": 9}
    with pytest.raises(CollectError, match=r"0 of 2 groups after 4 prompts.*'unreadable': 1.*higher --config.rl.draw_limit; other"):  # fmt: skip
        run(tmp_path, roller=roller, **changes)
    with pytest.raises(CollectError, match=r"1 of 2 groups after 6 prompts.*or with --config.rl.when_short=train"):  # fmt: skip
        run(tmp_path, roller=roller, **{**changes, "rl.draw_limit": 3.0})
    roller.asked.clear()
    short = run(tmp_path, roller=roller, **{**changes, "rl.draw_limit": 3.0, "rl.when_short": "train"})  # fmt: skip
    assert short.finished and roller.asked == [f"p{i}" for i in range(2, 8)]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and [row["groups"] for row in rows] == [2, 1]
    assert rows[1]["unreadable"] == pytest.approx(1 / 6, rel=1e-4)


def test_a_row_that_is_too_small_ends_the_run_and_it_goes_on_with_larger_ones(whole, tmp_path):
    small = {"rl.shapes": ((1280, 4, 512),), "checkpoint.every": 9}
    roller = FakeRoller(equal=["p1", "p4"])
    with pytest.raises(ConfigError, match=r"raise the last of rl\.shapes, with which the run may go on"):  # fmt: skip
        run(tmp_path, roller=roller, **small)
    again = run(tmp_path, roller=(one := FakeRoller(equal=["p1", "p4"])))
    # The rollouts are kept; nothing else is.
    assert roller.asked == ["p0", "p1", "p2"] and one.asked == [f"p{i}" for i in range(3, 8)]
    assert_same(again.params, whole[0].params)


@pytest.mark.soak
def test_the_run_ends_with_the_data(tmp_path):
    result = run(tmp_path, per_epoch=3, steps=9)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (result.step, result.finished) == (2, True) and [r["groups"] for r in rows] == [2, 1]


def test_the_page_names_files_of_trajectories_that_a_run_writes():
    every = config(**{"rl.trajectories_every": 10}).rl.trajectories_every
    written = [f"step-{n:06d}" for n in range(1, 30) if grpo.Loop._due(every, n)]
    assert written == ["step-000001", "step-000011", "step-000021"]
    named = re.findall(r"step-\d{6}", (ROOT / "docs" / "rl.md").read_text())
    assert named and set(named) <= set(written)


def test_a_workdir_of_another_configuration_is_refused(whole):
    _, workdir = whole
    with pytest.raises(ConfigError, match=r"rl\.group=3, now 4"):
        run(workdir, **{"rl.group": 4})


def test_the_embedded_model_learns_from_real_videos(tmp_path):
    """Videos, engine, reward, update, export: by the names in the config alone. What the sampler says of a token is what the trainer says."""
    small = {
        "init_from": "clueworld-sft", "steps": 1, "rl.clueworld.worlds": 1, "rl.clueworld.longest": 121, "rl.clueworld.options_share": 1.0,
        "rl.min_std": 0.0, "rl.group": 2, "rl.prompts_per_step": 1, "rl.shapes": ((1280, 1024, 256),), "data.rows_per_device": 1,
        "rl.clueworld.tool_share": 1.0, "rl.clueworld.grounding_share": 0.0, "checkpoint.export_hf": True,
    }  # fmt: skip
    result = grpo.train(config(**small), tmp_path, devices=jax.devices()[:1])
    assert result.finished
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["gap_max"] <= 1e-4 and row["trained_tokens"] > 20
    assert len(list((tmp_path / "videos").iterdir())) == 1
    lines = (tmp_path / "trajectories" / "step-000001.jsonl").read_text().splitlines()
    assert len(lines) == 2 and pathlib.Path(Trajectory.loads(lines[0]).task.video).exists()
    assert (tmp_path / "export" / "config.json").exists()


COMMAND = {
    "steps": 2, "rl.clueworld.worlds": 1, "rl.clueworld.longest": 121, "rl.min_std": 0.0, "rl.group": 2,
    "rl.prompts_per_step": 1, "data.rows_per_device": 1, "checkpoint.every": 1, "checkpoint.keep": 3, "checkpoint.export_hf": False,
    "rl.trajectories_every": 1,
}  # fmt: skip


def command(workdir, *, after_step_one=None):
    """The command itself, on one device; `after_step_one`: a signal that is sent while the second step rolls out."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "vo3.train.grpo", "--config=configs/rl_clueworld.py", f"--workdir={workdir}",
         *(f"--config.{key}={value}" for key, value in COMMAND.items())],
        env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = workdir / "log.jsonl"
    while after_step_one is not None and process.poll() is None:
        if log.exists() and log.read_text():
            time.sleep(0.2)  # the second step's rollouts are under way
            process.send_signal(after_step_one)
            break
        time.sleep(0.02)
    return process.wait(timeout=900), process.stderr.read()


@pytest.mark.soak
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_makes_the_same_rollouts_again(tmp_path, how):
    """Real model, engine and video: killed in the second step's rollouts they come back by their seeds; asked to end, they are kept for the update."""
    code, said = command(tmp_path / "whole")
    assert code == 0, said[-3000:]
    code, _ = command(tmp_path / "cut", after_step_one=how)
    log = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert (code, len(log)) == (-how if how == signal.SIGKILL else 0, 1)
    assert (tmp_path / "cut" / "pending").exists() == (how == signal.SIGTERM)
    code, said = command(tmp_path / "cut")
    assert code == 0, said[-3000:]
    one, two = (load_run(tmp_path / name) for name in ("whole", "cut"))
    assert_same(hf_io.flatten(nnx.state(two)), hf_io.flatten(nnx.state(one)))
    texts = [
        [Trajectory.loads(line).turns for line in path.read_text().splitlines()]
        for path in sorted(tmp_path.glob("*/trajectories/step-000002.jsonl"))
    ]
    ids = [[[turn.ids for turn in turns] for turns in one] for one in texts]
    assert len(ids) == 2 and ids[0] == ids[1]
    rows = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    for name in ("reward", "loss", "gradient_norm", "gap_max", "trained_tokens"):
        assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]]


@pytest.mark.soak
def test_rl_zero_on_rows_of_files_and_folders(tmp_path):
    """`configs/rl_zero.py` at the embedded model's size, by the names in the config: an mp4, a folder of frames at 4 fps, a grounding row without tools, a video that is not there."""
    world = make_world(FIRST_WORLD + 7, duration=120)
    write_video(world, tmp_path / "videos" / "a.mp4")
    folder = tmp_path / "videos" / "b"
    folder.mkdir()
    renderer = Renderer(world)
    for number in range(world.frames):
        Image.fromarray(renderer.frame(number / FPS)).save(folder / f"{number:05d}.jpg")
    card = world.cards[0]
    asked = {
        "problem": f"Which digit is on the {card.color} card?",
        "options": None,
        "data_source": "clue_single_w_tool",
    }
    shown = {
        "problem": f"When is the {card.color} card shown?",
        "options": None,
        "data_source": "temporal_grounding",
    }
    clue = [{"timestamp": [card.start, card.end], "text": ""}]
    rows = [
        {**asked, "video": "a.mp4"}, {**asked, "video": "b", "frame_fps": 4.0}, {**shown, "video": "a.mp4"},
        {**asked, "video": "missing.mp4"},
    ]  # fmt: skip
    lines = [
        {"doc_id": f"row{i}", **row, "solution": {"answer": str(card.digit), "clue": clue}}
        for i, row in enumerate(rows)
    ]
    (tmp_path / "rl.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    small = rl_clueworld.get_config()
    changes = {
        "model": "clueworld", "dtype": "float32", "remat": "none", "data.prompt_pack": "clueworld", "data.rows": str(tmp_path / "rl.jsonl"),
        "data.videos": str(tmp_path / "videos"), "data.workers": 1, "loss.chunk": 64, "checkpoint.export_hf": False,
        "rl.rollout.max_new_tokens": 160, "rl.rollout.max_length": 1024, "rl.align": 16, "rl.shapes": ((2048, 4096, 1024),),
        "rl.group": 2, "rl.prompts_per_step": 2, "rl.min_std": 0.0, "rl.trajectories_every": 1, "rl.rollout.workers": 2,
        **{f"rl.buckets.{k}": tuple(v) for k, v in small.rl.buckets.items()},
    }  # fmt: skip
    config = override(load("configs/rl_zero.py"), **changes)
    result = grpo.train(config, tmp_path / "run", devices=jax.devices()[:1])
    assert result.finished
    rows = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    # Three groups of the four rows; the one whose video is missing is named and replaced.
    assert sum(row["groups"] for row in rows) == 3 and rows[-1]["prompts"] == 4
    assert max(row["gap_max"] for row in rows) <= 1e-4
    found = [
        Trajectory.loads(line)
        for path in (tmp_path / "run" / "trajectories").iterdir()
        for line in path.read_text().splitlines()
    ]
    by_row = {t.task.id.split("#")[0]: t for t in found}
    assert set(by_row) == {"row0", "row1", "row2"} and len(found) == 6
    assert by_row["row1"].task.frame_fps == 4.0
    ends = [by_row[f"row{i}"].observations[0].end for i in range(3)]
    assert max(ends) - min(ends) < 1.0
    # Curriculum: single clues come before grounding, or the rule names it single; no call where there is no tool.
    assert all(not t.calls and len(t.turns) == 3 for t in found if t.task.id.startswith("row2"))
    said = subprocess.run(
        [sys.executable, "-m", "vo3.cli", "view", str(next((tmp_path / "run" / "trajectories").iterdir())), "--out", str(tmp_path / "pages")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr


def together(workdir, count, devices, *arguments):
    """`rl_runs.py` in so many processes, which share the devices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{HERE}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // count}",
    }  # fmt: skip
    place = lambda i: {} if count == 1 else {"VO3_COORDINATOR": f"127.0.0.1:{port}", "VO3_PROCESSES": str(count), "VO3_PROCESS": str(i)}  # fmt: skip
    made = [
        subprocess.Popen(
            [sys.executable, str(HERE / "rl_runs.py"), str(workdir), *arguments],
            env={**env, **place(i)}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(count)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=1500)[0] for process in made]
    for process, output in zip(made, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


@pytest.mark.soak
def test_sigterm_to_one_process_is_not_lost_in_rollouts(tmp_path):
    """In the third step's: the first save has then passed, and the numbers of steps and of stops have parted."""
    together(tmp_path, 2, 2, "3")
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}
    assert {p.name for p in (tmp_path / "pending").iterdir()} == {"0.jsonl", "1.jsonl"}


@pytest.mark.soak
@pytest.mark.parametrize("several", [2, 4])
def test_processes_train_as_one(tmp_path, several):
    """One step on as many devices, in one process and in several: each rolls out its own prompts, one of which is replaced; of four processes one has none."""
    for count in (1, several):
        together(tmp_path / str(count), count, several)
    one, two = (np.load(tmp_path / str(count) / "final.npz") for count in (1, several))
    for name in one.files:
        np.testing.assert_allclose(two[name], one[name], atol=2e-5, err_msg=name)
    rows = [json.loads((tmp_path / str(count) / "log.jsonl").read_text()) for count in (1, several)]
    assert rows[0]["prompts"] == rows[1]["prompts"] == 4 and rows[1]["groups"] == 3
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], abs=1e-5)
