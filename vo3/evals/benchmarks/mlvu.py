"""MLVU, the development set: seven kinds of multiple choice (M-Avg), and two of generation, apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from etils import epath

from vo3.evals import extraction
from vo3.evals.benchmarks.base import (
    AnnotationFile,
    Benchmark,
    Options,
    choice,
    field,
    find_video,
    json_rows,
    lettered,
    words,
)
from vo3.evals.questions import AnnotationError, Question
from vo3.trajectory import Target, Task

# Task -> (file, sha256), as published with the repository, and its questions: 539, 355, 352, 206, 259, 200, 264; 201, 217.
TASKS: dict[str, tuple[str, str]] = {
    "plotQA": ("1_plotQA", "453cdabe10409fe5ed4c0d98dcde2be53e13ae3dacb19fd3173c8b27c4bf388b"),
    "needle": ("2_needle", "e31deed2c719f035054f5229f7ea77075eb4b69bf83680e8baf3b272a9eabb1d"),
    "ego": ("3_ego", "4566a3e9e19c8cee8183f0368e9a8d0f484098bd2f1eb949c832535764eb9701"),
    "count": ("4_count", "4b063074ab8e676e4756e4aaa369c18e38ed49563ec4e0cd0a381c4260dacb8a"),
    "order": ("5_order", "c332f83c45a1a28cec156658f8cb6a948fcb181ed0ee5e044a9be3fb95dc6bdb"),
    "anomaly_reco": ("6_anomaly_reco", "caccb62cd52775cdcf3989ce15aa2bbb4269c2df2863eb7d0f48e83620a705e8"),
    "topic_reasoning": ("7_topic_reasoning", "54a5287703fddc2bc2b6cfdc92918e099d50257c575a12d194423128deefc99d"),
}  # fmt: skip
GENERATION: dict[str, tuple[str, str]] = {
    "sub_scene": ("8_sub_scene", "9a9ce2384ed4dd57c15898aa9f33d4bcdf043a870ed3ee78a76e9ba986e70ce2"),
    "summary": ("9_summary", "be60b4f278a0cea8771b2b8a82340123a95e97703e48834f607dd35d819b4334"),
}  # fmt: skip


def read(root: epath.Path, files: Sequence[epath.Path], options: Options) -> Iterator[Question]:
    """The questions; a file's questions are numbered in its order, since they carry no id."""
    for path, task in zip(files, TASKS, strict=True):
        for number, (where, row) in enumerate(json_rows(path)):
            yield _choice(root, task, f"{task}-{number:04d}", row, where)
    if options.open_questions:
        for task, (name, _) in GENERATION.items():
            path = files[0].parent / f"{name}.json"
            if not path.exists():
                raise AnnotationError(
                    f"{path} is missing: MLVU's generation questions were asked for"
                )
            for number, (where, row) in enumerate(json_rows(path)):
                yield words(
                    "mlvu",
                    f"{task}-{number:04d}",
                    video=_video(root, name, field(row, "video", where)),
                    text=field(row, "question", where),
                    answer=field(row, "answer", where),
                    categories={"task": (task,)},
                    counted=False,
                )


def _choice(root: epath.Path, task: str, number: str, row: dict, where: str) -> Question:
    texts = field(row, "candidates", where, list)
    options = lettered([str(text) for text in texts], where)
    answer = str(field(row, "answer", where, (str, int, float)))
    # The official script takes the last option that equals the answer. In two published rows none does: nothing is right then.
    equal = [letter for letter, text in options.items() if text == answer]
    video = _video(root, TASKS[task][0], field(row, "video", where))
    text = field(row, "question", where)
    categories = {"task": (task,)}
    if equal:
        return choice(
            "mlvu", number, video=video, text=text, options=options, answer=equal[-1], where=where,
            categories=categories,
        )  # fmt: skip
    target = Target("@")
    return dataclasses.replace(
        Question(
            Task(f"mlvu/{number}", video, text.strip(), options, target), "choice", categories
        ),
        note=f"the answer {answer!r} is none of the options",
    )


def _video(root: epath.Path, task: str, name: str) -> str:
    folders = [
        root / "video" / task,
        root / "MLVU" / "video" / task,
        root / "videos",
        root,
    ]
    return find_video(folders, name)


MLVU = Benchmark(
    name="mlvu",
    title="MLVU",
    source="https://github.com/JUNJIE99/MLVU (data/*.json; CC-BY-NC-SA-4.0), videos: https://huggingface.co/datasets/MLVU/MVLU",
    files=tuple(
        AnnotationFile(f"json/{name}.json|data/{name}.json|MLVU/json/{name}.json|{name}.json", sha)
        for name, sha in TASKS.values()
    ),
    counted=2175,
    metric="M-Avg",
    average="task",
    scorer=extraction.Scorer(
        "MLVU multiple_choice_evaluation/choice_bench.py", "fd060c10", extraction.mlvu
    ),
    read=read,
    notes=("M-Avg is the mean of the seven tasks' accuracies, as in the official script.",),
)
