"""The loader: the plan's rows in order, from any step, on any number of hosts, whatever fails on the way."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import av
import jax
import numpy as np
import psutil
import pytest
from loader_world import (
    POLICY,
    TOKENIZER,
    VISION,
    ListedPlan,
    Source,
    trajectory,
    write_video,
)

from vo3.data import items as items_module
from vo3.data import loader as loader_module
from vo3.data.clip_cache import ClipCache
from vo3.data.clips import ClipRef, clip_refs, with_refs
from vo3.data.failures import Failure, FailureLimitError, FailureRecord
from vo3.data.items import Encoding
from vo3.data.lengths import Lengths
from vo3.data.loader import make_loader
from vo3.data.plan import Plan
from vo3.trajectory import Observation, Trajectory, Turn

PLAN = ListedPlan(
    (
        ((0, 1), (2,), (3,), (4,)),
        ((5,), (6, 7), (0,), ()),
        ((1, 2), (3,), (4, 5), (6,), (7,), (0,), (), ()),
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("loader")
    for i in range(4):
        write_video(folder / f"{i}.mp4", seed=i)
    return folder


@pytest.fixture(scope="module")
def source(folder) -> Source:
    return Source([trajectory(i, str(folder / f"{i % 4}.mp4"), clip=i % 2 == 0) for i in range(8)])


@pytest.fixture(scope="module")
def whole(source):
    """Six steps, loaded once."""
    return all_of(load(source=source, stop=6))


def load(plan=PLAN, source=None, *, start=0, stop=3, **options):
    options = {"rows_per_batch": 4, "workers": 0, "crop_policy": POLICY, **options}
    return make_loader(
        plan, source, TOKENIZER, vision=VISION, start_step=start, stop_step=stop, **options
    )


def all_of(loader) -> list[tuple[int, list]]:
    with loader:
        return [(step.plan.index, list(step.micro_batches)) for step in loader]


def assert_same(a, b) -> None:
    """The same steps, micro-batches and arrays."""
    assert [(index, len(batches)) for index, batches in a] == [(i, len(bs)) for i, bs in b]
    for (_, left), (_, right) in zip(a, b, strict=True):
        for x, y in zip(left, right, strict=True):
            assert x.rows.numbers == y.rows.numbers
            assert x.failures == y.failures
            for field in dataclasses.fields(x.rows):
                jax.tree.map(
                    np.testing.assert_array_equal,
                    getattr(x.rows, field.name),
                    getattr(y.rows, field.name),
                )


# ---------------------------------------------------------------- order, resuming, hosts


def test_every_row_of_the_plan_in_order(whole):
    assert [index for index, _ in whole] == [0, 1, 2, 3, 4, 5]
    assert [len(batches) for _, batches in whole] == [1, 1, 2, 1, 1, 2]
    for index, batches in whole:
        rows = tuple(row for batch in batches for row in batch.rows.numbers)
        assert rows == PLAN.step(index).rows
        for batch in batches:
            assert batch.rows.ids.shape == (4, PLAN.length)
            assert batch.rows.patches.shape == (4, PLAN.patches, VISION.patch_dim)
            assert batch.failures == ()


@pytest.mark.parametrize("start", [1, 5])
def test_it_goes_on_from_any_step(source, whole, start):
    assert_same(all_of(load(source=source, start=start, stop=6)), whole[start:])


def test_hosts_share_the_rows(source, whole):
    parts = [
        all_of(load(source=source, start=1, process_index=i, process_count=2)) for i in range(2)
    ]
    for step, (index, batches) in enumerate(whole[1:3]):
        for number, batch in enumerate(batches):
            shares = [part[step][1][number].rows for part in parts]
            assert {part[step][0] for part in parts} == {index}
            for name in ("ids", "positions", "weight", "patches", "feature_index", "segments"):
                joined = np.concatenate([getattr(share, name) for share in shares])
                np.testing.assert_array_equal(joined, getattr(batch.rows, name))


def test_what_is_left_of_a_step_is_passed_over(source):
    with load(source=source, rows_per_batch=2, stop=2) as loader:
        first = next(loader)
        assert len(first.micro_batches) == 2
        assert next(iter(first.micro_batches)).rows.numbers == PLAN.step(0).rows[:2]
        second = next(loader)
        assert loader.step == 2
        assert next(iter(second.micro_batches)).rows.numbers == PLAN.step(1).rows[:2]


def test_masks_are_those_of_the_policy(source, whole):
    masked = all_of(load(source=source, stop=1, encoding=Encoding(policy="turn")))
    assert not whole[0][1][0].rows.visibility.hide.any()
    assert masked[0][1][0].rows.visibility.hide.any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"process_index": 2, "process_count": 2}, "process_index 2 of process_count 2"),
        ({"rows_per_batch": 3, "process_count": 2}, "rows_per_batch = 3 does not divide over 2"),
        ({"rows_per_batch": 0}, "rows_per_batch = 0"),
        ({"workers": -1}, "workers -1"),
        ({"start": 4}, "start_step 4, stop_step 3"),
        ({"time_limit": 0.0}, "time_limit must be positive"),
    ],
)
def test_numbers_that_do_not_fit(source, options, says):
    with pytest.raises(ValueError, match=says):
        load(source=source, **options)


def test_a_plan_whose_rows_do_not_divide(source):
    with (
        load(source=source, rows_per_batch=3) as loader,
        pytest.raises(ValueError, match="step 0 has 4 rows, not a multiple of rows_per_batch = 3"),
    ):
        next(loader)


# ---------------------------------------------------------------- what fails


def bad_video(folder: pathlib.Path, kind: str) -> str:
    path, good = folder / f"{kind}.mp4", (folder / "0.mp4").read_bytes()
    if kind == "corrupt":
        start = good.index(b"mdat") + 8
        size = good.index(b"moov") - start - 4 if good.find(b"moov") > start else len(good) - start
        path.write_bytes(good[:start] + bytes(size) + good[start + size :])
    elif kind == "truncated":
        path.write_bytes(good[: len(good) // 3])
    elif kind == "zero":
        path.write_bytes(b"")
    elif kind == "audio":
        with av.open(str(path), "w") as out:
            stream = out.add_stream("aac", rate=8000, layout="mono")
            for i in range(20):
                frame = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                )
                frame.rate, frame.pts = 8000, 1024 * i
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return str(path)  # "missing" is never written


BAD = {
    "missing": {"missing"},
    "zero": {"empty"},
    "truncated": {"format", "truncated", "corrupt"},
    "corrupt": {"corrupt", "format", "truncated"},
    "audio": {"no_video"},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_video_costs_its_trajectory_and_no_other(folder, source, whole, kind, caplog):
    video = bad_video(folder, kind)
    items = list(source.items)
    items[3] = trajectory(3, video)
    with load(source=Source(items), stop=1) as loader:
        (batch,) = next(loader).micro_batches
        assert loader.counts.trajectories == 5
        assert sum(loader.counts.failures.values()) == 1
    (failure,) = batch.failures
    assert failure.kind in BAD[kind]
    assert (failure.step, failure.number, failure.id, failure.video) == (0, 3, "row-3", video)
    assert video in failure.message and video in caplog.text and "row-3" in caplog.text
    # Every other trajectory stands where it stood; the hole is the end of its row.
    good = whole[0][1][0].rows
    assert batch.rows.numbers == ((0, 1), (2,), (), (4,))
    for name in ("ids", "patches", "weight", "positions"):
        np.testing.assert_array_equal(
            getattr(batch.rows, name)[[0, 1, 3]], getattr(good, name)[[0, 1, 3]]
        )
    assert not batch.rows.weight[2].any() and not batch.rows.patches[2].any()


def test_a_video_that_never_ends_reading(folder, source, monkeypatch):
    """The time limit holds where even the video's size is never told, as on a dead mount."""
    stuck, released = str(folder / "1.mp4"), threading.Event()
    monkeypatch.setattr(items_module, "clip_key", lambda ref, policy: released.wait(120))
    plan = dataclasses.replace(PLAN, steps=(((1,), (), (), ()),))
    cache = ClipCache(folder / "stuck-cache")
    options = {"stop": 1, "time_limit": 0.5, "clip_cache": cache}
    ((_, (batch,)),) = all_of(load(plan, source, **options))
    released.set()
    (failure,) = batch.failures
    assert (failure.number, failure.kind, failure.video) == (1, "timeout", stuck)
    assert "more than 0.5 s" in failure.message
    assert batch.rows.numbers == ((), (), (), ())


def test_decoding_that_takes_too_long(folder, source):
    ((_, (batch,)),) = all_of(load(source=source, stop=1, time_limit=1e-4))
    assert {f.kind for f in batch.failures} == {"timeout"} and len(batch.failures) == 5


def test_a_shard_that_vanishes(source):
    gone = dataclasses.replace(source, gone=frozenset({1, 4}))
    ((_, (batch,)),) = all_of(load(source=gone, stop=1))
    assert [(f.number, f.kind) for f in batch.failures] == [(1, "row"), (4, "row")]
    assert "shard of row 1 does not exist" in batch.failures[0].message
    assert batch.rows.numbers == ((0,), (2,), (3,), ())


def test_a_row_that_cannot_be_encoded(source):
    items = list(source.items)
    items[2] = dataclasses.replace(items[2], meta={})
    items[3] = with_refs(items[3], [ClipRef(items[3].task.video, (90.0, 95.0), "fine")])
    ((_, (batch,)),) = all_of(load(source=Source(items), stop=1))
    assert [(f.number, f.kind) for f in batch.failures] == [(2, "row"), (3, "window")]


def test_a_grid_that_its_frames_do_not_make_costs_its_row(source):
    items = list(source.items)
    task = items[2].task
    shown = Observation(0, 0.0, 2.0, 1.0, (0.0, 1.0), (0, 10), 56, 56, (1, 2, 4), 2)
    turns = (
        Turn("question", "<video>what?", observations=(shown,)),
        Turn("answer", "<think>x</think>\n<answer>A</answer>", answer="A"),
    )
    items[2] = Trajectory(task, turns, "answered", answer="A")
    ((_, (batch,)),) = all_of(load(source=Source(items), stop=1))
    (failure,) = batch.failures
    assert failure.number == 2 and "grid of (1, 2, 4) patches" in failure.message
    broken = dataclasses.replace(items[2], meta={"clips": [{"film": "a.mp4"}]})
    with pytest.raises(ValueError, match=r"meta\['clips'\] is none that this package wrote"):
        clip_refs(broken)


def test_a_video_that_grew_since_it_was_measured(source):
    short = dataclasses.replace(PLAN, patches=100)  # two overviews want more
    ((_, (batch,)),) = all_of(load(short, source, stop=1))
    assert {f.kind for f in batch.failures} == {"length"}
    assert batch.rows.numbers[0] == (0,)


def test_too_many_failures_end_the_run(source, monkeypatch):
    monkeypatch.setattr(loader_module, "_JUDGE_FROM", 10)
    gone = dataclasses.replace(source, gone=frozenset({1, 2}))
    plan = dataclasses.replace(PLAN, steps=(((0,), (1,), (2,), ()),))
    with pytest.raises(FailureLimitError, match=r"8 of 12 .*\(row 8\).*limit of 50 %"):
        all_of(load(plan, gone, failure_limit=0.5, stop=9))
    assert len(all_of(load(plan, gone, failure_limit=0.7, stop=5))) == 5


def test_an_outage_that_ended_the_run_is_forgotten(source, tmp_path, monkeypatch):
    monkeypatch.setattr(loader_module, "_JUDGE_FROM", 4)
    kept = Failure(3, 0, "a", "a.mp4", "crash", "it ended the worker process")
    FailureRecord(tmp_path, 0).add([kept])
    gone = dataclasses.replace(source, gone=frozenset({0, 1, 2, 5}))
    with pytest.raises(FailureLimitError):
        all_of(load(source=gone, failures=tmp_path, failure_limit=0.1))
    assert FailureRecord(tmp_path, 0).known == {(3, 0): kept}
    assert_same(
        all_of(load(source=source, failures=tmp_path, stop=2)), all_of(load(source=source, stop=2))
    )


def test_failures_are_remembered_by_the_run(source, tmp_path):
    """What failed once stays out when the run starts again, else it would not be the same run."""
    gone = dataclasses.replace(source, gone=frozenset({1, 5}))
    first = all_of(load(source=gone, failures=tmp_path))
    lines = (tmp_path / "failures-00000.jsonl").read_text().splitlines()
    noted = [(json.loads(line)["step"], json.loads(line)["number"]) for line in lines]
    assert noted == [(0, 1), (1, 5), (2, 1), (2, 5)]
    with (tmp_path / "failures-00000.jsonl").open("a") as file:
        file.write('{"step": 1, "num')  # killed while it wrote
    (tmp_path / "failures-00000.jsonl").rename(tmp_path / "failures-00003.jsonl")
    assert_same(all_of(load(source=source, start=1, failures=tmp_path)), first[1:])
    # In another step, a later epoch say, it is tried again.
    ((_, (batch,)),) = all_of(load(source=source, start=3, stop=4, failures=tmp_path))
    assert batch.failures == ()


def test_a_failure_may_quote_any_sign(tmp_path):
    failure = Failure(2, 7, "row\u2028seven", "a\x85.mp4", "missing", "gone\u2029for good")
    FailureRecord(tmp_path, 0).add([failure])
    assert FailureRecord(tmp_path, 1).known == {(2, 7): failure}


def test_the_clip_cache_gives_the_same_rows(source, whole, tmp_path):
    for hits in (False, True):
        cache = ClipCache(tmp_path, limit_bytes=1 << 30)
        with load(source=source, stop=2, clip_cache=cache) as loader:
            got = [(s.plan.index, list(s.micro_batches)) for s in loader]
            assert_same(got, whole[:2])
            assert (loader.counts.cache["misses"] == 0) == hits
            assert loader.counts.cache["hits"] > 0  # videos are shown more than once
    for path in tmp_path.glob("??/*"):
        path.write_bytes(path.read_bytes()[:-7])
    again = load(source=source, stop=2, clip_cache=ClipCache(tmp_path))
    assert_same(all_of(again), whole[:2])
    assert again.counts.cache["damaged"] > 0


# ---------------------------------------------------------------- worker processes


@dataclasses.dataclass
class Deadly(Source):
    """Reading `deadly` ends the process, as a video on which the decoder crashes."""

    deadly: int = -1

    def __getitem__(self, index: int):
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_workers_make_the_same_rows_and_outlive_a_deadly_video(source, folder, tmp_path):
    """One session of processes for what must hold in them: jax runs in the parent, a real plan, failures, a crash, the cache."""
    assert float(jax.numpy.ones(3).sum()) == 3.0
    lengths = Lengths(np.full(8, 100, np.int32), np.full(8, 80, np.int32))
    plan = Plan(
        lengths, seed=0, trajectories_per_step=4, max_length=256, buckets=(256,), rows_multiple=2
    )
    deadly = Deadly(source.items, gone=frozenset({6}), deadly=3)
    options = {"rows_per_batch": 2, "stop": 4, "clip_cache": ClipCache(tmp_path / "cache")}
    with load(plan, deadly, workers=2, failures=tmp_path / "failures", **options) as loader:
        got = [(s.plan.index, list(s.micro_batches)) for s in loader]
        assert loader.counts.restarts >= 2
    harmless = dataclasses.replace(source, gone=frozenset({3, 6}))
    wanted = all_of(load(plan, harmless, **options))
    kinds = collections.Counter(f.kind for _, batches in got for b in batches for f in b.failures)
    assert kinds == {"crash": 2, "row": 2}  # two epochs
    crash = next(f for _, bs in got for b in bs for f in b.failures if f.kind == "crash")
    assert crash.number == 3 and "ended the worker process" in crash.message
    for (_, left), (_, right) in zip(got, wanted, strict=True):
        for x, y in zip(left, right, strict=True):
            assert x.rows.numbers == y.rows.numbers
            np.testing.assert_array_equal(x.rows.ids, y.rows.ids)
            np.testing.assert_array_equal(x.rows.patches, y.rows.patches)
    recorded = (tmp_path / "failures" / "failures-00000.jsonl").read_text()
    assert recorded.count('"crash"') == 2
    assert not [p for p in multiprocessing_children() if "loader" in p]


def multiprocessing_children() -> list[str]:
    import multiprocessing

    return [p.name for p in multiprocessing.active_children() if p.name.startswith("grain")]


@pytest.mark.soak
def test_memory_stays_flat_over_two_thousand_steps(source):
    """Of the trainer's process and its workers together, decoding every clip anew."""
    plan = dataclasses.replace(PLAN, steps=(((0,),), ((1,),), ((2,),), ((5,),)))
    me, levels = psutil.Process(), []
    with load(plan, source, stop=2000, rows_per_batch=1, workers=2) as loader:
        for step in loader:
            for _ in step.micro_batches:
                pass
            if step.plan.index % 20 == 0:
                processes = [me, *me.children(recursive=True)]
                levels.append(sum(p.memory_info().rss for p in processes) / (1 << 20))
        assert loader.counts.failures == {}
    early, late = np.median(levels[10:30]), np.median(levels[-20:])
    print(f"RSS in MB, steps 200 to 600: {early:.1f}, steps 1600 to 2000: {late:.1f}")
    assert late - early < 16


@pytest.mark.soak
def test_workers_leave_with_a_killed_parent(folder):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from loader_world import *\n"
        "from vo3.data.loader import make_loader\n"
        "import multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    source = Source([trajectory(0, sys.argv[2])])\n"
        "    loader = make_loader(ListedPlan((((0,),),)), source, TOKENIZER, crop_policy=POLICY,\n"
        "                         vision=VISION, rows_per_batch=1, workers=1)\n"
        "    next(iter(next(loader).micro_batches))\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    for step in loader:\n"
        "        list(step.micro_batches)\n"
    )
    arguments = [str(pathlib.Path(__file__).parent), str(folder / "0.mp4")]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(300):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent by 30 s")


def test_without_shared_memory_rows_go_through_pipes(monkeypatch, caplog):
    full = os.statvfs("/")
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*full[:4], 1, *full[5:10])))
    assert not loader_module._fits_shared_memory(1 << 30)
    assert "go through pipes" in caplog.text
    monkeypatch.undo()
    assert loader_module._fits_shared_memory(0)
    assert shutil.disk_usage("/dev/shm").free > 0
