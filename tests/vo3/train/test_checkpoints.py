"""Checkpoints: resume, damage, other meshes and processes, SIGTERM, kill -9, export."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint._src.path import gcs_utils
from runs import BATCHES, run_config
from tiny_rows import MODEL, assert_close

from vo3.models.safetensors_io import CheckpointError
from vo3.train import checkpoints as ckpt
from vo3.train import config as config_lib
from vo3.train import faults, finished, sft
from vo3.train.config import ConfigError
from vo3.train.feed import ListFeed
from vo3.train.sharding import make_mesh
from vo3.train.state import trainable
from vo3.train.step import NOT_FINITE

ROOT = pathlib.Path(__file__).resolve().parents[3]
HERE = pathlib.Path(__file__).parent


def feed_of(steps=BATCHES, *, plan="aa", feed=ListFeed):
    made = feed(steps)
    made.plan = plan
    return made


def train(workdir, *, devices=1, feed=None, stop_after=None, **changes):
    return sft.train(
        run_config(**changes), workdir, feed=feed or feed_of(), stop_after=stop_after,
        devices=jax.devices()[:devices], model=MODEL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return train(workdir), workdir


@pytest.fixture
def copied(whole, tmp_path):
    """The finished run's workdir, to be damaged."""
    shutil.copytree(whole[1], tmp_path / "run")
    return tmp_path / "run"


def restoring(workdir):
    """The checkpoints of a run as it opens them."""
    made = config_lib.resolve(run_config(), needs_data=False)
    run = trainable(made, make_mesh(made, jax.devices()[:1]), model=MODEL)
    return ckpt.Checkpoints(workdir, run, plan="aa")


def assert_bitwise(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


def steps_of(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


class Terminated(ListFeed):
    """Sends this process SIGTERM while the third step is made."""

    def micro_batches(self, start, stop):
        for item in super().micro_batches(start, stop):
            if item.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item


def test_sigterm_saves_and_the_run_goes_on_bitwise(whole, tmp_path):
    first = train(tmp_path, feed=feed_of(feed=Terminated))
    assert not first.finished and first.step in (1, 2, 3)
    assert first.step in steps_of(tmp_path)
    second = train(tmp_path)
    assert second.finished
    assert_bitwise(second.params, whole[0].params)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]


def test_the_time_of_a_step_is_that_of_all_its_micro_batches(whole):
    rows = [json.loads(line) for line in (whole[1] / "log.jsonl").read_text().splitlines()]
    assert len(BATCHES[0]) == 2 and run_config().log.every == 1
    for row in rows:
        assert row["seconds_per_step"] == row["seconds"] > 0
        assert row["eta"] == pytest.approx((6 - row["step"]) * row["seconds"], rel=1e-5)


def test_only_so_many_checkpoints_are_kept(whole):
    assert steps_of(whole[1]) == [4, 6]


def test_a_checkpoint_says_where_the_run_stands(whole):
    folder = whole[1] / "checkpoints" / "6" / "position"
    position = json.loads(next(p for p in folder.iterdir() if p.is_file()).read_text())
    assert position["step"] == 6 and position["processes"] == 1 and position["plan"] == "aa"
    assert position["mesh"]["fsdp"] == 1


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(whole, copied, caplog):
    files = [p for p in (copied / "checkpoints" / "6" / "state").rglob("*") if p.is_file()]
    for file in sorted(files, key=lambda p: p.stat().st_size)[-3:]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    result = train(copied)
    assert "checkpoint of step 6" in caplog.text and "set aside" in caplog.text
    assert result.finished and (copied / "damaged" / "6-0").is_dir()
    assert (copied / "damaged" / "6-0.txt").read_text().strip()
    assert_bitwise(result.params, whole[0].params)


def test_with_every_checkpoint_unreadable_every_start_says_so_and_nothing_is_moved(copied):
    for folder in (copied / "checkpoints").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder / "state", ignore_errors=True)
    logged = (copied / "log.jsonl").read_text()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"none of the checkpoints .* can be read"):
            train(copied)
    assert steps_of(copied) == [4, 6] and not (copied / "damaged").exists()
    assert (copied / "log.jsonl").read_text() == logged


def test_what_fails_for_a_while_loses_nothing(whole, copied, monkeypatch):
    def short_of_memory(*_, **__):
        raise MemoryError("RESOURCE_EXHAUSTED: 1 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", short_of_memory)
        with pytest.raises(CheckpointError, match=r"step 6: MemoryError: RESOURCE_EXHAUSTED"):
            train(copied)
    with restoring(copied) as checkpoints:
        assert checkpoints.restore().position.step == 6


def test_a_run_whose_checkpoints_were_all_set_aside_does_not_begin_again(copied):
    (copied / "damaged").mkdir()
    for step in (4, 6):
        (copied / "checkpoints" / str(step)).rename(copied / "damaged" / f"{step}-0")
    logged = (copied / "log.jsonl").read_text()
    with pytest.raises(CheckpointError, match=r"damaged holds 4-0, 6-0: .*Move one back"):
        train(copied)
    assert (copied / "log.jsonl").read_text() == logged
    (copied / "damaged" / "6-0").rename(copied / "checkpoints" / "6")
    with restoring(copied) as checkpoints:
        assert checkpoints.restore().position.step == 6


def test_a_cut_checkpoint_is_named_where_only_its_parameters_are_read(copied):
    shapes = {"embed.table": jax.ShapeDtypeStruct((4, 4), np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}  # fmt: skip
    newest = max(steps_of(copied))
    folder = copied / "checkpoints" / str(newest) / "state"
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=rf"{newest}/state cannot be read .*older step"):
        finished.read_params(copied, shapes)


def test_half_of_the_frozen_parameters_on_a_bucket_is_written_again(copied, monkeypatch):
    """On gs:// Orbax writes in place and marks what is whole; a folder that it takes for one there stands for it."""
    monkeypatch.setattr(gcs_utils, "is_gcs_path", lambda path: path.name == "frozen")
    file = max((copied / "frozen" / "d").iterdir(), key=lambda p: p.stat().st_size)
    for lost in (file, copied / "frozen" / "commit_success.txt"):
        lost.unlink()
    with restoring(copied) as checkpoints:
        shapes = checkpoints.run.part(frozen=True)
        made = {n: np.full(s.shape, i, s.dtype) for i, (n, s) in enumerate(shapes.items())}
        put = lambda: {n: jax.device_put(x, shapes[n].sharding) for n, x in made.items()}
        assert_bitwise(checkpoints.frozen(put), made)
        assert (copied / "frozen" / "commit_success.txt").exists()
        assert_bitwise(checkpoints.frozen(lambda: pytest.fail("they are there")), made)
        # Without a checkpoint they may be of a model that was replaced since.
        other = {n: x + 1 for n, x in put().items()}
        assert_bitwise(checkpoints.frozen(lambda: other, anew=True), other)
        assert_bitwise(checkpoints.frozen(lambda: pytest.fail("they are there")), other)


def test_a_start_without_a_checkpoint_takes_no_frozen_weights_of_an_earlier_one(whole, copied):
    """They may be of a model that was replaced since."""
    with restoring(copied) as checkpoints:
        kept = checkpoints.frozen(lambda: pytest.fail("they are there"))
        assert kept
        checkpoints.frozen(lambda: {n: x + 1 for n, x in kept.items()}, anew=True)
    shutil.rmtree(copied / "checkpoints")
    assert_bitwise(train(copied).params, whole[0].params)


def test_another_data_plan_is_refused(copied):
    with pytest.raises(CheckpointError, match="another data plan"):
        train(copied, feed=feed_of(plan="bb"))


def test_a_mesh_of_another_shape_goes_on_within_rounding(whole, copied):
    shutil.rmtree(copied / "checkpoints" / "6")
    result = train(copied, devices=2, **{"mesh.fsdp": 2})
    np.testing.assert_allclose(
        list(losses(copied).values()), list(losses(whole[1]).values()), rtol=1e-5
    )
    # Adam divides by the gradient's own size: rounding is seen in full where that is tiny.
    assert_close(result.params, whole[0].params, relative=1e-3)


def test_a_configuration_that_changes_the_result_is_refused(whole):
    with pytest.raises(ConfigError, match="seed=0, now 1"):
        train(whole[1], seed=1)


def test_a_step_that_is_not_finite_stops_the_run_or_is_skipped(tmp_path):
    good = BATCHES[0]
    nan = dataclasses.replace(good[1], weight=good[1].weight * np.float32("nan"))
    feed = lambda: feed_of([good, [good[0], nan], good])
    with pytest.raises(faults.TrainingFault, match=r"step 2: .*not finite.*list 1\.1") as error:
        train(tmp_path, feed=feed(), steps=3)
    assert "on_nan=skip" in str(error.value)
    dumped = np.load(tmp_path / "faults" / "step-000002-process0-1.npz")
    np.testing.assert_array_equal(dumped["ids"], nan.ids)
    result = train(tmp_path, feed=feed(), steps=3, on_nan="skip")
    assert result.step == 3
    assert all(np.isfinite(np.asarray(x)).all() for x in result.params.values())


def test_steps_that_are_all_skipped_end_the_run_and_few_are_dumped(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "IN_A_ROW", 5)
    good = BATCHES[0]
    nan = [dataclasses.replace(b, weight=b.weight * np.float32("nan")) for b in good]
    with pytest.raises(faults.TrainingFault, match=r"step 6: .*last of 5 in a row.*checkpoints: \[4, 2\]"):  # fmt: skip
        train(tmp_path, feed=feed_of([good, *[nan] * 5]), on_nan="skip")
    written = {p.name for p in (tmp_path / "faults").iterdir()}
    step = lambda number: f"step-00000{number}-process0"
    dumped = {f"{step(n)}-{i}.npz" for n in (2, 3, 4) for i in (0, 1)}
    assert written == dumped | {f"{step(n)}.txt" for n in range(2, 7)}
    # One that is taken in between makes them two stories.
    counted = faults.Faults("skip", list)
    for _ in range(9):
        counted.add(NOT_FINITE, "step")
        counted.none()
    assert counted.total == 9


def test_a_file_system_that_takes_no_more_is_named(tmp_path):
    """A limit on file sizes stands for a full disk."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "import runs\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\n"
        "from vo3.models.safetensors_io import CheckpointError\n"
        "try:\n"
        f"    runs.main({str(tmp_path)!r})\n"
        "except CheckpointError as error:\n"
        "    print('TOLD', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert "TOLD the checkpoint of step" in done.stdout and "disk full" in done.stdout, (
        done.stdout[-1000:] + done.stderr[-2000:]
    )


# ---------------------------------------------------------------- processes


def environment(**more):
    # The same flags as here, unless others are given: bitwise holds on the same machine with the same devices.
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "JAX_PLATFORMS": "cpu", **more}


def start(workdir, *arguments, **more):
    return subprocess.Popen(
        [sys.executable, str(HERE / "runs.py"), str(workdir), *arguments],
        env=environment(**more), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def processes_of(workdir, count, *arguments):
    """Processes with four devices in all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start(
            workdir, *arguments, VO3_COORDINATOR=f"127.0.0.1:{port}", VO3_PROCESSES=str(count), VO3_PROCESS=str(i),
            XLA_FLAGS=f"--xla_force_host_platform_device_count={4 // count}",
        )
        for i in range(count)
    ]  # fmt: skip


def start_all(workdir, count, *arguments):
    made = processes_of(workdir, count, *arguments)
    outputs = [process.communicate(timeout=600)[0] for process in made]
    for process, output in zip(made, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


def final(workdir):
    return dict(np.load(workdir / "final.npz"))


def losses(workdir):
    return {
        row["step"]: row["loss"]
        for row in map(json.loads, (workdir / "log.jsonl").read_text().splitlines())
    }


def kill_and_resume(workdir, seconds):
    """Kills the run that many seconds after its first line of progress, as often as given, then lets it end."""
    for wait in seconds:
        # It may read compiled programs, not write them: a kill in between would leave half an entry.
        never = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
        process = start(workdir, "--slow=0.1", "--devices=1", **never)
        for line in process.stdout:
            if "step " in line and " loss " in line:
                break
        time.sleep(wait)
        process.kill()
        process.communicate()
    process = start(workdir, "--devices=1")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    return final(workdir)


def test_killed_twice_the_run_ends_bitwise_the_same(whole, tmp_path):
    assert_bitwise(kill_and_resume(tmp_path, (0.05, 0.3)), whole[0].params)


@pytest.mark.soak
def test_killed_at_ten_random_moments_the_run_ends_bitwise_the_same(whole, tmp_path):
    rng = random.Random(0)
    for trial in range(5):
        waits = [rng.uniform(0, 1.0) for _ in range(2)]
        assert_bitwise(kill_and_resume(tmp_path / str(trial), waits), whole[0].params)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_several_processes_are_one(whole, tmp_path, count):
    start_all(tmp_path, count, "--steps=2")
    first = lambda workdir, key: [
        json.loads(line)[key] for line in (workdir / "log.jsonl").read_text().splitlines()[:2]
    ]
    for key in ("loss", "gradient_norm"):
        np.testing.assert_allclose(first(tmp_path, key), first(whole[1], key), rtol=1e-5)


@pytest.mark.soak
def test_resumed_on_other_numbers_of_processes(whole, tmp_path):
    start_all(tmp_path, 2, "--stop-after=2")
    start_all(tmp_path, 4, "--stop-after=4")
    start_all(tmp_path, 1)
    ours, expected = losses(tmp_path), losses(whole[1])
    assert list(ours) == list(expected) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(ours.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.parametrize("told", [(1,), pytest.param((0, 1), marks=pytest.mark.soak)])
def test_sigterm_while_a_run_is_resumed_ends_all_with_zero(copied, told):
    """Before the first step, whose number is far from 1."""
    shutil.rmtree(copied / "checkpoints" / "6")
    made = processes_of(copied, 2)
    while "resuming from step 4" not in (line := made[0].stdout.readline()):
        assert line or made[0].poll() is None, "the run ended before it was told to"
    for number in told:
        made[number].send_signal(signal.SIGTERM)
    for process in made:
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0, output[-3000:]
    assert steps_of(copied) in ([4], [4, 5])


@pytest.mark.soak
def test_sigterm_to_one_process_ends_all_with_zero(whole, tmp_path):
    made = processes_of(tmp_path, 2, "--slow=0.5")
    while "step 1/6" not in (line := made[0].stdout.readline()):
        assert line or made[0].poll() is None, "the run ended before its first step"
    made[1].send_signal(signal.SIGTERM)
    for process in made:
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0, output[-3000:]
    assert steps_of(tmp_path) and not (tmp_path / "final.npz").exists()
    start_all(tmp_path, 2)
    np.testing.assert_allclose(
        list(losses(tmp_path).values()), list(losses(whole[1]).values()), rtol=1e-5
    )
