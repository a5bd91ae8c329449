"""LongVideoBench, the validation set: questions that refer to a moment, on videos of four lengths."""

from __future__ import annotations

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
    json_rows,
    lettered,
    read_json,
)
from vo3.evals.questions import AnnotationError, Question

# Duration group -> seconds of its videos.
GROUPS = {15: "8 to 15 s", 60: "15 to 60 s", 600: "3 to 10 minutes", 3600: "15 to 60 minutes"}


def read(root: epath.Path, files: Sequence[epath.Path], options: Options) -> Iterator[Question]:
    """The questions; with subtitles, the video's stand before the question."""
    for where, row in json_rows(files[0]):
        offered = lettered(field(row, "candidates", where, list), where)
        correct = field(row, "correct_choice", where, int)
        if not 0 <= correct < len(offered):
            raise AnnotationError(f"{where}: correct_choice {correct} of {len(offered)} candidates")
        group = field(row, "duration_group", where, int)
        text = field(row, "question", where)
        if options.subtitles:
            said = subtitles(root / "subtitles" / field(row, "subtitle_path", where), row, where)
            text = f"This video's subtitles:\n{said}\n\n{text}"
        yield choice(
            "longvideobench",
            field(row, "id", where),
            video=find_video([root / "videos", root], field(row, "video_path", where)),
            text=text,
            options=offered,
            answer=LETTERS[correct],
            where=where,
            categories={
                "duration": (GROUPS.get(group, f"{group} s"),),
                "question": (field(row, "question_category", where),),
                "topic": (str(row.get("topic_category", "")),),
            },
        )


def subtitles(path: epath.Path, row: dict, where: str) -> str:
    """The captions of the clip that the video file holds, one a line.

    The files have two forms: {"timestamp": [start, end], "text"} in seconds, and {"start", "end", "line"} in h:mm:ss. Both count from the
    beginning of the whole video, of which the file is a part that begins at `starting_timestamp_for_subtitles`.

    Raises:
      AnnotationError: the file is missing or of another form.
    """
    if not path.exists():
        raise AnnotationError(f"{path} is missing: {where} was asked with subtitles")
    first = float(row.get("starting_timestamp_for_subtitles", 0.0))
    last = first + float(field(row, "duration", where, (int, float)))
    lines = []
    for entry in read_json(path):
        if "timestamp" in entry:
            start, said = entry["timestamp"][0], entry["text"]
        else:
            start, said = _seconds(field(entry, "start", str(path))), entry["line"]
        if first <= float(start) < last and said.strip():
            lines.append(said.strip())
    return "\n".join(lines) or "No subtitles available."


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


LONGVIDEOBENCH = Benchmark(
    name="longvideobench",
    title="LongVideoBench",
    source="https://huggingface.co/datasets/longvideobench/LongVideoBench (lvb_val.json; CC-BY-NC-SA-4.0)",
    files=(AnnotationFile("lvb_val.json"),),
    counted=1337,
    metric="Avg",
    scorer=extraction.Scorer(
        "LongVideoBench (the authors' task in lmms-eval)", "75571cfe", extraction.long_video_bench
    ),
    read=read,
    notes=(
        "The official rule gives an answer that it cannot read a random option; here it is wrong.",
    ),
)
