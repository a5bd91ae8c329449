"""What a stream tells of a rollout beside the answer: plain JSON, and for the server's page pieces of the viewer's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vo3.rollout import events
from vo3.trajectory import Task, Trajectory, Turn
from vo3.video import Clip
from vo3.viewer import story, timeline
from vo3.viewer.page import render, sections


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


class Pieces:
    """The viewer's page of a rollout as it goes on: `html` of an event holds what changes on it.

    `timeline` is the film strip with every window so far; `steps` are entries of the story by number of their turn. Frames become JPEGs,
    so this takes some milliseconds: not for an event loop.
    """

    def __init__(self, task: Task):
        self._so_far = Trajectory(task, (), "void")
        self._clips: dict[int, Clip] = {}
        self._spoken = 0

    def tell(self, event: events.Event) -> dict[str, Any]:
        """What there is to say of an event, with its pieces."""
        told = tell(event)
        match event:
            case events.Observation(number, observation, clip, _):
                self._clips[observation.index] = clip
                shown = Turn("observation", "<video>", (observation,))
                pieces = {"timeline": timeline.draw(self._with(shown), self._clips, over=False)}
                if observation.index:  # the call before it now has a number
                    pieces["steps"] = {number - 1: self._step(self._so_far.turns[-1], observation.index)}  # fmt: skip
                told["html"] = pieces
            case events.TurnEnd(number, turn):
                self._so_far = self._with(turn)
                self._spoken += turn.role == "assistant"
                if turn.kind != "system":
                    told["html"] = {"steps": {number: self._step(turn, None)}}
        return told

    def _with(self, turn: Turn) -> Trajectory:
        return dataclasses.replace(self._so_far, turns=(*self._so_far.turns, turn))

    def _step(self, turn: Turn, got: int | None) -> str:
        return story.step(self._so_far, turn, self._spoken, self._clips, got=got)


def whole(trajectory: Trajectory, shown: Sequence[Clip]) -> dict[str, str]:
    """The viewer's page of a finished rollout: what stands on it, and the complete document, which is self-contained."""
    clips = dict(enumerate(shown))
    return {
        "sections": sections(trajectory, clips),
        "page": render(trajectory, clips=clips),
    }
