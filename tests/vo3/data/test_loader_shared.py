"""Processes that feed the same rows: a micro-batch made again without what another one could not read."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from loader_world import POLICY, TOKENIZER, VISION, ListedPlan, Source, trajectory, write_video

from vo3.data.failures import ELSEWHERE
from vo3.data.loader import make_loader

PLAN = ListedPlan((((0, 1), (2, 3), (), ()),))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("shared")
    videos = [write_video(folder / f"{i}.mp4", seed=i) for i in range(2)]
    return Source([trajectory(i, str(videos[i % 2])) for i in range(4)])


def loader_of(source, folder, index=0):
    return make_loader(
        PLAN, source, TOKENIZER, crop_policy=POLICY, vision=VISION, rows_per_batch=4, workers=0,
        stop_step=1, failures=folder, failures_of=index,
    )  # fmt: skip


def arrays(micro_batch):
    rows = micro_batch.rows
    fields = ("ids", "positions", "visibility", "weight", "segments", "feature_index", "patches", "vision")  # fmt: skip
    return jax.tree.leaves([getattr(rows, name) for name in fields])


def test_what_another_process_lost_is_left_out_as_if_it_had_failed_here(source, tmp_path):
    broken = Source(source.items, gone=frozenset({1}))
    with loader_of(broken, tmp_path) as theirs, loader_of(source, tmp_path, 1) as ours:
        their_step, our_step = next(theirs), next(ours)
        lost, made = next(iter(their_step.micro_batches)), next(iter(our_step.micro_batches))
        assert [f.number for f in lost.failures] == [1] and not made.failures
        again = ours.again(our_step.plan, 0, made, {1})
    assert again.rows.numbers == lost.rows.numbers == ((0,), (2, 3), (), ())
    for x, y in zip(arrays(again), arrays(lost), strict=True):
        np.testing.assert_array_equal(x, y)
    assert [(f.number, f.kind) for f in again.failures] == [(1, ELSEWHERE)]
    assert ours.counts.failures == {ELSEWHERE: 1}
    # Written once, with its reason, by the process that failed; processes do not write over each other.
    written = {p.name: p.read_text().splitlines() for p in tmp_path.glob("failures-*.jsonl")}
    assert list(written) == ["failures-00000.jsonl"]
    assert [json.loads(line)["kind"] for line in written["failures-00000.jsonl"]] == ["row"]
