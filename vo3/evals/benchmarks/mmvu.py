"""MMVU, the validation set: expert questions on short videos; multiple choice makes M-Avg, open questions stand apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import urlparse

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
    words,
)
from vo3.evals.questions import Question

DISCIPLINES = {
    "Science": (
        "Astronomy", "Biology", "Chemistry", "Electromagnetism", "Geography", "Materials_Science", "Mechanics", "Modern_Physics",
        "Neurobiology", "Thermodynamics",
    ),
    "Engineering": (
        "Biomedical_Engineering", "Civil_Engineering", "Computer_Science", "Electrical_Engineering", "Electronics_and_Communication",
        "Mechanical_Engineering",
    ),
    "Healthcare": ("Basic_Medicine", "Clinical_Medicine", "Dentistry", "Pharmacy", "Preventive_Medicine"),
    "Humanities and social science": ("Art", "Economics", "History", "Law", "Literature", "Management"),
}  # fmt: skip


def read(root: epath.Path, files: Sequence[epath.Path], options: Options) -> Iterator[Question]:
    """The multiple-choice questions, and the open ones where they are asked for."""
    for where, row in json_rows(files[0]):
        # A URL of the publisher's folder: .../videos/<subject>/<number>.mp4
        subject, file = urlparse(field(row, "video", where)).path.split("/")[-2:]
        video = find_video([root / "videos" / subject, root / subject], file)
        discipline = next(
            (d for d, subjects in DISCIPLINES.items() if subject in subjects), "other"
        )
        categories = {"discipline": (discipline,), "subject": (subject.replace("_", " "),)}
        name, text = field(row, "id", where), field(row, "question", where)
        answer = field(row, "answer", where)
        if field(row, "question_type", where) == "multiple-choice":
            offered = {
                k: v for k, v in field(row, "choices", where, dict).items() if k in LETTERS and v
            }
            yield choice(
                "mmvu", name, video=video, text=text, options=offered, answer=answer, where=where,
                categories=categories,
            )  # fmt: skip
        elif options.open_questions:
            yield words(
                "mmvu", name, video=video, text=text, answer=answer,
                categories={"open": tuple(categories["discipline"])}, counted=False,
            )  # fmt: skip


MMVU = Benchmark(
    name="mmvu",
    title="MMVU",
    source="https://huggingface.co/datasets/yale-nlp/MMVU (validation.json and videos/)",
    files=(
        AnnotationFile(
            "validation.json|data/validation.json",
            "f7c1ac4f9fa9770960b17ef16a3b6861f777ba04ae818dccd0ea6cda34d2213d",
        ),
    ),
    counted=625,
    metric="M-Avg",
    scorer=extraction.Scorer(
        "standalone letter; open answers by normalised containment",
        "1",
        extraction.standalone_letter,
        extraction.containment,
    ),
    read=read,
    notes=(
        "The official scorer is a language model; without a judge, letters are read by rule and open answers by containment.",
    ),
)
