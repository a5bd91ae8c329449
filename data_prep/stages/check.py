"""Stage 4: rules first, then a judge on what they let pass."""

from __future__ import annotations

import dataclasses

from data_prep.jsonish import clock_text
from data_prep.prompts import fenced
from data_prep.schema import Checked, Record
from data_prep.stages import rules
from data_prep.stages.base import Context, Rejected, ask, info_of, options_text


class Check:
    """Reasons: `rule_<name>` for the first rule that is broken, `judge` for a verdict against the row."""

    name = "check"

    async def run(self, record: Record, context: Context) -> Record:
        """See `Stage`."""
        settings, triplet = context.settings, record.triplet
        duration = info_of(record).duration
        broken = rules.check(
            triplet, record.localised, record.generated,
            tool=record.verified.tool, duration=duration, settings=settings,
        )  # fmt: skip
        if broken:
            record = dataclasses.replace(record, checked=Checked(broken, judged=False))
            first = broken[0]
            return record.rejected(self.name, f"rule_{first.rule}", first.detail)
        if not settings.check.judge:
            return dataclasses.replace(record, checked=Checked((), judged=False))
        steps = record.generated.steps
        windows = tuple(s.window for s in steps if s.window is not None)
        shown = "the whole video, coarsely, as frames with their times"
        if windows:
            parts = ", ".join(f"{clock_text(a)} to {clock_text(b)}" for a, b in windows)
            shown = f"the parts that the viewer looked at ({parts}), as frames with their times"
        try:
            record, answer = await ask(
                context, record, self.name, "judge", media=context.media(triplet, windows),
                inputs={"steps": [dataclasses.asdict(s) for s in steps]},
                shown=shown, question=fenced(triplet.question),
                options=options_text(triplet) if triplet.kind == "qa" else "It asks when this happens.",
                turns=fenced(_told(record)),
            )  # fmt: skip
        except Rejected as ended:
            return ended.record
        analysis = str(answer.value.get("analysis", ""))
        record = dataclasses.replace(record, checked=Checked((), judged=True, analysis=analysis))
        return record if answer.value["is_valid"] else record.rejected(self.name, "judge", analysis)


def _told(record: Record) -> str:
    lines = []
    for number, step in enumerate(record.generated.steps, start=1):
        lines.append(f"Turn {number}, think: {step.think}")
        if step.window is not None:
            lines.append(f"Turn {number}, looks at {step.window[0]:g} to {step.window[1]:g} s")
        else:
            lines.append(f"Turn {number}, answers: {step.answer}")
    return "\n".join(lines)
