"""Video-Holmes: suspense films, seven kinds of questions with six options."""

from __future__ import annotations

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
)
from vo3.evals.extraction import LMMS_EVAL, Scorer
from vo3.evals.questions import Question

KINDS = {
    "SR": "SR, social reasoning",
    "IMC": "IMC, intention and motive chaining",
    "TCI": "TCI, temporal causal inference",
    "TA": "TA, timeline analysis",
    "MHR": "MHR, multimodal hint reasoning",
    "PAR": "PAR, physical anomaly reasoning",
    "CTI": "CTI, core theme inference",
}


def read(root: epath.Path, files: Sequence[epath.Path], options: Options) -> Iterator[Question]:
    """The questions; their number is unique within a video."""
    for where, row in json_rows(files[0]):
        video, kind = field(row, "video ID", where), field(row, "Question Type", where)
        asked = field(row, "Question ID", where, (int, str))
        folders = [root / "videos", root / "videos_cropped", root / "Benchmark" / "videos", root]
        yield choice(
            "videoholmes",
            f"{video}-{asked}",
            video=find_video(folders, video),
            text=field(row, "Question", where),
            options=dict(sorted(field(row, "Options", where, dict).items())),
            answer=field(row, "Answer", where),
            where=where,
            categories={"question": (KINDS.get(kind, kind),)},
        )


VIDEOHOLMES = Benchmark(
    name="videoholmes",
    title="Video-Holmes",
    source="https://huggingface.co/datasets/TencentARC/Video-Holmes (test_Video-Holmes.json and videos.zip; academic use only)",
    files=(AnnotationFile("test_Video-Holmes.json|Benchmark/test_Video-Holmes.json"),),
    counted=1837,
    metric="Avg",
    scorer=Scorer("Video-Holmes evaluate.py", "52ef8da2", extraction.video_holmes),
    others=(
        LMMS_EVAL,
        Scorer("lmms-eval video_holmes (MMMU's parser)", "75571cfe", extraction.mmmu),
    ),
    read=read,
)
