"""Lengths: what is measured without decoding is what reading and encoding give."""

from __future__ import annotations

import dataclasses
import pickle
import shutil

import numpy as np
import pytest
from rows_makers import messages, sft_row, write_frames, write_jsonl, write_video

from vo3.chat import encode
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.data import lengths as module
from vo3.data.clips import clip_refs, settle
from vo3.data.lengths import Lengths, lengths_key, measure, stored_lengths
from vo3.data.rejects import Reject, RowError
from vo3.data.source import RowSource, open_source
from vo3.video import CropPolicy

POLICY = CropPolicy(
    recipe="sft", overview_quota=384, overview_min=0, coarse_quota=384, medium_quota=512, fine_quota=640,
    crop_min=0, patch_min=1, patch_max=64,
    max_frames=32, max_crop_frames=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of videos and frames."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", seconds=8)
    write_video(folder / "b.mp4", seconds=5, size=(96, 64))
    write_video(folder / "short.mp4", seconds=0.5)
    write_frames(folder / "frames", 9)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(b"no video at all" * 50)
    return folder


def good_rows() -> list[dict]:
    frames = [f"frames/frame_{i}.png" for i in range(9)]
    return [
        sft_row("dicts", clips=((2, 5, "fine"), (1.3, 7.9, "coarse"))),
        sft_row("quotas", clips=((2, 5, "old_quota"), (3, 6, None), (0, 8.5, "medium"))),
        sft_row("paths", videos=["a.mp4", "b.mp4"]),
        sft_row("frames", videos=[frames, frames[2:6]]),
        sft_row("no clips", url="b.mp4", clips=()),
        sft_row("folder", url="frames", clips=((0, 2, "fine"),), frame_fps=4.0),
        sft_row("whole again", clips=((2, 5, "fine"),)) | {
            "videos": [{"url": "a.mp4"}, {"url": "a.mp4", "crop": [-1, -1], "sample": "medium"}]
        },
        sft_row("whole with a sample", clips=()) | {"videos": [{"url": "a.mp4", "sample": "coarse"}]},
    ]  # fmt: skip


def read(trajectory, policy):
    """What a loader does: clips read, observations settled, turns encoded."""
    clips = []
    for ref in clip_refs(trajectory):
        clips.append(ref.read(ref.open(policy)))
    shown = [clip.observation(i) for i, clip in enumerate(clips)]
    return settle(trajectory, shown)


@pytest.mark.parametrize("recipe", ["sft", "rl", "eval"])
def test_lengths_are_those_of_reading_and_encoding(tmp_path, videos, tokenizer, recipe):
    policy = dataclasses.replace(
        POLICY, **{f: getattr(CropPolicy(recipe=recipe), f) for f in
                   ("min_frames", "min_crop_frames", "floor_patch_quota", "overview_rule", "crop_rule")},
    )  # fmt: skip
    rows = good_rows()
    source = RowSource(write_jsonl(tmp_path / "rows.jsonl", rows), videos=videos)
    lengths = measure(source, tokenizer, policy=policy)
    assert lengths.rejects == () and len(lengths) == len(rows)
    for i in range(len(rows)):
        settled = read(source[i], policy)
        assert lengths.tokens[i] == len(encode(settled.turns, tokenizer)), rows[i]["id"]
        grids = [o.grid for o in settled.observations]
        assert lengths.patches[i] == sum(map(np.prod, grids)), rows[i]["id"]


def test_our_own_trajectories_are_measured_by_their_observations(tmp_path, videos, tokenizer):
    source = RowSource(write_jsonl(tmp_path / "rows.jsonl", good_rows()[:1]), videos=videos)
    settled = read(source[0], POLICY)
    path = tmp_path / "own.jsonl"
    path.write_text(settled.dumps() + "\n")
    again = measure(RowSource(path), tokenizer, policy=POLICY)
    first = measure(source, tokenizer, policy=POLICY)
    assert again.tokens.tolist() == first.tokens.tolist()
    assert again.patches.tolist() == first.patches.tolist()


def test_the_policy_and_the_tokenizer_matter(tmp_path, videos, tokenizer):
    source = RowSource(write_jsonl(tmp_path / "rows.jsonl", good_rows()[:1]), videos=videos)
    smaller = dataclasses.replace(POLICY, fine_quota=16)
    a, b = (measure(source, tokenizer, policy=p) for p in (POLICY, smaller))
    assert b.patches[0] < a.patches[0]
    assert a.tokens[0] - b.tokens[0] == (a.patches[0] - b.patches[0]) // 4
    keys = {lengths_key(source, tokenizer, POLICY), lengths_key(source, tokenizer, smaller)}
    other = build_tokenizer()
    other.add_tokens(["zzz"])
    keys.add(lengths_key(source, other, POLICY))
    keys.add(lengths_key(RowSource(tmp_path / "rows.jsonl"), tokenizer, POLICY))
    assert len(keys) == 4
    assert lengths_key(source, build_tokenizer(), POLICY) in keys


BAD = {
    "missing": (sft_row(url="nowhere.mp4"), "file", "nowhere.mp4"),
    "empty": (sft_row(url="empty.mp4"), "file", "video 0"),
    "no video": (sft_row(url="noise.mp4"), "file", "video 0"),
    "a folder without rate": (sft_row(url="frames"), "file", "frame_fps"),
    "a missing frame": (sft_row(videos=[["frames/x.png"], "a.mp4"]), "file", "x.png"),
    "a clip's file": (sft_row(videos=["a.mp4", "nowhere.mp4"]), "file", "video 1"),
    "behind the end": (sft_row(clips=((90, 95, "fine"),)), "window", "outside of its video, which lasts 8.00 s"),
    "over the end": (sft_row(clips=((4, 20, "fine"),)), "window", "[4, 20] reaches outside"),
    "too short": (sft_row(clips=((4, 4.5, "fine"),)), "window", "covers 0.50 s"),
    "short as a whole": (sft_row(clips=()) | {"videos": [{"url": "short.mp4", "sample": "fine"}]}, "window", "covers 0.50 s"),
    "short at the end": (sft_row(clips=((7.5, 8.9, "fine"),)), "window", "covers 0.50 s"),
    "a broken row": (sft_row(videos=[]), "videos", "list of videos"),
    "corrupt JSON": ('{"id": ', "json", "not valid JSON"),
}  # fmt: skip


def test_what_cannot_be_used_has_no_tokens_and_a_reason(tmp_path, videos, tokenizer):
    rows = [
        sft_row("good"),
        *(row for row, _, _ in BAD.values()),
        sft_row("slack", clips=((6, 8.9, "fine"),)),
    ]
    source = RowSource(write_jsonl(tmp_path / "rows.jsonl", rows), videos=videos)
    lengths = measure(source, tokenizer, policy=POLICY)
    assert (lengths.tokens > 0).tolist() == [True, *[False] * len(BAD), True]
    assert ((lengths.patches > 0) == (lengths.tokens > 0)).all()
    assert [r.index for r in lengths.rejects] == list(range(1, len(BAD) + 1))
    for (_, rule, part), reject in zip(BAD.values(), lengths.rejects, strict=True):
        assert reject.rule == rule and part in reject.reason, reject
    rejects = lengths.rejected()
    assert rejects.total == len(rows) and rejects.by_rule()["file"] == 6
    # too long ones can be noted with them
    longest = int(lengths.tokens.max())
    assert len(lengths.rejected(max_length=longest)) == len(BAD)
    more = lengths.rejected(max_length=longest - 1)
    assert "length" in more.by_rule() and len(more) > len(BAD)


def test_processes_give_the_same(tmp_path, videos, tokenizer, monkeypatch):
    rows = [*good_rows(), *(row for row, _, _ in BAD.values())]
    source = RowSource(write_jsonl(tmp_path / "rows.jsonl", rows), videos=videos)
    monkeypatch.setattr(module, "_CHUNK", 3)
    told: list[str] = []
    here = measure(source, tokenizer, policy=POLICY, progress=told.append)
    there = measure(source, tokenizer, policy=POLICY, workers=2)
    assert here.tokens.tolist() == there.tokens.tolist()
    assert here.patches.tolist() == there.patches.tolist()
    assert here.rejects == there.rejects and len(here.rejects) == len(BAD)
    assert f"rows read: {len(rows)} of {len(rows)}" in told


def test_each_video_is_opened_once(tmp_path, videos, tokenizer, monkeypatch):
    opened = []
    real = module.ClipRef.open
    monkeypatch.setattr(
        module.ClipRef,
        "open",
        lambda self, *a, **k: opened.append(self.video) or real(self, *a, **k),
    )
    rows = [sft_row(str(i), clips=((2, 5, "fine"),) * 3) for i in range(4)]
    measure(
        RowSource(write_jsonl(tmp_path / "r.jsonl", rows), videos=videos), tokenizer, policy=POLICY
    )
    assert opened == [str(videos / "a.mp4")]


def test_text_that_encoding_refuses_is_rejected(tmp_path, videos, tokenizer, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("turn 1 (call): it cannot be written")

    monkeypatch.setattr(module, "encode", refuse)
    source = RowSource(write_jsonl(tmp_path / "r.jsonl", [sft_row()]), videos=videos)
    lengths = measure(source, tokenizer, policy=POLICY)
    assert lengths.rejects == (Reject("a", 0, "fields", "turn 1 (call): it cannot be written"),)


# ---- storage


def sample() -> Lengths:
    return Lengths(
        np.array([5, 0, 7], np.int32), np.array([4, 0, 8], np.int32), (Reject("x", 1, "file", "gone"),)
    )  # fmt: skip


def same(a: Lengths, b: Lengths) -> bool:
    return (
        a.tokens.tolist() == b.tokens.tolist()
        and a.patches.tolist() == b.patches.tolist()
        and a.rejects == b.rejects
    )


def test_lengths_round_trip(tmp_path, bucket):
    for path in (tmp_path / "deep" / "l.npz", "gs://b/deep/l.npz"):
        sample().save(path, key="k")
        assert same(Lengths.load(path, key="k"), sample())
        assert same(Lengths.load(path), sample())
        with pytest.raises(ValueError, match="of other data"):
            Lengths.load(path, key="other")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["l.npz"]
    assert same(pickle.loads(pickle.dumps(sample())), sample())


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_a_cut_file_is_named(tmp_path, cut):
    path = tmp_path / "l.npz"
    sample().save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"not a file of lengths.*delete it"):
        Lengths.load(path)


def test_stored_lengths_are_measured_once(tmp_path, videos, tokenizer, monkeypatch):
    rows = [sft_row("a"), sft_row("gone", url="gone.mp4")]
    source = RowSource(write_jsonl(tmp_path / "r.jsonl", rows), videos=videos)
    told: list[str] = []
    arguments = {"policy": POLICY, "folder": tmp_path / "kept", "progress": told.append}
    first = stored_lengths(source, tokenizer, **arguments)
    (path,) = (tmp_path / "kept").iterdir()
    assert any(str(path) in line for line in told)
    monkeypatch.setattr(module, "measure", lambda *a, **k: pytest.fail("measured again"))
    told.clear()
    assert same(stored_lengths(source, tokenizer, **arguments), first)
    assert "1 trajectories are left out because a video could not be read" in told[0]
    monkeypatch.undo()
    path.write_bytes(b"cut")
    told.clear()
    assert same(stored_lengths(source, tokenizer, **arguments), first)
    assert "not a file of lengths" in told[0]
    assert same(Lengths.load(path), first)


def test_rows_without_their_videos_are_measured_again_where_that_is_asked(tmp_path, tokenizer):
    rows = [sft_row("a"), sft_row("late", url="late.mp4"), sft_row("short", url="short.mp4")]
    write_video(tmp_path / "v" / "a.mp4")
    whole = write_video(tmp_path / "whole.mp4")
    write_video(tmp_path / "v" / "short.mp4", seconds=1.0)
    source = RowSource(write_jsonl(tmp_path / "r.jsonl", rows), videos=tmp_path / "v")
    arguments = {"policy": POLICY, "folder": tmp_path / "kept"}
    first = stored_lengths(source, tokenizer, **arguments)
    assert [(r.index, r.rule) for r in first.rejects] == [(1, "file"), (2, "window")]
    for name in ("late", "short"):
        shutil.copy(whole, tmp_path / "v" / f"{name}.mp4")
    assert same(stored_lengths(source, tokenizer, **arguments), first)  # the plan stays the plan
    second = stored_lengths(source, tokenizer, again=True, **arguments)
    assert not second.rejects and len(set(second.tokens.tolist())) == 1
    assert same(stored_lengths(source, tokenizer, **arguments), second)


# ---- sources of rows


def test_row_sources(tmp_path, videos):
    rows = [sft_row("a"), sft_row("b", videos=[]), sft_row("c")]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    source = open_source(path, videos=videos)
    assert len(source) == 3 and source[2].task.id == "c"
    with pytest.raises(RowError, match="b: 'videos'"):
        source[1]
    with pytest.raises(IndexError):
        source[3]
    again = pickle.loads(pickle.dumps(source))
    assert again[0] == source[0] and again.fingerprint == source.fingerprint
    assert open_source(path).fingerprint != source.fingerprint
    with pytest.raises(ValueError, match="unknown data format"):
        open_source(path, format="csv")
    with pytest.raises(FileNotFoundError, match="no prepared data set"):
        open_source(tmp_path, format="tfds")


def test_messages_helper_alternates():
    """The rows of these tests are what they claim to be."""
    assert [m["role"] for m in messages(clips=((1, 2, "fine"),) * 2)] == ["user", "assistant"] * 3
