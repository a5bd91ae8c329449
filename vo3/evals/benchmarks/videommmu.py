"""VideoMMMU: three tracks of 300 questions on lectures; Overall is the mean over all 900."""

from __future__ import annotations

import re
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
    lettered,
    rows_of,
    unprefixed,
    words,
)
from vo3.evals.questions import AnnotationError, Question

TRACKS = ("Perception", "Comprehension", "Adaptation")
# Folder of the videos, and discipline of the tables -> subjects, as they stand in the ids.
DISCIPLINES: dict[tuple[str, str], tuple[str, ...]] = {
    ("Art", "Art and Design"): ("Art", "Art_Theory", "Design", "Music"),
    ("Business", "Business"): ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    ("Science", "Science"): ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    ("Medicine", "Health and Medicine"): (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy", "Public_Health",
    ),
    ("Humanities", "Humanities and Social Science"): ("History", "Literature", "Sociology", "Psychology"),
    ("Engineering", "Tech and Engineering"): (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power", "Materials",
        "Mechanical_Engineering",
    ),
}  # fmt: skip
_IMAGE = re.compile(r"<image \d+>")
# Said in the question of the Adaptation track, whose videos end with the question's picture.
AT_THE_END = "The picture that the question is about is the last one of the video."


def read(root: epath.Path, files: Sequence[epath.Path], options: Options) -> Iterator[Question]:
    """The questions of the three tracks. A video that a track shares with another is one video."""
    for track, path in zip(TRACKS, files, strict=True):
        for where, row in rows_of(path):
            name = field(row, "id", where)
            folder, discipline, subject = _place(name, where)
            video = find_video(
                [root / folder, root / "videos" / folder, root / "videos", root], name
            )
            text = _IMAGE.sub("the picture", field(row, "question", where))
            if track == "Adaptation":
                text = f"{text}\n{AT_THE_END}"
            categories = {
                "track": (track,),
                "discipline": (discipline,),
                "subject": (subject.replace("_", " "),),
            }
            number, answer = f"{track}/{name}", field(row, "answer", where)
            if row.get("question_type", "multiple-choice") == "open":
                yield words(
                    "videommmu",
                    number,
                    video=video,
                    text=text,
                    answer=answer,
                    categories=categories,
                )
                continue
            offered = [
                _IMAGE.sub("the picture", str(o)) for o in field(row, "options", where, list)
            ]
            yield choice(
                "videommmu", number, video=video, text=text, options=lettered(unprefixed(offered), where),
                answer=answer, where=where, categories=categories,
            )  # fmt: skip


def _place(name: str, where: str) -> tuple[str, str, str]:
    subject = "_".join(name.split("_")[1:-1])
    for (folder, discipline), subjects in DISCIPLINES.items():
        if subject in subjects:
            return folder, discipline, subject
    raise AnnotationError(f"{where}: the id {name!r} names no subject of VideoMMMU's")


VIDEOMMMU = Benchmark(
    name="videommmu",
    title="VideoMMMU",
    source="https://huggingface.co/datasets/lmms-lab/VideoMMMU (academic use only)",
    files=tuple(
        AnnotationFile(f"{track}/test-*.parquet|{track}/test/*.parquet|{track}/*.parquet")
        for track in TRACKS
    ),
    counted=900,
    metric="Overall",
    scorer=extraction.Scorer(
        "VideoMMMU parse_multi_choice_response and eval_open (MMMU's)",
        "88b4ac3e",
        extraction.video_mmmu,
        extraction.video_mmmu_open,
    ),
    read=read,
    notes=(
        "The Adaptation track's picture is seen where the publisher put it, at the end of the video, not as a picture of its own.",
    ),
)
