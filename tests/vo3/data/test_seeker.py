"""Row formats: every published form is read, every rule has a row that breaks it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows_makers import ANSWER, CALL, messages, rl_row, sft_row, write_jsonl

from vo3.data.clips import ClipRef, clip_refs, is_open, settle
from vo3.data.rejects import RejectLimitError, Rejects, RowError
from vo3.data.seeker import read_rl, read_sft, rl_task, sft_trajectory
from vo3.trajectory import Call, Trajectory

# ---- SFT rows that are good


def test_per_video_dicts():
    row = sft_row("7", clips=((2, 5.5, "fine"), (0, 9, "old_quota"), (1, 3, None)))
    row["messages"] = messages(clips=((2, 5.5, "fine"), (0, 9, "coarse"), (1, 3, "medium")))
    trajectory = sft_trajectory(row, videos="/videos")
    kinds = [turn.kind for turn in trajectory.turns]
    assert kinds == ["system", "question", *["call", "observation"] * 3, "answer"]
    assert trajectory.task.id == "7" and trajectory.task.video == "/videos/a.mp4"
    assert trajectory.task.question == "Which digit is on the red card?"
    assert trajectory.outcome == "answered" and trajectory.answer == "B"
    assert trajectory.calls[0] == Call(2.0, 5.5, "fine")
    assert clip_refs(trajectory) == (
        ClipRef("/videos/a.mp4", clips=3),
        ClipRef("/videos/a.mp4", (2.0, 5.5), "fine", clips=3),
        ClipRef("/videos/a.mp4", (0.0, 9.0), "old_quota", clips=3),
        ClipRef("/videos/a.mp4", (1.0, 3.0), None, clips=3),
    )
    assert [o.index for o in trajectory.observations] == [0, 1, 2, 3]
    assert all(is_open(o) for o in trajectory.observations)
    assert (trajectory.observations[1].start, trajectory.observations[1].end) == (2.0, 5.5)
    assert trajectory.observations[1].strategy == "fine"
    assert Trajectory.loads(trajectory.dumps()) == trajectory


def test_a_list_of_paths():
    row = sft_row(videos=["a.mp4", "clips/a_1.mp4"])
    refs = clip_refs(sft_trajectory(row, videos="gs://bucket/v"))
    assert refs == (ClipRef("gs://bucket/v/a.mp4"), ClipRef("gs://bucket/v/clips/a_1.mp4"))


def test_lists_of_frame_files():
    row = sft_row(videos=[["f/0.jpg", "f/1.jpg"], ["f/1.jpg"]])
    refs = clip_refs(sft_trajectory(row, videos="/v"))
    assert refs[0] == ClipRef(("/v/f/0.jpg", "/v/f/1.jpg"), frame_fps=2.0)
    assert refs[1] == ClipRef(("/v/f/1.jpg",), frame_fps=2.0)
    assert clip_refs(sft_trajectory(row, frame_fps=1.0))[0].frame_fps == 1.0
    assert clip_refs(sft_trajectory(row | {"frame_fps": 4.0}))[0].frame_fps == 4.0
    dicts = sft_row()
    dicts["videos"][0]["url"] = ["f/0.jpg", "f/1.jpg"]
    assert clip_refs(sft_trajectory(dicts))[0] == ClipRef(("f/0.jpg", "f/1.jpg"), frame_fps=2.0)


def test_conversations():
    row = sft_row()
    turns = row.pop("messages")
    row["conversations"] = [
        {"from": {"user": "human", "assistant": "gpt"}[t["role"]], "value": t["content"]}
        for t in turns
    ]
    assert sft_trajectory(row) == sft_trajectory(sft_row())


def test_the_system_prompt_may_be_a_message():
    row = sft_row(system="")
    row["messages"] = [{"role": "system", "content": "You answer."}, *row["messages"]]
    assert sft_trajectory(row) == sft_trajectory(sft_row())


def test_urls_and_absolute_paths_are_left_alone():
    row = sft_row(videos=["gs://b/a.mp4", "/data/a.mp4"])
    assert [r.video for r in clip_refs(sft_trajectory(row, videos="/v"))] == [
        "gs://b/a.mp4",
        "/data/a.mp4",
    ]


def test_error_turns_and_malformed_calls_and_plain_answers():
    turns = messages()
    turns[1]["content"] = CALL % (5, 2, "fine")
    turns[2]["content"] = "That window is reversed."
    turns[3:3] = [
        {"role": "assistant", "content": CALL % (2, 5, "fine")},
        {"role": "user", "content": "Observation 1: <video>"},
    ]
    turns[-1]["content"] = "It is two."
    trajectory = sft_trajectory(sft_row(messages=turns))
    kinds = [turn.kind for turn in trajectory.turns[1:]]
    assert kinds == ["question", "call", "error", "call", "observation", "text"]
    assert trajectory.turns[2].call is None and "reversed" in trajectory.turns[2].error
    assert trajectory.outcome == "text" and trajectory.answer == "It is two."


def test_our_own_trajectories_are_rows_too():
    trajectory = sft_trajectory(sft_row())
    assert sft_trajectory(trajectory.to_json()) == trajectory
    with pytest.raises(RowError, match="schema version"):
        sft_trajectory(trajectory.to_json() | {"schema_version": 99})


def test_settle_puts_observations_at_their_marks():
    trajectory = sft_trajectory(sft_row())
    shown = [
        o.__class__(**{**vars(o), "tokens": 5 + o.index, "indices": (1, 2)})
        for o in trajectory.observations
    ]
    settled = settle(trajectory, shown)
    assert [o.tokens for o in settled.observations] == [5, 6]
    refs = clip_refs(settled)
    assert [r.shown for r in refs] == shown and refs[0].video == "a.mp4"
    with pytest.raises(ValueError, match="shows 2 clips, 1 were given"):
        settle(trajectory, shown[:1])


# ---- SFT rows that break a rule


def without(key: str) -> dict:
    row = sft_row()
    del row[key]
    return row


def with_turn(i: int, **changes) -> dict:
    row = sft_row()
    row["messages"][i] = row["messages"][i] | changes
    return row


def with_video(i: int, **changes) -> dict:
    row = sft_row()
    row["videos"][i] = row["videos"][i] | changes
    return row


BROKEN = {
    "no messages": (without("messages"), "fields"),
    "messages are text": (sft_row(messages="hello"), "fields"),
    "empty messages": (sft_row(messages=[]), "fields"),
    "content is missing": (with_turn(1, content=None), "fields"),
    "content is a list": (with_turn(1, content=[{"type": "text"}]), "fields"),
    "an empty reply": (with_turn(1, content="  "), "fields"),
    "the system prompt is a number": (sft_row(system=3), "fields"),
    "a bad rate of frames": (sft_row(frame_fps=-1), "fields"),
    "an unknown role": (with_turn(1, role="tool"), "roles"),
    "two user turns": (with_turn(1, role="user"), "roles"),
    "the assistant begins": (sft_row(messages=messages()[1:]), "roles"),
    "the user ends": (sft_row(messages=messages()[:-1]), "roles"),
    "a call ends": (with_turn(3, content=CALL % (1, 3, "fine")), "roles"),
    "a second system prompt": (
        sft_row(messages=[{"role": "system", "content": "Other."}, *messages()]),
        "roles",
    ),
    "more marks than videos": (with_turn(2, content="<video> <video>"), "marks"),
    "fewer marks than videos": (with_turn(2, content="nothing"), "marks"),
    "a mark in a reply": (with_turn(3, content="<video>" + ANSWER % "B"), "marks"),
    "a question without its video": (
        sft_row(messages=[{"role": "user", "content": "Which?"}, *messages()[1:]], videos=["a"]),
        "marks",
    ),
    "an image": (with_turn(0, content="<image><video>"), "marks"),
    "a mark in the system prompt": (sft_row(system="<video>"), "marks"),
    "no videos": (without("videos"), "videos"),
    "an empty list of videos": (sft_row(videos=[]), "videos"),
    "a video is a number": (sft_row(videos=["a.mp4", 3]), "videos"),
    "a video is nothing": (sft_row(videos=["a.mp4", ""]), "videos"),
    "an empty list of frames": (sft_row(videos=["a.mp4", []]), "videos"),
    "frames that are no paths": (sft_row(videos=["a.mp4", ["f.png", 2]]), "videos"),
    "a video without url": (with_video(1, url=None), "videos"),
    "an unknown key": (with_video(1, croop=[1, 2]), "videos"),
    "the first video is cut": (with_video(0, crop=[0, 5]), "window"),
    "a reversed window": (with_video(1, crop=[5, 2]), "window"),
    "an empty window": (with_video(1, crop=[5, 5]), "window"),
    "a window before the video": (with_video(1, crop=[-2, 5]), "window"),
    "half of the whole": (with_video(1, crop=[-1, 5]), "window"),
    "three times": (with_video(1, crop=[1, 2, 3]), "window"),
    "times as text": (with_video(1, crop=["1", "2"]), "window"),
    "true is no time": (with_video(1, crop=[True, 2]), "window"),
    "an infinite window": (with_video(1, crop=[1, float("inf")]), "window"),
    "a window that is no number": (with_video(1, crop=[float("nan"), 4]), "window"),
    "a window beyond floats": (with_video(1, crop=[1, 10**400]), "window"),
    "an unknown sample": (with_video(1, sample="finest"), "sample"),
    "a sample that is a number": (with_video(1, sample=2), "sample"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_row_that_breaks_a_rule(name):
    row, rule = BROKEN[name]
    with pytest.raises(RowError) as caught:
        sft_trajectory(row)
    assert (caught.value.rule, caught.value.id) == (rule, "a")
    assert len(caught.value.reason) > 10


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    st.sampled_from(["id", "system", "messages", "videos", "frame_fps", "data_source"]), anything
)
def test_any_value_is_read_or_rejected(key, value):
    """Nothing but RowError comes out, and what is read can be written."""
    try:
        trajectory = sft_trajectory(sft_row() | {key: value})
    except RowError:
        return
    assert len(clip_refs(trajectory)) == len(trajectory.observations)
    assert Trajectory.loads(trajectory.dumps()) == trajectory


@given(
    st.sampled_from(
        ["doc_id", "problem", "options", "video", "frame_fps", "solution", "data_source"]
    ),
    anything,
)
def test_any_value_of_an_rl_row_is_read_or_rejected(key, value):
    try:
        task = rl_task(rl_row() | {key: value})
    except RowError:
        return
    assert isinstance(task.id, str) and task.question


# ---- RL rows


def test_an_rl_row():
    task = rl_task(rl_row(), videos="/v")
    assert (task.id, task.video, task.frame_fps) == ("q", "/v/frames/q", 4.0)
    assert task.options == {"A": "1", "B": "2"}
    assert (task.target.answer, task.target.data_source) == ("B", "clue_single_w_tool")
    assert (task.target.clues[0].start, task.target.clues[0].end) == (3.0, 5.5)
    assert rl_task(rl_row(problem="<video>\nWhich digit is on the red card?"), videos="/v") == task


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, None),
        ([], None),
        ({"A": None, "B": None}, None),
        (["one", "two"], {"A": "one", "B": "two"}),
        (["(A) one", "(B) two"], {"A": "one", "B": "two"}),
        (["B. two", "A. one"], {"A": "B. two", "B": "A. one"}),
        ({"A": "one", "C": "three", "D": None}, {"A": "one", "C": "three"}),
        ('["A) one", "B) two"]', {"A": "one", "B": "two"}),
    ],
)
def test_options(options, expected):
    row = rl_row(options=options, solution={"answer": "A"})
    assert rl_task(row).options == expected


def test_a_grounding_row_needs_no_answer_and_a_clue_may_be_an_instant():
    segment = {"answer": "", "clue": [{"timestamp": [3, 5]}]}
    assert rl_task(rl_row(data_source="temporal_grounding", solution=segment)).target.answer == ""
    instant = {"answer": "B", "clue": [{"timestamp": [3, 3]}]}
    assert rl_task(rl_row(solution=instant)).target.clues[0].end == 3.0


def test_other_keys_and_frames_of_an_rl_row():
    row = rl_row(video=["f/0.jpg", "f/1.jpg"])
    row["id"], row["question"] = row.pop("doc_id"), row.pop("problem")
    del row["frame_fps"]
    task = rl_task(row, videos="/v")
    assert task.id == "q" and task.video == ("/v/f/0.jpg", "/v/f/1.jpg") and task.frame_fps == 4.0


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"problem": None}, "fields"),
        ({"problem": "<video>"}, "fields"),
        ({"data_source": "mystery"}, "source"),
        ({"solution": None}, "fields"),
        ({"solution": {"answer": 3}}, "fields"),
        ({"solution": {"answer": "A", "clue": [{"timestamp": [1]}]}}, "fields"),
        ({"solution": {"answer": "A", "clue": [{"timestamp": [1, float("nan")]}]}}, "window"),
        ({"solution": {"answer": "B", "clue": [{"timestamp": [5, 3]}]}}, "window"),
        ({"solution": {"answer": "B", "clue": [{"timestamp": [-1, 3]}]}}, "window"),
        ({"solution": {"answer": " "}}, "fields"),
        ({"solution": {"answer": ""}, "options": None}, "fields"),
        ({"solution": {"answer": "C"}}, "fields"),
        ({"solution": {"answer": "2"}}, "fields"),
        ({"data_source": "temporal_grounding", "solution": {"answer": ""}}, "fields"),
        (
            {
                "data_source": "temporal_grounding",
                "solution": {"answer": "", "clue": [{"timestamp": [3, 3]}]},
            },
            "window",
        ),
        ({"video": None}, "videos"),
        ({"video": 5}, "videos"),
        ({"video": "a\0.mp4"}, "videos"),
        ({"video": ["f/0.jpg", "f/\ud83d.jpg"]}, "videos"),
        ({"frame_fps": "fast"}, "fields"),
        ({"options": "A or B"}, "fields"),
        ({"options": [1, 2]}, "fields"),
    ],
)
def test_an_rl_row_that_breaks_a_rule(changes, rule):
    with pytest.raises(RowError) as caught:
        rl_task(rl_row(**changes))
    assert caught.value.rule == rule


# ---- files, rejects


def test_bad_rows_are_rejected_with_id_and_reason_and_the_rest_is_read(tmp_path):
    rows = [sft_row("a"), '{"id": "b", "messages"', sft_row("c", videos=[]), "[1, 2]", sft_row("e")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    rejects = Rejects()
    good = list(read_sft(path, rejects=rejects))
    assert [t.task.id for t in good] == ["a", "e"]
    assert [(r.id, r.index, r.rule) for r in rejects] == [
        ("rows.jsonl:2", 1, "json"),
        ("c", 2, "videos"),
        ("rows.jsonl:4", 3, "json"),
    ]
    assert rejects.share == 3 / 5
    assert rejects.metrics() == {
        "rejects/share": 0.6, "rejects/rows": 3.0, "rejects/json": 2.0, "rejects/videos": 1.0
    }  # fmt: skip
    rejects.save(tmp_path / "out" / "rejects.jsonl")
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["id"] == "c" and "videos" in json.loads(lines[1])["reason"]
    rejects.check(0.6)
    with pytest.raises(
        RejectLimitError, match=r"3 of 5 rows \(60.00 %\).*json 2.*data.reject_limit"
    ):
        rejects.check(0.59, where="rejects.jsonl")
    with pytest.raises(ValueError, match="share in"):
        rejects.check(5)
    with pytest.raises(RowError, match=r"rows\.jsonl:2"):
        list(read_sft(path))


def test_no_rows_at_all_pass_the_limit():
    Rejects().check(0.0)


def test_rl_rows_of_a_file(tmp_path):
    path = write_jsonl(tmp_path / "rl.jsonl", [rl_row("a"), rl_row("b", video=None)])
    rejects = Rejects()
    assert [t.id for t in read_rl(path, rejects=rejects)] == ["a"]
    assert [r.id for r in rejects] == ["b"]


def test_parquet_gives_what_jsonl_gives(tmp_path):
    """Nested columns, with the nulls and the columns of other rows that Parquet fills in."""
    rows = [sft_row(str(i), clips=((2, 5 + i, "fine"),) * (i % 3)) for i in range(7)]
    for row in rows:
        for video in row["videos"]:
            video["crop"] = [float(t) for t in video["crop"]]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=2
    )
    as_text = [row | {k: json.dumps(row[k]) for k in ("messages", "videos")} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(as_text), tmp_path / "text.parquet")
    expected = list(read_sft(tmp_path / "rows.jsonl"))
    assert list(read_sft(tmp_path / "rows.parquet")) == expected
    assert list(read_sft(tmp_path / "text.parquet")) == expected
    assert len(expected) == 7


def test_rl_rows_in_parquet(tmp_path):
    rows = [rl_row("a"), rl_row("b", options=None)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rl.parquet")
    assert list(read_rl(tmp_path / "rl.parquet")) == [rl_task(row) for row in rows]


def test_numbers_of_numpy_are_no_trap():
    """A row made in Python may hold numpy's floats, which are floats; its integers are not ints and are refused."""
    row = with_video(1, crop=[np.float64(1), np.float64(4)])
    assert clip_refs(sft_trajectory(row))[1].window == (1.0, 4.0)
