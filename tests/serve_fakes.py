"""An engine that follows a script, servers around it, and requests for them.

python serve_fakes.py ROOT: a server of the videos under ROOT in a process of its own; its address is the first line that it prints.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import sys
import threading
import time
from typing import Any

import uvicorn
from rollout_fakes import CROP

from vo3.chat.tags import parse_turn
from vo3.rollout import Rollout, RolloutPolicy, Sampling, events
from vo3.rollout.errors import RolloutError
from vo3.rollout.group import GroupRollout
from vo3.rollout.group_counts import GroupCounts
from vo3.serve.app import make_app
from vo3.serve.commands import bind
from vo3.serve.connections import Connection
from vo3.serve.desk import Desk
from vo3.serve.settings import Limits, Settings
from vo3.serve.shelf import Shelf
from vo3.trajectory import Trajectory, Turn
from vo3.video import VideoError

WORLD, SECONDS = 2031, 120
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
    max_length = 2048

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
                try:
                    clip = video.crop(parsed.call.start, parsed.call.end, parsed.call.strategy)
                except VideoError as error:  # the real engine goes on without the clip
                    return GroupRollout(job.task, (), str(error), error)
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


def app(engine: ScriptedEngine, settings: Settings):
    """The application around a scripted engine."""
    limits = settings.limits
    engine.slots = limits.slots
    shelf = Shelf(CROP, timeout_s=limits.read_s, duration=limits.duration)
    return make_app(Desk(engine, limits, shelf=shelf, sampling=GREEDY), settings)


@contextlib.contextmanager
def running(app, *, send_buffer: int | None = None, connection=Connection):
    """The application on a free port of loopback; gives its address. `send_buffer`: bytes that wait in the system for a client to read them."""
    listener = bind("127.0.0.1", 0)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    config = uvicorn.Config(
        app, http=connection, log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def main(root: str) -> None:
    """Serves until it is killed."""
    limits = Limits(
        slots=4,
        queue=16,
        body=4e6,
        upload=4e6,
        uploads=16e6,
        duration=3600,
        request_s=60,
        read_s=20,
    )
    settings = Settings("clueworld", roots=(os.path.realpath(root),), limits=limits)
    with running(app(ScriptedEngine(), settings)) as url:
        print(url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
