"""Stage 0: dense captions of a video become multiple-choice questions that one short part decides.

A caption that tries to give orders is dropped and counted, and so is a question that does, or that leans on sound. What was made,
dropped and paid for goes into the store, for the report and for people to look at.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterator
from typing import Any

from data_prep import intervals, jsonish, videos
from data_prep.jsonish import clock_text
from data_prep.models.base import ModelError
from data_prep.patience import EndpointFailed, Patience
from data_prep.prompts import fenced
from data_prep.schema import MATERIAL, Caption, Material, Origin, Record, Triplet, VideoInfo
from data_prep.stages import rules
from data_prep.stages.base import Context, Rejected, ask, record_key
from data_prep.store import Store
from vo3.trajectory import Clue
from vo3.video import VideoError

_LETTERS = "ABCDEFGH"


@dataclasses.dataclass(frozen=True)
class Questions:
    """What stage 0 made of one video.

    Attributes:
      triplets: questions that its rules accept.
      dropped: (reason, text) of captions and questions that they do not.
      record: carries the calls, and the rejection when there is no question at all.
      refused: records of the questions among what was dropped, for people to look at; malformed ones are not.
    """

    triplets: tuple[Triplet, ...]
    dropped: tuple[tuple[str, str], ...]
    record: Record
    refused: tuple[Record, ...] = ()


@dataclasses.dataclass(frozen=True)
class Made:
    """The triplets of a source, and the videos that stage 0 got no reply on, or could not read: the next run tries them again."""

    triplets: Iterator[Triplet]
    failed: int = 0
    failure: str = ""


async def questions(item: Material, context: Context) -> Questions:
    """The questions on one video.

    Raises:
      ModelError: the endpoint failed.
    """
    carrier = Triplet(item.id, item.video, question="-", answer="-", source=item.source)
    record = Record(key=f"{MATERIAL}/{item.id}", triplet=carrier)
    dropped: list[tuple[str, str]] = []
    try:
        media = context.media(carrier)
        info = item.info or await asyncio.to_thread(videos.probe, media.path)
        captions = item.captions
        if not captions:
            record, answer = await ask(
                context, record, MATERIAL, "caption", media=media, inputs={},
                duration=clock_text(info.duration),
            )  # fmt: skip
            captions = _captions(answer.value["captions"], info)
        usable = []
        for caption in captions:
            if rules.is_injection(caption.text):
                dropped.append(("caption_injection", caption.text))
            elif caption.start < info.duration and caption.text.strip():
                usable.append(caption)
        if not usable:
            return Questions((), tuple(dropped), record.rejected(MATERIAL, "no_caption"))
        lines = "\n".join(
            f"{clock_text(c.start)} - {clock_text(c.end)} {fenced(c.text)}" for c in usable
        )
        record, answer = await ask(
            context, record, MATERIAL, MATERIAL, media=None,
            inputs={"count": context.settings.material.questions, "captions": [dataclasses.asdict(c) for c in usable]},
            duration=clock_text(info.duration), captions=lines,
            count=str(context.settings.material.questions),
        )  # fmt: skip
    except videos.PathError as error:
        return Questions((), tuple(dropped), record.rejected(MATERIAL, "video_path", str(error)))
    except VideoError as error:
        return Questions(
            (), tuple(dropped), record.rejected(MATERIAL, f"video_{error.kind}", str(error))
        )
    except Rejected as ended:
        return Questions((), tuple(dropped), ended.record)
    made, refused = [], []
    origin = tuple(Origin(c.stage, c.key, c.model, c.prompt) for c in record.calls)
    for number, question in enumerate(answer.value["questions"]):
        triplet = _triplet(item, info, number, question, origin)
        reason = _reason(triplet, info, context)
        if not reason:
            made.append(triplet)
            continue
        dropped.append((reason, str(question["question"])))
        if triplet is not None:
            ended = Record(record_key(triplet, MATERIAL), triplet, info)
            refused.append(ended.rejected(MATERIAL, reason))
    return Questions(tuple(made), tuple(dropped), record, tuple(refused))


def _captions(found: list[dict[str, Any]], info: VideoInfo) -> tuple[Caption, ...]:
    captions = []
    for caption in found:
        times = jsonish.interval(caption["timestamp"])
        if times is not None and times[0] < info.duration:
            captions.append(Caption(times[0], min(times[1], info.duration), caption["text"]))
    return tuple(captions)


def _triplet(
    item: Material,
    info: VideoInfo,
    number: int,
    question: dict[str, Any],
    origin: tuple[Origin, ...],
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
        origin=origin,
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


async def triplets(source: Iterator[Triplet | Material], context: Context, store: Store) -> Made:
    """Triplets of a source: as they are, or through stage 0 where it gives material, `concurrency` videos at once.

    Args:
      source: of one kind throughout.
      context: what the stages share.
      store: what stage 0 made, dropped and paid for is written there.

    Raises:
      EndpointFailed: the key was refused, or nothing succeeds. Stored replies are kept.
    """
    store.begin_material()
    first = next(source, None)
    if first is None:
        return Made(iter(()))
    rows = itertools.chain([first], source)
    if isinstance(first, Triplet):
        return Made(rows)
    failed, failure, number, patience = 0, "", 0, Patience()
    # A run may have more questions than memory; they wait in a file until they are admitted.
    waiting = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `_read_back`
    while batch := list(itertools.islice(rows, context.caller.limits.concurrency)):
        results = await asyncio.gather(
            *(questions(item, context) for item in batch), return_exceptions=True
        )
        for item, result in zip(batch, results, strict=True):
            if isinstance(result, ModelError):
                failed, failure = failed + 1, result.advice
                store.put_unmade(number, str(result))
                patience.failed(item.id, item.video, result)
            elif isinstance(result, BaseException):
                raise result
            else:
                if result.record.calls:
                    patience.succeeded()
                store.put_material(number, result)
                waiting.writelines(json.dumps(t.to_json()) + "\n" for t in result.triplets)
            number += 1
    if (
        failed == number
    ):  # with questions on none of them, everything that is admitted would be replaced by nothing
        raise EndpointFailed(f"stage 0 came to nothing on all {number} videos; the last: {failure}")
    return Made(_read_back(waiting), failed, failure)


def _read_back(file: Any) -> Iterator[Triplet]:
    with file:
        file.seek(0)
        for line in file:
            yield Triplet.from_json(json.loads(line))


def count(source: Iterator[Triplet | Material]) -> tuple[int, int]:
    """(videos that stage 0 is to make questions of, those of them without captions)."""
    some = [not row.captions for row in source if isinstance(row, Material)]
    return len(some), sum(some)


def expected(source: Iterator[Triplet | Material], context: Context) -> Iterator[Triplet]:
    """For a dry run: no calls, and each video stands for as many questions as are asked for at most."""
    count = context.settings.material.questions
    for row in source:
        if isinstance(row, Triplet):
            yield row
            continue
        for n in range(count):
            name = f"{row.id}-q{n}"
            yield Triplet(
                name, row.video, f"question {n} on {row.id}", "A", {"A": "a", "B": "b"},
                source=row.source, info=row.info,
            )  # fmt: skip
