"""Rows with real mp4 files through plan, loader and step: by the command, and with kept features."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import types
from unittest import mock

import jax
import numpy as np
import pytest
from clue_rows import write_rows
from flax import nnx
from tiny_rows import assert_close

import vo3.models
from configs import tiny
from vo3.data.failures import Failure, FailureLimitError, FailureRecord
from vo3.data.rejects import RejectLimitError
from vo3.models import hf_io
from vo3.train import command, row_feed, sft
from vo3.train.config import override, resolve
from vo3.train.features import merged, trunk
from vo3.train.pixels import normalize
from vo3.train.row_feed import RowFeed
from vo3.train.sharding import make_mesh
from vo3.train.state import trainable

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder, worlds=1)
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"id": "broken", "messages": [], "videos": []}\n')
    return folder


def config_of(rows, **changes):
    base = {
        "steps": 2,
        "data.rows": str(rows / "rows.jsonl"),
        "data.videos": str(rows),
        "data.workers": 0,
        "data.programs": 1,
        "data.trajectories_per_step": 2,
        "data.reject_limit": 0.5,
        "data.time_limit": 600.0,
        "optim.warmup": 0.0,
    }
    return override(tiny.get_config(), **{**base, **changes})


def one_device():
    return jax.devices()[:1]


def test_the_command_trains_on_rows_and_exports(rows, tmp_path):
    options = [
        f"--config.{key}={value}"
        for key, value in {
            "steps": 2,
            "data.rows": rows / "rows.jsonl",
            "data.videos": rows,
            "data.trajectories_per_step": 2,
            "data.programs": 1,
            "data.reject_limit": 0.5,
            "data.time_limit": 600.0,
            "optim.warmup": 0.0,
            "log.samples_every": 1,
        }.items()
    ]
    done = subprocess.run(
        [sys.executable, "-m", "vo3.train.sft", "--config=configs/tiny.py", f"--workdir={tmp_path}", *options],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 2/2  loss " in done.stderr and "1 of 5 rows are left out" in done.stderr
    assert json.loads((tmp_path / "rejects.jsonl").read_text().splitlines()[0])["id"] == "broken"
    sample = (tmp_path / "samples" / "step-000001.txt").read_text()
    assert "video tokens]" in sample and "«" in sample and "answer" in sample
    assert (tmp_path / "samples" / "step-000001.png").stat().st_size > 1000
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ]
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["rejected"] == 0.2
    # The embedded model knows these questions: its loss on them is small from the first step on.
    assert len(losses) == 2 and max(losses) < 1.5
    exported = vo3.models.load(tmp_path / "export")
    assert exported.tokenizer is not None
    source = vo3.models.load("clueworld")
    same = lambda get: np.array_equal(np.asarray(get(exported)), np.asarray(get(source)))
    assert same(lambda m: m.vision.patch_embed.kernel[...])  # frozen
    assert not same(lambda m: m.decoder.layers.q.kernel[...])


def test_the_feed_deals_out_what_the_plan_says(rows, tmp_path):
    config = config_of(rows)
    mesh = make_mesh(override(config, **{"mesh.fsdp": 1}), one_device())
    feed = RowFeed(config, mesh, tmp_path)
    assert feed.steps_per_epoch == 2 and len(feed.plan) == 32
    micro = list(feed.micro_batches(0, 2))
    planned = [n for step in (0, 1) for n in feed.data.step(step).trajectories]
    assert sorted(planned) == [0, 1, 2, 3]
    names = [int(name.split()[1]) for m in micro for name in m.names]
    assert names == planned
    assert [m.last for m in micro].count(True) == 2
    assert sum(m.work.trajectories for m in micro) == 4
    tokens = sum(int((m.batch.visibility.enter >= 0).sum()) for m in micro)
    assert sum(m.work.tokens for m in micro) == tokens
    # Another row of the same length is other data.
    text = (rows / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text.replace("broken", "Broken"))
    other = RowFeed(config_of(rows, **{"data.rows": str(tmp_path / "rows.jsonl")}), mesh, tmp_path)
    assert other.data.fingerprint == feed.data.fingerprint and other.plan != feed.plan
    # From the second step on: the same.
    again = list(feed.micro_batches(1, 2))
    for a, b in zip(again, [m for m in micro if m.step == 1], strict=True):
        for x, y in zip(jax.tree.leaves(a.batch), jax.tree.leaves(b.batch), strict=True):
            np.testing.assert_array_equal(x, y)


def test_processes_that_feed_the_same_rows_leave_out_what_any_of_them_lost(
    rows, tmp_path, monkeypatch
):
    config = config_of(rows)
    mesh = make_mesh(override(config, **{"mesh.fsdp": 1}), one_device())
    plain = next(RowFeed(config, mesh, tmp_path / "plain").micro_batches(0, 1))
    assert plain.settle is None  # nobody shares them
    monkeypatch.setattr(row_feed.sharding, "rows_shared", lambda _: True)
    feed = RowFeed(config, mesh, tmp_path / "shared")
    first = int(plain.names[0].split()[1])
    told, lost = [], {first}

    def lost_by_group(own, groups):
        """The other process lost the first trajectory."""
        told.append(own)
        assert groups == {0: 0}
        return own | lost, own >= lost

    monkeypatch.setattr(row_feed, "lost_by_group", lost_by_group)
    made = next(feed.micro_batches(0, 1))
    assert made.names == plain.names and not told  # asked when it is used, not when it is made
    settled = made.settle()
    assert told == [set(), lost]
    assert settled.names == plain.names[1:] and settled.work.failed == 1
    assert (settled.step, settled.last, settled.work.tokens) == (
        made.step,
        made.last,
        made.work.tokens,
    )
    # As the feed of the process that lost it: its own failure.
    monkeypatch.setattr(row_feed.sharding, "rows_shared", lambda _: False)
    other = RowFeed(config, mesh, tmp_path / "other")
    FailureRecord(tmp_path / "other" / "failures", 1).add([Failure(0, first, "", "", "error", "")])
    theirs = next(other.micro_batches(0, 1))
    for x, y in zip(jax.tree.leaves(settled.batch), jax.tree.leaves(theirs.batch), strict=True):
        np.testing.assert_array_equal(x, y)
    lost.clear()
    assert made.settle() is None


def test_positions_count_seconds_as_the_configuration_says(rows, tmp_path):
    """A ClueWorld overview shows a grid step every few seconds; nothing but its positions, and those after it, moves."""
    batches = {}
    for kind in ("constant", "hf_int"):
        config = config_of(rows, **{"data.mrope_time": kind})
        mesh = make_mesh(override(config, **{"mesh.fsdp": 1}), one_device())
        batches[kind] = next(RowFeed(config, mesh, tmp_path).micro_batches(0, 1)).batch
    one, other = batches.values()
    np.testing.assert_array_equal(one.ids, other.ids)
    shown = one.feature_index >= 0
    assert (one.positions[:, 0][shown] <= other.positions[:, 0][shown]).all()
    assert other.positions[:, 0].max() > one.positions[:, 0].max() + 10


def test_a_prepared_data_set_trains_like_its_rows_and_leaves_a_profile(rows, tmp_path):
    from data_prep.seeker_173k.build import build

    good = (rows / "rows.jsonl").read_text().splitlines()[:-1]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.jsonl").write_text("\n".join(good) + "\n")
    build(str(tmp_path / "rows"), str(tmp_path / "prepared"))
    prepared = {"data.source": "tfds", "data.rows": str(tmp_path / "prepared")}
    plain = {"data.rows": str(tmp_path / "rows" / "rows.jsonl")}
    config = config_of(rows)
    mesh = make_mesh(override(config, **{"mesh.fsdp": 1}), one_device())
    feeds = [
        RowFeed(config_of(rows, **changes), mesh, tmp_path / "feed")
        for changes in (prepared, plain)
    ]
    batches = [next(feed.micro_batches(0, 1)).batch for feed in feeds]
    for x, y in zip(*map(jax.tree.leaves, batches), strict=True):
        np.testing.assert_array_equal(x, y)
    more = {
        "steps": 1,
        "log.profile_start": 1,
        "log.profile_steps": 1,
        "checkpoint.export_hf": False,
    }
    run = tmp_path / "run"
    result = sft.train(config_of(rows, **prepared, **more), run, devices=one_device())
    assert result.finished
    assert json.loads((run / "log.jsonl").read_text())["rejected"] == 0
    traces = list((run / "profile").rglob("*.xplane.pb"))
    assert traces and traces[0].stat().st_size > 1000


def test_too_many_rejected_rows_end_the_run(rows, tmp_path):
    with pytest.raises(RejectLimitError):
        sft.train(config_of(rows, **{"data.reject_limit": 0.1}), tmp_path, devices=one_device())


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ({"data.reject_limit": 0.1}, r"1 of 5 rows .*raise data\.reject_limit"),
        ({"data.rows": "half.json"}, r"data\.rows=.*half\.json: .*half\.json"),
        ({"data.rows": "empty.jsonl"}, r"data\.rows=.*empty\.jsonl holds no row"),
        ({"data.rows": "none.json", "data.reject_limit": 1.0}, r"data\.rows=.*none of 1 trajectories can be trained on"),
        (FailureLimitError("8 of 12 trajectories could not be read"), "8 of 12 trajectories could not be read"),
    ],
)  # fmt: skip
def test_trouble_with_the_data_ends_the_command_in_one_line(
    rows, tmp_path, monkeypatch, fault, line
):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "half.json").write_text('[{"id": "a"}, {"id"')
    (tmp_path / "none.json").write_text('[{"id": "a", "messages": [], "videos": []}]')
    if isinstance(fault, Exception):
        monkeypatch.setattr(sft, "train", mock.Mock(side_effect=fault))
        fault = {}
    if "data.rows" in fault:
        fault["data.rows"] = str(tmp_path / fault["data.rows"])
    given = {"config": config_of(rows, **{"mesh.fsdp": -1, **fault}), "workdir": str(tmp_path / "run")}  # fmt: skip
    monkeypatch.setattr(command.flags, "FLAGS", types.SimpleNamespace(**given))
    monkeypatch.setattr(command, "quiet", lambda: None)
    monkeypatch.setattr(command.processes, "start", lambda: None)
    with pytest.raises(SystemExit, match=rf"^vo3\.train\.sft: .*{line}") as error:
        sft.main([])
    assert "\n" not in str(error.value)


def test_kept_features_give_the_tokens_of_the_whole_tower(rows, tmp_path):
    config = config_of(rows, **{"data.feature_cache": str(tmp_path / "features"), "mesh.fsdp": 1})
    mesh = make_mesh(config, one_device())
    run = trainable(resolve(config, devices=1), mesh)
    feed = RowFeed(config, mesh, tmp_path)
    model = vo3.models.load("clueworld")

    params = hf_io.flatten(nnx.state(model))
    feed.prepare(run, {n: params[n] for n in run.frozen})
    first = next(feed.micro_batches(0, 1)).batch
    assert first.patches is None and feed._tower.cache.counts.written > 0
    second = next(feed.micro_batches(0, 1)).batch
    np.testing.assert_array_equal(first.features, second.features)

    plain = next(RowFeed(config_of(rows), mesh, tmp_path).micro_batches(0, 1)).batch
    patches = normalize(jax.numpy.asarray(plain.patches))
    whole = model.encode_vision(patches, plain.vision)
    kept = merged(model.vision, jax.numpy.asarray(first.features))
    shown = plain.feature_index[0] >= 0
    index = plain.feature_index[0][shown]
    assert_close({"tokens": kept[0][index]}, {"tokens": whole[0][index]})
    direct = trunk(model.vision, patches, plain.vision)
    assert_close({"trunk": first.features[0][index]}, {"trunk": direct[0][index]})
    assert model.vision.merger is not None
