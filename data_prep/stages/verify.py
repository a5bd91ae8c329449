"""Stage 2: the answer must come out of the clue clips alone; whether it also comes out of the overview decides on the tool."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from data_prep import intervals, matching
from data_prep.jsonish import clock_text, interval
from data_prep.models.base import Media
from data_prep.prompts import fenced
from data_prep.schema import Record, Verified
from data_prep.stages.base import Context, Rejected, ask, info_of, options_text


class Verify:
    """Votes on the clips and on the overview, all at once.

    Reasons: `not_confirmed` (too few votes from the clips give the known answer), `not_found` (grounding: too few votes find
    the known interval), `spread` (a look is needed, and the evidence covers too much of the video to look at).
    """

    name = "verify"

    async def run(self, record: Record, context: Context) -> Record:
        """See `Stage`."""
        try:
            if record.triplet.kind == "grounding":
                return await self._grounding(record, context)
            return await self._question(record, context)
        except Rejected as ended:
            return ended.record

    async def _question(self, record: Record, context: Context) -> Record:
        settings, triplet = context.settings.verify, record.triplet
        windows = tuple((c.start, c.end) for c in record.localised.clues)
        plain = record
        clip_votes = [
            self._vote(plain, context, context.media(triplet, windows), windows, n)
            for n in range(settings.votes)
        ]
        overview_votes = [
            self._vote(plain, context, context.media(triplet), (), n)
            for n in range(settings.overview_votes)
        ]
        results = await _gather(clip_votes + overview_votes)
        for voted, _, _ in results:
            record = dataclasses.replace(
                record, calls=record.calls + voted.calls[len(plain.calls) :]
            )
        clip, overview = results[: settings.votes], results[settings.votes :]
        clip_right = sum(right for _, _, right in clip)
        overview_right = sum(right for _, _, right in overview)
        tool = overview_right < settings.overview_needed
        record = dataclasses.replace(
            record,
            verified=Verified(
                clip=tuple(answer for _, answer, _ in clip),
                overview=tuple(answer for _, answer, _ in overview),
                clip_right=clip_right,
                overview_right=overview_right,
                tool=tool,
            ),
        )
        if clip_right < settings.needed:
            return record.rejected(
                self.name,
                "not_confirmed",
                f"{clip_right} of {settings.votes} votes from the clips give {triplet.answer!r}",
            )
        share = intervals.covered(windows) / info_of(record).duration
        if tool and share > settings.max_clue_share:
            return record.rejected(
                self.name, "spread", f"the evidence covers {share:.0%} of the video"
            )
        return record

    async def _vote(
        self,
        record: Record,
        context: Context,
        media: Media,
        windows: tuple[tuple[float, float], ...],
        number: int,
    ) -> tuple[Record, str, bool]:
        """(record with its calls, answer, whether it is the known one)."""
        triplet = record.triplet
        shown = "the whole video, coarsely, as frames with their times"
        if windows:
            parts = ", ".join(f"{clock_text(a)} to {clock_text(b)}" for a, b in windows)
            shown = f"parts of a video ({parts}), as frames with their times"
        record, answer = await ask(
            context, record, self.name, "verify", media=media, draw=number,
            temperature=context.settings.verify.temperature,
            inputs={"windows": [list(w) for w in windows], "question": triplet.question, "options": triplet.options},
            shown=shown, question=fenced(triplet.question), options=options_text(triplet),
            form="A" if triplet.options else "...",
        )  # fmt: skip
        given = str(answer.value["answer"]).strip()
        right = matching.same(given, triplet.answer, triplet.options)
        open_ended = triplet.options is None and context.settings.verify.judge_open
        if not right and open_ended and not matching.is_unknown(given):
            record, right = await self._compare(record, context, given)
        return record, given, right

    async def _compare(self, record: Record, context: Context, given: str) -> tuple[Record, bool]:
        """Two open answers in other words: a model says whether they are the same."""
        triplet = record.triplet
        record, answer = await ask(
            context, record, self.name, "equivalent", media=None,
            inputs={"known": triplet.answer, "given": given},
            question=fenced(triplet.question), known=fenced(triplet.answer), given=fenced(given),
        )  # fmt: skip
        return record, bool(answer.value["same"])

    async def _grounding(self, record: Record, context: Context) -> Record:
        settings, triplet = context.settings.verify, record.triplet
        clue = record.localised.clues[0]
        media = context.media(triplet)
        plain = record

        async def vote(number: int) -> tuple[Record, str, bool]:
            voted, answer = await ask(
                context, plain, self.name, "ground", media=media, draw=number,
                temperature=settings.temperature, inputs={"question": triplet.question},
                duration=clock_text(info_of(plain).duration), question=fenced(triplet.question),
            )  # fmt: skip
            times = interval(answer.value["segment"])
            found = (
                times is not None
                and intervals.iou(times[:2], (clue.start, clue.end)) >= settings.iou
            )
            return voted, "unknown" if times is None else f"{times[0]:g}-{times[1]:g}", found

        results = await _gather([vote(n) for n in range(settings.votes)])
        for voted, _, _ in results:
            record = dataclasses.replace(
                record, calls=record.calls + voted.calls[len(plain.calls) :]
            )
        right = sum(found for _, _, found in results)
        answers = tuple(answer for _, answer, _ in results)
        record = dataclasses.replace(record, verified=Verified(answers, (), right, 0, tool=False))
        if right < settings.needed:
            return record.rejected(
                self.name, "not_found", f"{right} of {settings.votes} votes find it; {answers}"
            )
        return record


async def _gather(votes: list[Any]) -> list[Any]:
    """All votes; when one ends the row or fails, the others are waited for first, so that their replies are kept."""
    results = await asyncio.gather(*votes, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
