"""Charades-STA, the test set: when does it happen? One turn without tools."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from etils import epath

from vo3.evals.benchmarks.base import AnnotationFile, Benchmark, Options, find_video
from vo3.evals.extraction import Scorer, plain_letter
from vo3.evals.questions import AnnotationError, Question
from vo3.trajectory import Clue, Target, Task

# "AO8RW 0.0 6.9##a person is putting a book on a shelf."
_LINE = re.compile(r"^(\S+) (\d+(?:\.\d+)?) (\d+(?:\.\d+)?)##(.+)$")


def read(root: epath.Path, files: Sequence[epath.Path], options: Options) -> Iterator[Question]:
    """One question a line, numbered by its line."""
    lines = files[0].read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _LINE.match(line.strip())
        if not found:
            raise AnnotationError(
                f"{files[0]}, line {number}: {line!r} is not '<video> <start> <end>##<sentence>'; give the file as published"
            )
        video, start, end, sentence = found.groups()
        clue = Clue(float(start), float(end))
        folders = [root / "Charades_v1_480", root / "Charades_v1", root / "videos", root]
        # A few published windows are empty or reversed; no answer can meet them.
        note = "" if clue.start < clue.end else f"its window {start} - {end} is empty"
        task = Task(
            f"charades/{number:04d}",
            find_video(folders, video),
            sentence.strip(),
            None,
            Target("", (clue,), "temporal_grounding"),
        )
        yield Question(task, "segment", {}, note=note)


CHARADES = Benchmark(
    name="charades",
    title="Charades-STA",
    source="https://github.com/jiyanggao/TALL (charades_sta_test.txt); videos: https://prior.allenai.org/projects/charades (480p)",
    files=(AnnotationFile("charades_sta_test.txt|annotations/charades_sta_test.txt"),),
    counted=3720,
    metric="R@0.5",
    scorer=Scorer("IoU of the answered temporal_segment", "1", plain_letter),
    kind="grounding",
    read=read,
    notes=(
        "One turn without looks in every mode, as published.",
        "R@IoU counts every question, mIoU of answered those whose answer names a window.",
    ),
)
