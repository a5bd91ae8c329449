"""What a stream tells of a rollout beside the answer, as plain JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from vo3.rollout import events


def tell(event: events.Event) -> dict[str, Any]:
    """What there is to say of an event."""
    match event:
        case events.TurnStart(number, forced):
            return {"event": "turn_start", "number": number, "forced": forced}
        case events.Token(number, _, text):
            return {"event": "token", "number": number, "text": text}
        case events.Observation(number, observation, _, seconds):
            shown = dataclasses.asdict(observation)
            return {"event": "observation", "number": number, "observation": shown, "seconds": seconds}  # fmt: skip
        case events.TurnEnd(number, turn):
            return {"event": "turn_end", "number": number, "turn": dataclasses.asdict(turn)}
