"""Other projects' trajectories: round trips where the formats allow, losses named where not."""

from __future__ import annotations

import json

import pytest

from data_prep import dialects
from data_prep.dialects import DialectError, convert
from vo3.data.seeker import sft_trajectory
from vo3.trajectory import Call

LOOK = '<think>look there</think>\n<grounding>{"temporal_segment": [%s, %s], "sampling_strategy": "%s"}</grounding>'


def own(*, clips=((2.0, 6.5, "fine"), (10.0, 14.0, "medium"))) -> dict:
    messages = [{"role": "user", "content": "<video>\nWhich?\nA. x\nB. y"}]
    videos: list = [{"url": "a/b.mp4", "crop": [-1, -1], "sample": None}]
    for n, clip in enumerate(clips, start=1):
        messages.append({"role": "assistant", "content": LOOK % clip})
        messages.append({"role": "user", "content": f"Observation {n}: <video>"})
        videos.append({"url": "a/b.mp4", "crop": list(clip[:2]), "sample": clip[2]})
    messages.append({"role": "assistant", "content": "<think>seen</think>\n<answer>B</answer>"})
    return {"id": "r1", "system": "Look.", "messages": messages, "videos": videos}


def turns(row: dict) -> list:
    trajectory = sft_trajectory(row)
    return [(t.kind, t.call, t.answer) for t in trajectory.turns if t.role == "assistant"]


def test_video_o3_to_videozoomer_and_back_keeps_windows_and_strategies():
    there = convert(own(), source="video-o3", target="videozoomer")
    texts = [m["content"] for m in there.row["messages"] if m["role"] == "assistant"]
    zoom = json.loads(texts[0].split("<video_zoom>")[1].split("</video_zoom>")[0])
    assert zoom == {"segment": [2.0, 6.5], "fps": 2.0} and not there.lost
    back = convert(there.row, source="videozoomer", target="video-o3")
    assert turns(back.row) == turns(own()) and back.row["videos"] == own()["videos"]
    assert back.row["system"] == "Look." and "Which?" in back.row["messages"][0]["content"]


def test_video_o3_to_longvt_loses_the_strategy_and_says_so():
    there = convert(own(), source="video-o3", target="longvt")
    assert there.lost == ("sampling strategy", "sampling strategy")
    assert [m["role"] for m in there.row["messages"]] == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant"]  # fmt: skip
    back = convert(there.row, source="longvt", target="video-o3")
    assert [c for _, c, _ in turns(back.row)] == [
        Call(2.0, 6.5, "medium"),
        Call(10.0, 14.0, "medium"),
        None,
    ]
    # Without strategies to lose, the round trip is exact.
    medium = own(clips=((2.0, 6.5, "medium"),))
    whole = convert(
        convert(medium, source="video-o3", target="longvt").row, source="longvt", target="video-o3"
    )
    assert whole.row == medium


def test_longvt_and_videozoomer_round_trip_through_each_other():
    zoomer = convert(own(), source="video-o3", target="videozoomer").row
    longvt = convert(zoomer, source="videozoomer", target="longvt")
    assert "sampling strategy" in longvt.lost
    again = convert(longvt.row, source="longvt", target="videozoomer").row
    assert convert(again, source="videozoomer", target="longvt").row == longvt.row


def test_longvt_rounds_in_one_text_and_content_parts():
    call = '{"name": "crop_video", "arguments": "{\\"video_path\\": \\"v.mp4\\", \\"start_time\\": 1, \\"end_time\\": 4}"}'
    text = f"<think>skim</think><tool_call>{call}</tool_call><tool_response>ok</tool_response><think>fine</think><answer> a van </answer>"  # fmt: skip
    row = {"id": 3, "messages": [{"role": "user", "content": [{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": [{"type": "text", "text": text}]}]}  # fmt: skip
    got = convert(row, source="longvt", target="video-o3").row
    assert turns(got) == [("call", Call(1.0, 4.0, "medium"), None), ("answer", None, "a van")]


def test_a_look_that_videozoomer_would_refuse_is_thinned_and_named():
    row = own(clips=((0.0, 60.0, "fine"),))
    there = convert(row, source="video-o3", target="videozoomer")
    assert there.lost == ("sampling strategy (more than 16 frames)",)
    assert '"fps": 0.26' in there.row["messages"][2]["content"]


@pytest.mark.parametrize(
    ("source", "row"),
    [
        ("longvt", {"id": "x", "messages": []}),
        ("longvt", {"id": "x", "video": "v", "messages": [{"role": "assistant", "content": "<tool_call>{</tool_call>"}]}),
        ("longvt", {"id": "x", "video": "v", "messages": [{"role": "assistant", "content": '<tool_call>{"name": "zoom", "arguments": {}}</tool_call>'}]}),
        ("longvt", {"id": "x", "messages": [{"role": "assistant", "content": "<answer>a</answer>"}]}),
        ("videozoomer", {"id": "x", "video": "v", "messages": [{"role": "assistant", "content": "<video_zoom>{}</video_zoom>"}]}),
        ("video-o3", {"id": "x", "messages": "text"}),
    ],
)  # fmt: skip
def test_rows_that_do_not_read_as_their_dialect_are_refused(source, row):
    with pytest.raises(DialectError):
        convert(row, source=source, target="video-o3")


def test_the_command_counts_what_is_lost(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(own()) + "\n" + json.dumps({"id": "bad"}) + "\n")
    out = tmp_path / "out.jsonl"
    code = dialects.main([str(path), str(out), "--from", "video-o3", "--to", "longvt"])
    said = capsys.readouterr()
    assert code == 1 and len(out.read_text().splitlines()) == 1
    assert "sampling strategy, in 1 rows" in said.out and "rows.jsonl:2" in said.err
