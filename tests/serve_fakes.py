"""An engine that follows a script, and requests for it."""

from __future__ import annotations

import base64
import threading
import time
from typing import Any

from rollout_fakes import CROP

from vo3.chat.tags import parse_turn
from vo3.rollout import Rollout, RolloutPolicy, Sampling, events
from vo3.rollout.errors import RolloutError
from vo3.rollout.group import GroupRollout
from vo3.rollout.group_counts import GroupCounts
from vo3.trajectory import Trajectory, Turn
from vo3.video import VideoError

__all__ = ["CROP", "GREEDY", "WORLD", "ScriptedEngine", "ask", "data_url"]

WORLD = 2031
GREEDY = Sampling()
LOOK = '<think>I look closer.</think>\n<grounding>{"temporal_segment": [2, 6], "sampling_strategy": "fine"}</grounding>'
ANSWER = "<think>It shows six, I am sure.</think>\n<answer> B </answer>"


class ScriptedEngine:
    """Answers every job with a look and an answer, on its real video; `hold` keeps it from ending any.

    Attributes:
      jobs: it was given; left: ids of those whose client left; failure: raised once, instead of the next answer.
    """

    rollouts = 1
    compilations = 0

    def __init__(self, *turns: str):
        self.policy, self.counts = RolloutPolicy(), GroupCounts()
        self.turns = turns or (LOOK, ANSWER)
        self.slots = 2
        self.hold = threading.Event()
        self.failure: Exception | None = None
        self.jobs: list = []
        self.left: list[str] = []

    def serve(self, jobs, open_video):
        active, pulling = [], True
        while pulling or active:
            while pulling and len(active) < self.slots:
                try:
                    job = next(jobs)
                except StopIteration:
                    pulling = False
                    break
                if job is None:
                    break
                self.jobs.append(job)
                active.append(job)
            for job in list(active):
                if job.gone():
                    active.remove(job)
                    self.left.append(job.task.id)
                    yield GroupRollout(job.task, (), "left")
                elif not self.hold.is_set():
                    if self.failure is not None:
                        failure, self.failure = self.failure, None
                        raise failure
                    active.remove(job)
                    yield self._answer(job, open_video)
            time.sleep(0.002)

    def _answer(self, job, open_video) -> GroupRollout:
        try:
            video = open_video(job.task)
            overview = video.overview()
        except (VideoError, RolloutError) as error:
            return GroupRollout(job.task, (), str(error), error)
        except Exception as error:
            wrapped = VideoError("read", f"{type(error).__name__}: {error}", "")
            wrapped.__cause__ = error
            return GroupRollout(job.task, (), str(wrapped), wrapped)
        tell = job.on_event or (lambda event: None)
        clips, turns = [overview], [Turn("system", "Look.")]
        turns.append(
            Turn("question", f"<video>{job.task.question}", (overview.observation(0),), seconds=0.1)
        )
        tell(events.TurnEnd(0, turns[0]))
        tell(events.Observation(1, turns[1].observations[0], overview, 0.1))
        tell(events.TurnEnd(1, turns[1]))
        for text in self.turns:
            number = len(turns)
            tell(events.TurnStart(number))
            for at in range(0, len(text), 3):
                tell(events.Token(number, at, text[at : at + 3]))
            parsed = parse_turn(text, video.duration)
            turns.append(
                Turn(parsed.kind, text, call=parsed.call, answer=parsed.answer, ids=(1, 2), seconds=0.1)
            )  # fmt: skip
            tell(events.TurnEnd(number, turns[-1]))
            if parsed.call is not None:
                clip = video.crop(parsed.call.start, parsed.call.end, parsed.call.strategy)
                clips.append(clip)
                shown = clip.observation(len(clips) - 1, parsed.call.strategy)
                turns.append(Turn("observation", "<video>", (shown,), seconds=0.1))
                tell(events.Observation(number + 1, shown, clip, 0.1))
                tell(events.TurnEnd(number + 1, turns[-1]))
        meta = {"tokens": {"context": 50, "sampled": 4, "prefilled": 46, "shared": 0, "patches": 0}}
        last = turns[-1]
        outcome = "answered" if last.kind == "answer" else "text"
        answer = last.answer if outcome == "answered" else last.text
        trajectory = Trajectory(job.task, tuple(turns), outcome, answer, meta=meta)
        return GroupRollout(job.task, (Rollout(trajectory, tuple(clips)),))


def ask(video: str = "a.mp4", text: str = "Which digit?", **fields: Any) -> dict[str, Any]:
    """The body of a request."""
    content = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": text}]
    return {"model": "clueworld", "messages": [{"role": "user", "content": content}], **fields}


def data_url(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def without(body: dict[str, Any], part: int) -> dict[str, Any]:
    """A request without one part of its message."""
    message = dict(body["messages"][0])
    message["content"] = [p for n, p in enumerate(message["content"]) if n != part]
    return body | {"messages": [message]}
