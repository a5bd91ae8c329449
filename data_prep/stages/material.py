"""Stage 0: dense captions of a video become multiple-choice questions that one short part decides.

A caption that tries to give orders is dropped and counted, and so is a question that does, or that leans on sound.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from data_prep import intervals, jsonish, videos
from data_prep.jsonish import clock_text
from data_prep.prompts import fenced
from data_prep.schema import Caption, Material, Record, Triplet, VideoInfo
from data_prep.stages import rules
from data_prep.stages.base import Context, Rejected, ask
from vo3.trajectory import Clue
from vo3.video import VideoError

SCHEMA = 1
_LETTERS = "ABCDEFGH"


@dataclasses.dataclass(frozen=True)
class Questions:
    """What stage 0 made of one video.

    Attributes:
      triplets: questions that its rules accept.
      dropped: (reason, text) of captions and questions that they do not.
      record: carries the calls, and the rejection when there is no question at all.
    """

    triplets: tuple[Triplet, ...]
    dropped: tuple[tuple[str, str], ...]
    record: Record


async def questions(item: Material, context: Context) -> Questions:
    """The questions on one video.

    Raises:
      ModelError: the endpoint failed.
    """
    carrier = Triplet(item.id, item.video, question="-", answer="-", source=item.source)
    record = Record(key=f"material/{item.id}", triplet=carrier)
    dropped: list[tuple[str, str]] = []
    try:
        media = context.media(carrier)
        info = item.info or await asyncio.to_thread(videos.probe, media.path)
        captions = item.captions
        if not captions:
            record, answer = await ask(
                context, record, "material", "caption", media=media, inputs={},
                duration=clock_text(info.duration),
            )  # fmt: skip
            captions = _captions(answer.value["captions"], info)
        usable = []
        for caption in captions:
            if rules.is_injection(caption.text):
                dropped.append(("injection", caption.text))
            elif caption.start < info.duration and caption.text.strip():
                usable.append(caption)
        if not usable:
            return Questions((), tuple(dropped), record.rejected("material", "no_caption"))
        lines = "\n".join(
            f"{clock_text(c.start)} - {clock_text(c.end)} {fenced(c.text)}" for c in usable
        )
        record, answer = await ask(
            context, record, "material", "material", media=None,
            inputs={"count": context.settings.material.questions, "captions": [dataclasses.asdict(c) for c in usable]},
            duration=clock_text(info.duration), captions=lines,
            count=str(context.settings.material.questions),
        )  # fmt: skip
    except videos.PathError as error:
        return Questions((), tuple(dropped), record.rejected("material", "video_path", str(error)))
    except VideoError as error:
        return Questions(
            (), tuple(dropped), record.rejected("material", f"video_{error.kind}", str(error))
        )
    except Rejected as ended:
        return Questions((), tuple(dropped), ended.record)
    made = []
    for number, question in enumerate(answer.value["questions"]):
        triplet = _triplet(item, info, number, question)
        reason = _reason(triplet, info, context)
        if reason:
            dropped.append((reason, str(question["question"])))
        else:
            made.append(triplet)
    return Questions(tuple(made), tuple(dropped), record)


def _captions(found: list[dict[str, Any]], info: VideoInfo) -> tuple[Caption, ...]:
    captions = []
    for caption in found:
        times = jsonish.interval(caption["timestamp"])
        if times is not None and times[0] < info.duration:
            captions.append(Caption(times[0], min(times[1], info.duration), caption["text"]))
    return tuple(captions)


def _triplet(
    item: Material, info: VideoInfo, number: int, question: dict[str, Any]
) -> Triplet | None:
    options = {k: str(v) for k, v in zip(_LETTERS, question["options"])}
    answer, times = question["answer"], jsonish.interval(question["clue"])
    if not 0 <= answer < len(options) or times is None:
        return None
    return Triplet(
        id=f"{item.id}-q{number}",
        video=item.video,
        question=str(question["question"]).strip(),
        answer=_LETTERS[answer],
        options=options,
        clues=(Clue(times[0], min(times[1], info.duration)),),
        source=item.source,
        info=info,
    )


def _reason(triplet: Triplet | None, info: VideoInfo, context: Context) -> str:
    """Why a question is dropped; empty when it is not."""
    if triplet is None:
        return "malformed"
    texts = [o.casefold().strip() for o in triplet.options.values()]
    if len(set(texts)) < len(texts):
        return "same_options"
    clue = triplet.clues[0]
    window = (clue.start, clue.end)
    share = intervals.covered([window]) / info.duration
    if (
        clue.start >= info.duration
        or share == 0
        or share > context.settings.material.max_clue_share
    ):
        return "not_short"
    if rules.is_injection(" ".join([triplet.question, *texts])):
        return "injection"
    if rules.cited_times(triplet.question):
        return "names_its_time"
    if rules.leans_on_sound(triplet.question):
        return "audio"
    return ""


async def triplets(
    source: Iterator[Triplet | Material], context: Context, *, dry: bool = False
) -> Iterator[Triplet]:
    """Triplets of a source: as they are, or through stage 0 where it gives material, `concurrency` videos at once.

    Args:
      source: of one kind throughout.
      context: what the stages share.
      dry: no calls: each video stands for as many questions as are asked for at most.

    Raises:
      ModelError: the endpoint failed on a video; the next run goes on from the stored replies.
    """
    first = next(source, None)
    if first is None:
        return iter(())
    rows = itertools.chain([first], source)
    if isinstance(first, Triplet):
        return rows
    if dry:
        count = context.settings.material.questions
        return (
            Triplet(f"{m.id}-q{n}", m.video, f"question {n} on {m.id}", "A", {"A": "a", "B": "b"}, source=m.source, info=m.info)
            for m in rows
            for n in range(count)
        )  # fmt: skip
    made: list[Triplet] = []
    while batch := list(itertools.islice(rows, context.caller.limits.concurrency)):
        for result in await asyncio.gather(*(questions(item, context) for item in batch)):
            made += result.triplets
    return iter(made)
