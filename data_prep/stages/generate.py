"""Stage 3: the viewer's turns, for rows with a look at each clue and for rows that need none."""

from __future__ import annotations

import dataclasses
from typing import Any

from data_prep import matching
from data_prep.jsonish import clock_text, interval, seconds
from data_prep.prompts import fenced
from data_prep.schema import Generated, Record, Step, Triplet
from data_prep.stages.base import Context, Rejected, ask, info_of, known_answer, options_text
from data_prep.stages.strategy import choose
from vo3.chat.tags import Segment, format_segment
from vo3.video import VideoError


class Generate:
    """Asks for the turns and reads them: looks first, one answer last.

    Reasons: `shape` (looks and answer in the wrong places), `bad_times`, `window` (a look that no strategy can show),
    `too_many`.
    """

    name = "generate"

    async def run(self, record: Record, context: Context) -> Record:
        """See `Stage`."""
        triplet, info = record.triplet, info_of(record)
        tool = record.verified.tool
        windows = tuple((c.start, c.end) for c in record.localised.clues)
        clues, shape, form = _ask_for(triplet, windows, tool)
        try:
            record, answer = await ask(
                context, record, self.name, "generate", media=context.media(triplet),
                inputs={"windows": [list(w) for w in windows], "tool": tool, "answer": triplet.answer},
                max_tokens=context.settings.generate.max_tokens,
                duration=clock_text(info.duration), shown="the whole video, as frames with their times",
                question=fenced(triplet.question),
                options=options_text(triplet) if triplet.kind == "qa" else "It asks when this happens.",
                answer=_known(triplet), clues=clues, shape=shape, form=form,
            )  # fmt: skip
        except Rejected as ended:
            return ended.record
        return self._accept(record, context, answer.value["turns"])

    def _accept(self, record: Record, context: Context, turns: list[dict[str, Any]]) -> Record:
        settings, info = context.settings.generate, info_of(record)
        tool = record.verified.tool
        shape = ["answer" if "answer" in t else "look" if "grounding" in t else "-" for t in turns]
        if shape != ["look"] * (len(turns) - 1) + ["answer"] or (len(turns) > 1) != tool:
            return record.rejected(self.name, "shape", f"turns are {', '.join(shape)}")
        if len(turns) - 1 > settings.max_calls:
            return record.rejected(self.name, "too_many", f"{len(turns) - 1} looks")
        steps = []
        for turn in turns[:-1]:
            times = interval(turn["grounding"])
            if times is None:
                return record.rejected(self.name, "bad_times", f"{turn['grounding']!r}")
            decimals = context.pack.seconds_decimals
            window = (round(times[0], decimals), round(times[1], decimals))
            window = (window[0], min(window[1], info.duration))
            try:
                strategy = choose(
                    window, record.localised.detail, info=info, policy=context.policy, settings=settings
                )  # fmt: skip
            except VideoError as error:
                return record.rejected(self.name, "window", str(error))
            steps.append(Step(turn["think"].strip(), window, strategy))
        answer = _final(turns[-1]["answer"], record.triplet, context.pack.seconds_decimals)
        steps.append(Step(turns[-1]["think"].strip(), answer=answer))
        return dataclasses.replace(record, generated=Generated(tuple(steps)))


def _known(triplet: Triplet) -> str:
    if triplet.kind == "qa":
        return known_answer(triplet)
    clue = triplet.clues[0]
    return f"from {clock_text(clue.start)} to {clock_text(clue.end)}"


def _ask_for(
    triplet: Triplet, windows: tuple[tuple[float, float], ...], tool: bool
) -> tuple[str, str, str]:
    """What the prompt says of the clues, of the number of turns, and of the reply's form."""
    answer = "A" if triplet.options else "..."
    if triplet.kind == "grounding":
        last = '{"think": "...", "answer": {"temporal_segment": [start, end]}}'
        return "", "One turn: think, then the interval in seconds.", f'{{"turns": [{last}]}}'
    last = f'{{"think": "...", "answer": "{answer}"}}'
    if not tool:
        shape = "One turn: the coarse view is enough, so think, then the answer."
        return "", shape, f'{{"turns": [{last}]}}'
    listed = "; ".join(f"{a:g} to {b:g} s" for a, b in windows)
    looks = "one look" if len(windows) == 1 else f"{len(windows)} looks, one at each, in order"
    shape = f"{looks.capitalize()}, then the answer."
    look = '{"think": "...", "grounding": [start, end]}'
    return f"The evidence lies at {listed}.", shape, f'{{"turns": [{look}, ..., {last}]}}'


def _final(answer: Any, triplet: Triplet, decimals: int) -> str:
    """The answer as the row will hold it: an option's letter where it names one, a segment for grounding, else the words."""
    if isinstance(answer, dict):
        pair = answer.get("temporal_segment")
        times = [seconds(t) for t in pair] if isinstance(pair, list) and len(pair) == 2 else [None]
        if None not in times:
            return format_segment(Segment(*sorted(times)), decimals=decimals)
        return str(answer)
    text = str(answer).strip()
    if triplet.options:
        return matching.letter_of(text, triplet.options) or text
    return text
