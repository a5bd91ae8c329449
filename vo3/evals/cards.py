"""Result cards: a number with everything that made it, as JSON, Markdown and a page.

The JSON card is complete: the other two are drawn from it, and `vo3 compare` needs nothing else. It holds no time of day, and what was measured
(seconds) stands apart under `measured`, so that the same evaluation gives the same card.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from etils import epath

import vo3
from vo3 import json_line
from vo3.evals import card_page, card_text, fingerprint, published
from vo3.evals.benchmarks.base import Benchmark, Read
from vo3.evals.extraction import LETTER, Scorer
from vo3.evals.journal import failure_of, write_atomically
from vo3.evals.modes import Mode
from vo3.evals.scoring import Judge, Row, Score, Verdict, grade, summarise
from vo3.evals.statistics import Figure
from vo3.trajectory import Trajectory

SCHEMA = 1
JSON, MARKDOWN, HTML = "card.json", "card.md", "card.html"
LISTED = 200  # failures named in a card, at most; all are in the trajectories


class CardError(ValueError):
    """A file that is no card; names it and the remedy."""


def make(
    benchmark: Benchmark,
    read: Read,
    trajectories: Sequence[Trajectory],
    *,
    mode: Mode,
    settings: dict[str, Any],
    environment: dict[str, Any],
    partial: bool,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """A card.

    Args:
      benchmark, read: what was asked.
      trajectories: the answer to each of `read.questions`, in their order.
      mode: how it was asked.
      settings: everything that decides the answers.
      environment: see `fingerprint.environment`.
      partial: whether less than the benchmark was asked, or its files are not the published ones.
      judge: for answers that no rule scores.
    """
    verdicts = [
        grade(q, t, benchmark.scorer, judge)
        for q, t in zip(read.questions, trajectories, strict=True)
    ]
    score = summarise(benchmark, verdicts)
    failures = [
        {"id": t.task.id, "video": t.task.video, **failure}
        for t in trajectories
        if (failure := failure_of(t)) is not None
    ]
    return {
        "schema": SCHEMA,
        "vo3": vo3.__version__,
        "benchmark": {
            "name": benchmark.name,
            "title": benchmark.title,
            "source": benchmark.source,
            "files": [dataclasses.asdict(file) for file in read.files],
            "published_questions": benchmark.counted,
            "questions": len(read.questions),
            "partial": partial,
            "notes": list(benchmark.notes),
            "faulty": [{"id": q.id, "note": q.note} for q in read.questions if q.note],
        },
        "score": {"metric": benchmark.metric, **_figure(score.headline)},
        "rows": [_row(row) for row in score.rows],
        "apart": [_row(row) for row in score.apart],
        "scorer": _scorer(benchmark.scorer) | {"judge": getattr(judge, "name", None)},
        "other_scorers": _others(benchmark, read, trajectories),
        "unread": score.unread,
        "unjudged": score.unjudged,
        "published": published.row(benchmark.name),
        "mode": mode.name,
        "quota": mode.quota,
        "settings": settings,
        "environment": environment,
        "shown": _shown(trajectories),
        "outcomes": dict(sorted(Counter(t.outcome for t in trajectories).items())),
        "calls": dict(sorted(Counter(str(len(t.calls)) for t in trajectories).items())),
        "failures": {"count": len(failures), "listed": failures[:LISTED]},
        "videos": _videos(trajectories),
        "verdicts": {v.question.id: _verdict(v) for v in verdicts},
        "measured": _measured(trajectories),
    }


def _verdict(verdict: Verdict) -> list[Any]:
    return [
        round(verdict.right, 4),
        verdict.given if verdict.given is None else verdict.given[:200],
    ]


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "value": _number(figure.value),
        "low": _number(figure.low),
        "high": _number(figure.high),
        "right": figure.right,
        "total": figure.total,
    }


def _number(value: float) -> float | None:
    """JSON knows no nan."""
    return None if math.isnan(value) else round(value, 4)


def _row(row: Row) -> dict[str, Any]:
    return {"category": row.category, "group": row.group, **_figure(row.figure)}


def _scorer(scorer: Scorer) -> dict[str, Any]:
    return {"name": scorer.name, "version": scorer.version}


def _others(
    benchmark: Benchmark, read: Read, trajectories: Sequence[Trajectory]
) -> list[dict[str, Any]]:
    """The headline under other rules, over the same answers: how much of a gap the rule alone makes."""
    if benchmark.kind != "accuracy":
        return []
    result = []
    for scorer in (LETTER, *benchmark.others):
        whole = dataclasses.replace(scorer, open=scorer.open or benchmark.scorer.open)
        verdicts = [grade(q, t, whole) for q, t in zip(read.questions, trajectories, strict=True)]
        score: Score = summarise(benchmark, verdicts)
        result.append(_scorer(scorer) | _figure(score.headline) | {"unread": score.unread})
    return result


def _shown(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Frames, pixels and tokens that the model was shown, a question."""
    asked = [t for t in trajectories if t.observations]
    overviews = [t.observations[0] for t in asked]
    clips = [o for t in asked for o in t.observations[1:]]
    sizes = Counter(f"{o.width} x {o.height}" for o in overviews)
    return {
        "visual_tokens": _mean([sum(o.tokens for o in t.observations) for t in asked]),
        "overview_tokens": _mean([o.tokens for o in overviews]),
        "overview_tokens_most": max((o.tokens for o in overviews), default=0),
        "overview_frames": _mean([len(o.times) for o in overviews]),
        "overview_frames_most": max((len(o.times) for o in overviews), default=0),
        "overview_fps": _mean([o.fps for o in overviews]),
        "overview_sizes": dict(sizes.most_common(5)),
        "clips": _mean([len(t.observations) - 1 for t in asked]),
        "clip_tokens": _mean([o.tokens for o in clips]),
        "clip_seconds": _mean([o.end - o.start for o in clips]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None


def _videos(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """The videos' number, one hash over all of theirs, and each one's."""
    found = {t.task.video: t.meta.get("video_hash") for t in trajectories}
    known = sorted(h for h in found.values() if h)
    return {
        "count": len(found),
        "unread": sum(h is None for h in found.values()),
        "hash": fingerprint.of_data(known),
        "hashes": {video_key(video): digest for video, digest in found.items()},
    }


def video_key(video: str | tuple[str, ...]) -> str:
    """What a video is called on every machine: its file (of a list of frames the first one's) and the folder it lies in."""
    first = video if isinstance(video, str) else next(iter(video), "")
    return "/".join(first.replace("\\", "/").rstrip("/").split("/")[-2:])


def _measured(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    seconds = [t.meta["seconds"] for t in trajectories if "seconds" in t.meta and t.turns]
    written = [sum(len(turn.ids or ()) for turn in t.turns) for t in trajectories]
    return {
        "seconds_per_question": _mean(seconds),
        "seconds": round(sum(seconds), 1),
        "written_tokens": _mean(written),
    }


def write(card: dict[str, Any], folder: epath.Path) -> None:
    """Writes the three forms; each appears whole or not at all, the JSON last: where it is, all are."""
    write_atomically(folder / MARKDOWN, card_text.markdown(card))
    write_atomically(folder / HTML, card_page.page(card))
    write_atomically(folder / JSON, json_line.dumps(card, indent=1) + "\n")


def load(path: epath.PathLike) -> dict[str, Any]:
    """A card from its JSON file or its folder.

    Raises:
      CardError: no such file, or no card of this schema.
    """
    path = epath.Path(path)
    file = path / JSON if path.is_dir() else path
    if not file.exists():
        raise CardError(f"{file} does not exist; give a card.json of an evaluation, or its folder")
    try:
        card = json.loads(file.read_text())
        schema = card["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise CardError(f"{file} is no result card ({type(error).__name__}: {error})") from error
    if schema != SCHEMA:
        raise CardError(f"{file} is a card of schema {schema!r}, this reads {SCHEMA}")
    return card
