"""Stage 1: which intervals support the known answer; neighbours become one."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from data_prep import intervals, videos
from data_prep.jsonish import clock_text, interval
from data_prep.prompts import fenced
from data_prep.schema import Localised, Record, VideoInfo
from data_prep.stages.base import Context, Rejected, ask, known_answer
from vo3.trajectory import Clue
from vo3.video import VideoError


class Localise:
    """Asks for intervals; those outside the video are dropped, none left ends the row.

    Reasons: `video_path`, `video_<kind>` (a file that is no usable video), `no_clue`, `outside` (every interval lies outside the
    video), `bad_times`, `too_many`.
    """

    name = "localise"

    async def run(self, record: Record, context: Context) -> Record:
        """See `Stage`."""
        triplet, settings = record.triplet, context.settings.localise
        try:
            media = context.media(triplet)
            info = triplet.info or await asyncio.to_thread(
                videos.probe, media.path, triplet.frame_fps
            )
        except videos.PathError as error:
            return record.rejected(self.name, "video_path", str(error))
        except VideoError as error:
            return record.rejected(self.name, f"video_{error.kind}", str(error))
        record = dataclasses.replace(record, info=info)
        if triplet.kind == "grounding":
            return self._given(record, info)
        try:
            record, answer = await ask(
                context, record, self.name, "localise", media=media,
                inputs={"question": triplet.question, "options": triplet.options, "answer": triplet.answer},
                duration=clock_text(info.duration), task="Question", question=fenced(triplet.question),
                answer=f"The answer is {known_answer(triplet)}.",
            )  # fmt: skip
        except Rejected as ended:
            return ended.record
        return self._accept(record, answer.value, settings)

    def _given(self, record: Record, info: VideoInfo) -> Record:
        """A grounding triplet carries its interval; it only has to lie inside the video."""
        clues = [c for c in record.triplet.clues if 0 <= c.start < c.end <= info.duration + 1]
        if not clues:
            return record.rejected(self.name, "outside", f"video lasts {info.duration:g} s")
        return dataclasses.replace(record, localised=Localised(tuple(clues), "low", len(clues)))

    def _accept(self, record: Record, value: dict[str, Any], settings: Any) -> Record:
        duration = record.info.duration
        found = value["clues"]
        if not found:
            return record.rejected(self.name, "no_clue", "the model sees nothing that supports it")
        clues, unread = [], []
        for clue in found:
            times = interval(clue["timestamp"])
            if times is None:
                unread.append(clue["timestamp"])
            elif times[0] < duration and times[1] > 0:
                window = intervals.widened(times[:2], least=settings.least, duration=duration)
                clues.append(Clue(*window, str(clue.get("text", ""))))
        if unread:
            return record.rejected(self.name, "bad_times", f"{unread[0]!r} are not two times")
        if not clues:
            return record.rejected(
                self.name, "outside", f"{found[0]['timestamp']} of a video of {duration:g} s"
            )
        merged = intervals.merge(clues, gap=settings.gap)
        if len(merged) > settings.most:
            return record.rejected(self.name, "too_many", f"{len(merged)} intervals")
        detail = value.get("detail", "medium")
        return dataclasses.replace(record, localised=Localised(merged, detail, len(found)))
