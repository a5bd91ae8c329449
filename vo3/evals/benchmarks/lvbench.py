"""LVBench: long videos, questions of six kinds; one may belong to several."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from etils import epath

from vo3.evals import extraction
from vo3.evals.benchmarks.base import (
    LETTERS,
    AnnotationFile,
    Benchmark,
    Options,
    choice,
    field,
    find_video,
    rows_of,
)
from vo3.evals.questions import AnnotationError, Question
from vo3.trajectory import Clue

_OPTION = re.compile(r"^\(([A-Z])\)\s*(.*)$")


def read(root: epath.Path, files: Sequence[epath.Path], options: Options) -> Iterator[Question]:
    """The questions of every video; options are taken out of the question's text, where they are published."""
    for where, row in rows_of(files[0]):
        key = field(row, "key", where)
        folders = [root / "videos", root / "all_videos", root / "data" / "videos", root]
        for asked in field(row, "qa", where, list):
            uid = str(field(asked, "uid", where, (str, int)))
            text, lettered = split_options(field(asked, "question", where), f"{where}, uid {uid}")
            yield choice(
                "lvbench",
                uid,
                video=find_video(folders, key),
                text=text,
                options=lettered,
                answer=field(asked, "answer", where),
                where=f"{where}, uid {uid}",
                categories={
                    "question": tuple(field(asked, "question_type", where, list)),
                    "video": (str(row.get("type", "")),),
                },
                clues=clue_of(str(asked.get("time_reference", ""))),
            )


def split_options(text: str, where: str) -> tuple[str, dict[str, str]]:
    """`"What?\\n(A) one\\n(B) two"` as the question and its options.

    Raises:
      AnnotationError: no options, or letters out of order.
    """
    question: list[str] = []
    options: dict[str, str] = {}
    for line in text.splitlines():
        found = _OPTION.match(line.strip())
        if found:
            options[found[1]] = found[2].strip()
        elif options:  # an option that goes on in the next line
            last = list(options)[-1]
            options[last] = f"{options[last]} {line.strip()}".strip()
        else:
            question.append(line)
    if len(options) < 2 or "".join(options) != LETTERS[: len(options)]:
        raise AnnotationError(f"{where}: the question's text has no lines (A), (B), ...: {text!r}")
    return "\n".join(question), options


def clue_of(reference: str) -> tuple[Clue, ...]:
    """`"01:15-01:19"` as seconds; nothing where no window is given."""
    ends = [part.strip().split(":") for part in reference.split("-")]
    if len(ends) != 2 or not all(p.isdigit() for end in ends for p in end):
        return ()
    seconds = [sum(int(p) * 60**i for i, p in enumerate(reversed(end))) for end in ends]
    return (Clue(float(seconds[0]), float(seconds[1])),) if seconds[0] < seconds[1] else ()


LVBENCH = Benchmark(
    name="lvbench",
    title="LVBench",
    source="https://huggingface.co/datasets/THUDM/LVBench (video_info.meta.jsonl; CC-BY-NC-SA-4.0; videos by their YouTube ids)",
    files=(AnnotationFile("video_info.meta.jsonl|data/video_info.meta.jsonl"),),
    counted=1549,
    metric="Avg",
    scorer=extraction.Scorer(
        "LVBench answer_util.py and compute_accuracy.py", "f998d955", extraction.lvbench
    ),
    read=read,
)
