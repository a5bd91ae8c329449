"""What may enter the stages: no near-duplicate questions, nothing that a benchmark asks, no orders to a model, no path out of the root.

Near-duplicates are found by MinHash over word shingles: 32 hashes in 8 bands, candidates compared by their estimated Jaccard
similarity. The signatures live in a SQLite file of their own that is thrown away, so memory stays flat.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath

from data_prep import videos
from data_prep.schema import Triplet
from data_prep.stages.rules import is_injection

_WORD = re.compile(r"\w+")
_HASHES, _BANDS = 32, 8
_PRIME = np.uint64((1 << 61) - 1)
_RNG = np.random.default_rng(0x517E)
_A = _RNG.integers(1, 1 << 31, _HASHES, dtype=np.uint64)
_B = _RNG.integers(0, 1 << 31, _HASHES, dtype=np.uint64)


@dataclasses.dataclass(frozen=True)
class AdmissionSettings:
    """What is turned away.

    Attributes:
      similarity: estimated Jaccard similarity from which two questions are the same; above 1 turns the check off.
      across_videos: whether the same question on another video is a duplicate.
      benchmarks: files of benchmark rows (jsonl or json; `question` and a video field) or of video ids (txt).
    """

    similarity: float = 0.9
    across_videos: bool = False
    benchmarks: tuple[str, ...] = ()


def shingles(text: str) -> set[str]:
    """Pairs of neighbouring words, case and punctuation apart; the words themselves for a text of one."""
    words = _WORD.findall(text.casefold())
    return {" ".join(pair) for pair in itertools.pairwise(words)} or set(words)


def signature(text: str) -> np.ndarray:
    """MinHash of a text's shingles: uint64 [32]."""
    codes = [
        int.from_bytes(hashlib.blake2b(s.encode("utf-8", "replace"), digest_size=4).digest(), "big")
        for s in sorted(shingles(text))
    ]
    values = np.array(codes or [0], np.uint64)
    return ((_A[:, None] * values + _B[:, None]) % _PRIME).min(axis=1)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Estimated Jaccard similarity of two signatures."""
    return float((a == b).mean())


class SeenQuestions:
    """Questions met so far, by scope (a video, or everywhere)."""

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._folder = tempfile.TemporaryDirectory()
        self._db = sqlite3.connect(os.path.join(self._folder.name, "seen.sqlite"), isolation_level=None)  # fmt: skip
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("CREATE TABLE bands (scope TEXT, band BLOB, name TEXT, signature BLOB)")
        self._db.execute("CREATE INDEX by_band ON bands (scope, band)")

    def find(self, scope: str, text: str) -> str | None:
        """The name of an earlier text that this one repeats; None when it is new."""
        return self._find(scope, signature(text))

    def _find(self, scope: str, sig: np.ndarray) -> str | None:
        bands = _bands(sig)
        marks = ",".join("?" * len(bands))
        query = f"SELECT name, signature FROM bands WHERE scope = ? AND band IN ({marks})"
        for earlier, stored in self._db.execute(query, (scope, *bands)):
            if similarity(sig, np.frombuffer(stored, np.uint64)) >= self._threshold:
                return earlier
        return None

    def add(self, scope: str, name: str, text: str) -> str | None:
        """As `find`; a new text is kept under `name`."""
        sig = signature(text)
        if (earlier := self._find(scope, sig)) is not None:
            return earlier
        rows = [(scope, band, name, sig.tobytes()) for band in _bands(sig)]
        self._db.executemany("INSERT INTO bands VALUES (?, ?, ?, ?)", rows)
        return None

    def close(self) -> None:
        """Throws the signatures away."""
        self._db.close()
        self._folder.cleanup()


def _bands(sig: np.ndarray) -> list[bytes]:
    return [bytes([n]) + part.tobytes() for n, part in enumerate(np.split(sig, _BANDS))]


def question_text(triplet: Triplet) -> str:
    """What makes two triplets the same: question and options."""
    options = sorted((triplet.options or {}).values())
    return " ".join([triplet.question, *options])


def video_id(video: str) -> str:
    """A video's name without folder and suffix: what data sets share."""
    return os.path.splitext(os.path.basename(video.rstrip("/")))[0].casefold()


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """What must not be trained on: video ids and questions."""

    videos: frozenset[str]
    questions: tuple[str, ...]


def read_benchmarks(paths: Iterable[str]) -> Benchmarks:
    """Reads the files of `AdmissionSettings.benchmarks`.

    Raises:
      ValueError: a file that holds none of it.
    """
    ids: set[str] = set()
    questions: list[str] = []
    for name in paths:
        path = epath.Path(name)
        if not path.exists():
            raise ValueError(
                f"no benchmark file {name}; give a txt of video ids, or rows as jsonl or json"
            )
        text = path.read_text()
        before = len(ids) + len(questions)
        if path.suffix == ".txt":
            ids |= {video_id(line) for line in text.split("\n") if line.strip()}
        else:
            rows = json.loads(text) if path.suffix == ".json" else map(json.loads, filter(str.strip, text.split("\n")))  # fmt: skip
            for row in rows:
                ids |= {video_id(str(row[k])) for k in ("video", "video_id", "videoID", "video_uid", "video_path") if row.get(k)}  # fmt: skip
                questions += [str(row[k]) for k in ("question", "problem") if row.get(k)]
        if len(ids) + len(questions) == before:
            raise ValueError(f"{name} names no video and no question")
    return Benchmarks(frozenset(ids), tuple(questions))


def admit(
    triplets: Iterable[Triplet], *, settings: AdmissionSettings, root: str
) -> Iterator[tuple[Triplet, str, str]]:
    """(triplet, reason, detail) for each; an empty reason lets it in.

    Reasons: `video_path`, `malformed`, `injection`, `benchmark_video`, `benchmark_question`, `duplicate`.
    """
    benchmarks = read_benchmarks(settings.benchmarks)
    known, seen = SeenQuestions(min(settings.similarity, 1.0)), SeenQuestions(settings.similarity)
    try:
        for question in benchmarks.questions:
            known.add("", question[:80], question)
        for triplet in triplets:
            reason, detail = _refusal(triplet, root)
            if not reason and video_id(triplet.video) in benchmarks.videos:
                reason, detail = "benchmark_video", triplet.video
            # Short questions ("How many people are there?") are no one's: they need words to be told apart.
            if not reason and benchmarks.questions and len(shingles(triplet.question)) >= 4:
                earlier = known.find("", triplet.question)
                if earlier:
                    reason, detail = "benchmark_question", earlier
            if not reason and settings.similarity <= 1:
                scope = "" if settings.across_videos else triplet.video
                earlier = seen.add(scope, triplet.id, question_text(triplet))
                if earlier:
                    reason, detail = "duplicate", f"of {earlier}"
            yield triplet, reason, detail
    finally:
        known.close()
        seen.close()


def _refusal(triplet: Triplet, root: str) -> tuple[str, str]:
    try:
        videos.below(root, triplet.video)
    except videos.PathError as error:
        return "video_path", str(error)
    if not triplet.question.strip():
        return "malformed", "no question"
    if triplet.kind == "qa" and not triplet.answer.strip():
        return "malformed", "no answer"
    if triplet.kind == "grounding" and not triplet.clues:
        return "malformed", "no interval"
    if triplet.options and triplet.answer not in triplet.options:
        return "malformed", f"answer {triplet.answer!r} is none of the options"
    text = " ".join([triplet.question, triplet.answer, *(triplet.options or {}).values()])
    if is_injection(text):
        return "injection", triplet.question[:80]
    return "", ""
