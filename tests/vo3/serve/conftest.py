"""Servers on loopback: one with the embedded model, and small ones whose engine says what a test wants."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import threading
import time

import pytest
import serve_fakes as fakes
import uvicorn

from vo3.clueworld.film import write_video
from vo3.clueworld.world import make_world
from vo3.serve.app import make_app
from vo3.serve.commands import bind
from vo3.serve.desk import Desk
from vo3.serve.settings import Limits, Settings
from vo3.serve.shelf import Shelf


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> pathlib.Path:
    """A folder with a short ClueWorld video, `a.mp4`, and a folder beside it that nobody may read."""
    root = tmp_path_factory.mktemp("serve") / "videos"
    write_video(make_world(fakes.WORLD, duration=120), root / "a.mp4")
    (root / "deep").mkdir()
    (root / "deep" / "b.mp4").write_bytes((root / "a.mp4").read_bytes())
    (root / "note.txt").write_text("no video")
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "secret.mp4").write_bytes((root / "a.mp4").read_bytes())
    (root / "link.mp4").symlink_to(outside / "secret.mp4")
    (root / "inner.mp4").symlink_to(root / "deep" / "b.mp4")
    return root


@contextlib.contextmanager
def running(app):
    """The application on a free port of loopback; gives its address."""
    listener: socket.socket = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2)
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


@contextlib.contextmanager
def starting(videos):
    """start(engine, limits={...}, keys=...) -> address of a server with a scripted engine."""
    with contextlib.ExitStack() as stack:

        def start(engine=None, *, limits=None, **options) -> str:
            limits = Limits(**{"slots": 2, "queue": 2, "request_s": 20.0, **(limits or {})})
            options.setdefault("roots", (str(videos.resolve()),))
            settings = Settings(model="clueworld", limits=limits, **options)
            engine = engine or fakes.ScriptedEngine()
            engine.slots = limits.slots
            shelf = Shelf(fakes.CROP, timeout_s=limits.read_s, duration=limits.duration)
            desk = Desk(engine, limits, shelf=shelf, sampling=fakes.GREEDY)
            return stack.enter_context(running(make_app(desk, settings)))

        yield start


@pytest.fixture
def serve(videos):
    with starting(videos) as start:
        yield start


@pytest.fixture(scope="module")
def module_serve(videos):
    with starting(videos) as start:
        yield start
