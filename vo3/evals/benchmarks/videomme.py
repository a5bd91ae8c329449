"""Video-MME: 900 videos with three questions each, with or without subtitles."""

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
)
from vo3.evals.questions import Question

_TAG = re.compile(r"<[^>]+>")
NO_SUBTITLES = "No subtitles available."


def read(root: epath.Path, files: Sequence[epath.Path], options: Options) -> Iterator[Question]:
    """The questions; with subtitles, the whole video's stand before the question."""
    subtitles: dict[str, str] = {}
    for where, row in rows_of(files[0]):
        video = field(row, "videoID", where)
        text = field(row, "question", where)
        if options.subtitles:
            if video not in subtitles:
                subtitles[video] = read_srt(root / "subtitle" / f"{video}.srt")
            text = f"This video's subtitles:\n{subtitles[video]}\n\n{text}"
        yield choice(
            "videomme",
            field(row, "question_id", where),
            video=find_video([root / "data", root / "videos", root], video),
            text=text,
            options=lettered(unprefixed(field(row, "options", where, list)), where),
            answer=field(row, "answer", where),
            where=where,
            categories={
                "duration": (field(row, "duration", where),),
                "domain": (field(row, "domain", where),),
                "task": (field(row, "task_type", where),),
                "sub-category": (field(row, "sub_category", where),),
            },
        )


def read_srt(path: epath.Path) -> str:
    """The text of a subtitle file, one caption a line, without numbers, times and markup; a sentence that says so where there is none."""
    if not path.exists():
        return NO_SUBTITLES
    captions = []
    for block in re.split(r"\r?\n\s*\r?\n", path.read_text(encoding="utf-8-sig").strip()):
        lines = [line.strip() for line in block.splitlines()]
        at = next((i for i, line in enumerate(lines) if "-->" in line), None)
        if at is None:
            continue
        said = " ".join(filter(None, (_TAG.sub("", line).strip() for line in lines[at + 1 :])))
        if said:
            captions.append(said)
    return "\n".join(captions) or NO_SUBTITLES


VIDEOMME = Benchmark(
    name="videomme",
    title="Video-MME",
    source="https://huggingface.co/datasets/lmms-lab/Video-MME (academic use only)",
    files=(AnnotationFile("videomme/test-*.parquet|test-*.parquet"),),
    counted=2700,
    metric="Avg",
    scorer=extraction.Scorer("Video-MME eval_your_results.py", "4e7566d3", extraction.video_mme),
    read=read,
    notes=(),
)
