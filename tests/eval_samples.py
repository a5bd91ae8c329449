"""Small benchmarks in the official formats, written by us: questions of our own in the publishers' fields."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from vo3.trajectory import Call, Clue, Observation, Target, Task, Trajectory, Turn


def _json(path: pathlib.Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def _parquet(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def mlvu(root: pathlib.Path, *, video: str = "plain.mp4") -> pathlib.Path:
    """Two questions of each of the seven tasks on one video; one whose answer is none of its candidates."""
    names = (
        "1_plotQA",
        "2_needle",
        "3_ego",
        "4_count",
        "5_order",
        "6_anomaly_reco",
        "7_topic_reasoning",
    )
    for name in names:
        task = name.partition("_")[2]
        rows = [
            {
                "video": video, "duration": 12.5, "question": f"{task}: what is red?",
                "candidates": ["the ball", "the cart", "the door", "the hat"],
                "answer": "the door", "question_type": "findNeedle" if task == "needle" else task,
            },
            {
                "video": video, "duration": 12.5, "question": f"{task}: how many?",
                "candidates": ["1", "2", "2", "5"], "answer": "2", "question_type": task,
            },
        ]  # fmt: skip
        if task == "needle":
            rows[1]["answer"] = "none of these"
        _json(root / "json" / f"{name}.json", rows)
    scene = {
        "video": video,
        "duration": 12.5,
        "question": "Describe it.",
        "answer": "A ball rolls.",
        "question_type": "subPlot",
    }
    _json(root / "json" / "8_sub_scene.json", [{**scene, "scoring_points": ["it rolls"]}])
    _json(root / "json" / "9_summary.json", [{**scene, "question_type": "summary"}])
    return root


def videomme(root: pathlib.Path) -> pathlib.Path:
    """Two videos with three questions each; the first has subtitles."""
    rows = [
        {
            "video_id": f"00{v}", "duration": ("short", "long")[v], "domain": "Knowledge",
            "sub_category": "Geography", "url": "https://example.org", "videoID": f"vid{v}",
            "question_id": f"00{v}-{q}", "task_type": ("OCR Problems", "Counting Problem", "Action Reasoning")[q],
            "question": f"What happens at {q}?",
            "options": ["A. It rains.", "B. It snows.", "C. Nothing.", "D. The sun shines."],
            "answer": "ABCD"[q],
        }
        for v in range(2)
        for q in range(3)
    ]  # fmt: skip
    _parquet(root / "videomme" / "test-00000-of-00001.parquet", rows)
    (root / "subtitle").mkdir()
    (root / "subtitle" / "vid0.srt").write_text(
        '1\r\n00:00:00,500 --> 00:00:02,000\r\n<font color="white" size=".72c">Hello there.</font>\r\n\r\n'
        "2\r\n00:00:02,000 --> 00:00:04,000\r\nIt is\r\ncold.\r\n\r\n3\r\n00:00:05,000 --> 00:00:06,000\r\n\r\n"
    )
    return root


def lvbench(root: pathlib.Path) -> pathlib.Path:
    """One video with two questions, one of two kinds at once."""
    options = "\n(A) 1636\n(B) 1366\n(C) 1363\nor so\n(D) 1633"
    row = {
        "key": "abc_DEF-1", "type": "cartoon",
        "video_info": {"duration_minutes": 40.0, "fps": 25.0, "resolution": {"width": 640, "height": 360}},
        "qa": [
            {"uid": "55", "question": f"What year is told?{options}", "answer": "D",
             "question_type": ["key information retrieval"], "time_reference": "00:15-01:19"},
            {"uid": 56, "question": f"Why?\nAnd when?{options}", "answer": "C",
             "question_type": ["reasoning", "event understanding"], "time_reference": "1:00:15-1:01:00"},
        ],
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    (root / "video_info.meta.jsonl").write_text(json.dumps(row) + "\n")
    return root


def longvideobench(root: pathlib.Path) -> pathlib.Path:
    """Two questions, one with captions in seconds, one in h:mm:ss."""
    rows = [
        {
            "video_id": f"v{n}", "question": f"What is shown {n}?", "question_wo_referring_query": "What?",
            "candidates": ["a cat", "a dog", "a cow", "a hen", "a fox"][: 5 - n], "correct_choice": n,
            "position": [1], "topic_category": "NP-News-Programs", "question_category": ("TOS", "S2E")[n],
            "level": "L1-Perception", "id": f"v{n}_0", "video_path": f"v{n}.mp4", "subtitle_path": f"v{n}_en.json",
            "duration_group": (15, 3600)[n], "starting_timestamp_for_subtitles": (0, 60)[n],
            "duration": 10.0, "view_count": 7,
        }
        for n in range(2)
    ]  # fmt: skip
    _json(root / "lvb_val.json", rows)
    _json(
        root / "subtitles" / "v0_en.json",
        [{"timestamp": [0.0, 2.0], "text": "hi"}, {"timestamp": [11.0, 12.0], "text": "later"}],
    )
    _json(
        root / "subtitles" / "v1_en.json",
        [{"start": "00:00:59.000", "end": "00:01:00.000", "line": "before"},
         {"start": "00:01:01.500", "end": "00:01:03.000", "line": "within"}],
    )  # fmt: skip
    return root


def videommmu(root: pathlib.Path) -> pathlib.Path:
    """One lecture on every track; the Adaptation track has an open question too."""
    for track in ("Perception", "Comprehension", "Adaptation"):
        row = {
            "id": "dev_Art_Theory_3", "question": f"{track}? <image 1>", "options": ["one", "two <image 2>", "three"],
            "answer": "B", "link_selected": "https://example.org", "question_type": "multiple-choice",
        }  # fmt: skip
        rows = [row]
        if track == "Adaptation":
            rows.append(
                {
                    **row,
                    "id": "test_Math_8",
                    "options": [],
                    "answer": "2.50",
                    "question_type": "open",
                }
            )
        _parquet(root / track / "test-00000-of-00001.parquet", rows)
    return root


def mmvu(root: pathlib.Path) -> pathlib.Path:
    """A multiple-choice and an open question."""
    base = "https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/videos"
    rows = [
        {
            "id": "validation_0", "video": f"{base}/Art/0.mp4", "youtube_url": "", "question_type": "open-ended",
            "metadata": {"subject": "Art"}, "question": "Which technique?",
            "choices": dict.fromkeys("ABCDE", ""), "answer": "Dolly Zoom",
        },
        {
            "id": "validation_1", "video": f"{base}/Computer_Science/4.mp4", "youtube_url": "",
            "question_type": "multiple-choice", "metadata": {"subject": "Computer Science"}, "question": "Which sort?",
            "choices": {"A": "heap", "B": "merge", "C": "quick", "D": "bubble", "E": "radix"}, "answer": "E",
        },
    ]  # fmt: skip
    _json(root / "validation.json", rows)
    return root


def videoholmes(root: pathlib.Path) -> pathlib.Path:
    """Two questions on one film, options out of order as they may be."""
    rows = [
        {
            "video ID": "Q1w2E3", "Question ID": n, "Question Type": kind, "Question": f"Why {n}?",
            "Options": {"B": "b", "A": "a", "C": "c", "D": "d", "E": "e", "F": "f"},
            "Answer": "F", "Explanation": "because",
        }
        for n, kind in ((1, "SR"), (2, "CTI"))
    ]  # fmt: skip
    _json(root / "test_Video-Holmes.json", rows)
    return root


def charades(root: pathlib.Path) -> pathlib.Path:
    """Three sentences on two videos; the last one's window is empty."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "charades_sta_test.txt").write_text(
        "AAAA1 0.0 6.9##a person opens a door.\nAAAA1 10 14.2##a person laughs.\nBBBB2 3.0 3.0##a person sits.\n"
    )
    return root


WRITERS = {
    writer.__name__: writer
    for writer in (mlvu, videomme, lvbench, longvideobench, videommmu, mmvu, videoholmes, charades)
}


def answered(task: Task, answer: str | None, *, calls: int = 0, seconds: float = 0.5) -> Trajectory:
    """A finished trajectory that looked `calls` times and said `answer`; None: it refused."""
    overview = Observation(0, 0.0, 60.0, 2.0, (0.0, 30.0), (0, 60), 28, 56, (1, 2, 4), 32)
    turns = [Turn("system", "s"), Turn("question", "<video>?", observations=(overview,))]
    for n in range(1, calls + 1):
        clip = Observation(
            n, 10.0 * n, 10.0 * n + 5, 2.0, (10.0 * n,), (20 * n,), 56, 56, (1, 4, 4), 4, "fine"
        )
        turns.append(
            Turn(
                "call",
                f"<think>look {n}</think>",
                call=Call(clip.start, clip.end, "fine"),
                ids=(1, 2),
            )
        )
        turns.append(Turn("observation", "<video>", observations=(clip,)))
    text = "I cannot say." if answer is None else f"<think>so</think>\n<answer>{answer}</answer>"
    turns.append(Turn("text" if answer is None else "answer", text, answer=answer, ids=(3,)))
    outcome = "refused" if answer is None else "answered"
    return Trajectory(
        task, tuple(turns), outcome, answer, meta={"seconds": seconds, "video_hash": "f00"}
    )


def task(
    name: str = "t/1", *, answer: str = "B", clues: bool = False, video: str = "a.mp4"
) -> Task:
    """A question with two options."""
    target = Target(answer, (Clue(10.0, 15.0),) if clues else ())
    return Task(name, video, f"What is {name}?", {"A": "a cat", "B": "a dog"}, target)
