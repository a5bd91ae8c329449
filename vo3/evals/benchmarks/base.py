"""What a benchmark is: where its annotations come from, how they are read, and how its number is made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from etils import epath

from vo3.evals.extraction import LMMS_EVAL, Scorer
from vo3.evals.questions import AnnotationError, Question
from vo3.trajectory import Clue, Target, Task

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# What video files are called, in the order in which they are looked for.
SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")


@dataclasses.dataclass(frozen=True)
class Options:
    """What may be chosen about a benchmark.

    Attributes:
      subtitles: put the subtitles into the question where the benchmark has them.
      open_questions: ask questions that are no part of the headline metric too.
      worlds, first: ClueWorld's number of worlds and the first one's seed.
    """

    subtitles: bool = False
    open_questions: bool = False
    worlds: int = 20
    first: int = 50_000


@dataclasses.dataclass(frozen=True)
class AnnotationFile:
    """A file as published.

    Attributes:
      name: its path in the publisher's folder; alternatives after `|`, `*` stands for anything.
      sha256: of the published file, where it is known.
    """

    name: str
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class FoundFile:
    """An annotation file that was read. `published`: whether its hash is the published one; None where that is not known."""

    name: str
    sha256: str
    published: bool | None


@dataclasses.dataclass(frozen=True)
class Read:
    """What reading a benchmark gave: its questions, and the files they come from; `cut` where some questions are left out on request."""

    questions: tuple[Question, ...]
    files: tuple[FoundFile, ...]
    cut: bool = False


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
      name: as in `--config.benchmarks`.
      title: as people write it.
      source: where annotations and videos are published, and under which terms.
      files: annotation files.
      counted: questions behind the headline metric, as published; 0: chosen by the user.
      metric: what the headline metric is called.
      average: "questions": every question counts the same; else the category whose groups' accuracies are averaged.
      scorer: the official rule.
      others: further rules under which the same answers are counted, for comparison.
      read: (folder, found files, options) -> questions.
      notes: what a reader of the number must know.
    """

    name: str
    title: str
    source: str
    files: tuple[AnnotationFile, ...]
    counted: int
    metric: str
    scorer: Scorer
    read: Callable[[epath.Path, Sequence[epath.Path], Options], Iterable[Question]]
    average: str = "questions"
    others: tuple[Scorer, ...] = (LMMS_EVAL,)
    kind: Literal["accuracy", "grounding"] = "accuracy"
    notes: tuple[str, ...] = ()

    def load(
        self, root: epath.PathLike, options: Options = Options(), *, partial: bool = False
    ) -> Read:
        """Reads and checks the annotations under `root`, the publisher's folder.

        Args:
          root: the folder with the annotation files and the videos.
          options: what is asked.
          partial: accept another number of questions than published, and files with another hash.

        Raises:
          AnnotationError: a file is missing, is not the published one, or lacks a field; the number of questions is another.
        """
        root = epath.Path(root)
        paths = [_find(root, file.name, self) for file in self.files]
        found = []
        for file, path in zip(self.files, paths, strict=True):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            same = digest == file.sha256 if file.sha256 else None
            if same is False and not partial:
                raise AnnotationError(
                    f"{path} is not the file that {self.title} published: its sha256 is {digest[:16]}..., theirs {file.sha256[:16]}...; "
                    f"download it from {self.source}, or allow it with --config.partial=True, which the card will say"
                )
            found.append(FoundFile(str(path.relative_to(root)), digest, same))
        try:
            questions = tuple(self.read(root, paths, options))
        except AnnotationError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise AnnotationError(
                f"{', '.join(map(str, paths))}: not as {self.title} published it ({type(error).__name__}: {error}); download it from {self.source}"
            ) from error
        seen: set[str] = set()
        for question in questions:
            if question.id in seen:
                raise AnnotationError(f"{root}: two questions have the id {question.id}")
            seen.add(question.id)
        count = sum(q.counted for q in questions)
        if self.counted and count != self.counted and not partial:
            raise AnnotationError(
                f"{root} holds {count:,} questions of {self.title}'s {self.metric}, published are {self.counted:,}; "
                "complete it, or evaluate a part with --config.partial=True, which the card will say"
            )
        if not questions:
            raise AnnotationError(f"{root} holds no question of {self.title}")
        return Read(questions, tuple(found))


def _find(root: epath.Path, names: str, benchmark: Benchmark) -> epath.Path:
    for name in names.split("|"):
        folder, _, last = name.rpartition("/")
        where = root / folder if folder else root
        if "*" in last:
            if where.exists() and (hits := sorted(where.glob(last))):
                return hits[0]
        elif (where / last).exists():
            return where / last
    raise AnnotationError(
        f"{root} has no {' or '.join(names.split('|'))}; download {benchmark.title} from {benchmark.source}"
    )


# ---------------------------------------------------------------- for readers


def field(
    row: Mapping[str, Any], name: str, where: str, kind: type | tuple[type, ...] = str
) -> Any:
    """A field of a row.

    Raises:
      AnnotationError: it is missing, or of another type.
    """
    if name not in row:
        raise AnnotationError(
            f"{where} has no field {name!r} (it has {', '.join(map(str, row))}); give the file as published"
        )
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise AnnotationError(
            f"{where}: {name} is {row[name]!r}, not {' or '.join(k.__name__ for k in kinds)}"
        )
    return row[name]


def read_json(path: epath.Path) -> Any:
    """A JSON file.

    Raises:
      AnnotationError: it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise AnnotationError(f"{path} is no JSON file: {error}; download it again") from error


def json_rows(path: epath.Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The objects of a JSON array, with a name for messages.

    Raises:
      AnnotationError: it is no array of objects.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise AnnotationError(f"{path} is no JSON array of objects; give the file as published")
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows)]


def rows_of(path: epath.Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of a JSON, JSONL or Parquet file with a name for messages.

    Raises:
      AnnotationError: the file cannot be read.
    """
    from vo3.data.files import RowFiles

    try:
        rows = RowFiles(path)
        return [(f"{path}, row {i}", row) for i, row in enumerate(rows)]
    except (ValueError, OSError) as error:
        raise AnnotationError(f"{path} cannot be read: {error}; download it again") from error


def lettered(texts: Sequence[str], where: str) -> dict[str, str]:
    """Options by letter.

    Raises:
      AnnotationError: fewer than two, more than there are letters, or one that is no text.
    """
    if not 2 <= len(texts) <= len(LETTERS):
        raise AnnotationError(f"{where}: {len(texts)} options")
    if not all(isinstance(text, str) for text in texts):
        raise AnnotationError(f"{where}: an option is no text: {texts!r}")
    return dict(zip(LETTERS, texts, strict=False))


def unprefixed(texts: Sequence[str]) -> list[str]:
    """`["A. red", "B. blue"]` without the letters, where every option carries its own."""
    marks = [f"{letter}." for letter in LETTERS]
    if all(str(text).startswith(mark) for text, mark in zip(texts, marks, strict=False)):
        return [str(text)[2:].strip() for text in texts]
    return list(texts)


def letter_target(answer: str, options: Mapping[str, str], where: str, **target: Any) -> Target:
    """The target of a letter.

    Raises:
      AnnotationError: the letter is none of the options'.
    """
    if answer not in options:
        raise AnnotationError(
            f"{where}: the answer {answer!r} is none of the options {', '.join(options)}"
        )
    return Target(answer, **target)


def find_video(folders: Sequence[epath.Path], stem: str) -> str:
    """The path of a video that is called `stem` in one of the folders, whatever its suffix.

    A video that is nowhere gets the path where it was looked for first: its questions then fail by name, and count.
    """
    name = epath.Path(stem)
    stems = (stem,) if name.suffix in SUFFIXES else tuple(f"{stem}{suffix}" for suffix in SUFFIXES)
    for folder in folders:
        for candidate in stems:
            if (folder / candidate).exists():
                return str(folder / candidate)
    return str(folders[0] / stems[0])


def choice(
    benchmark: str,
    number: str,
    *,
    video: str,
    text: str,
    options: Mapping[str, str],
    answer: str,
    where: str,
    categories: Mapping[str, tuple[str, ...]],
    clues: tuple[Clue, ...] = (),
    counted: bool = True,
) -> Question:
    """A multiple-choice question.

    Raises:
      AnnotationError: an option is no text, or the answer none of their letters.
    """
    if wrong := [k for k, v in options.items() if not isinstance(v, str)]:
        raise AnnotationError(f"{where}: option {wrong[0]} is {options[wrong[0]]!r}, not text")
    target = letter_target(answer, options, where, clues=clues)
    task = Task(f"{benchmark}/{number}", video, text.strip(), dict(options), target)
    return Question(task, "choice", categories, counted)


def words(
    benchmark: str,
    number: str,
    *,
    video: str,
    text: str,
    answer: str,
    categories: Mapping[str, tuple[str, ...]],
    counted: bool = True,
) -> Question:
    """A question that is answered in words."""
    task = Task(f"{benchmark}/{number}", video, text.strip(), None, Target(answer))
    return Question(task, "open", categories, counted)
