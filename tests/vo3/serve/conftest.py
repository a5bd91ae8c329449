"""Servers on loopback: one with the embedded model, and small ones whose engine says what a test wants."""

from __future__ import annotations

import contextlib
import pathlib

import pytest
import serve_fakes as fakes

from vo3.clueworld.film import write_video
from vo3.clueworld.world import make_world
from vo3.serve.settings import Limits, Settings


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> pathlib.Path:
    """A folder with a short ClueWorld video, `a.mp4`, and a folder beside it that nobody may read."""
    root = tmp_path_factory.mktemp("serve") / "videos"
    write_video(make_world(fakes.WORLD, duration=fakes.SECONDS), root / "a.mp4")
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
def starting(videos):
    """start(engine, limits={...}, keys=...) -> address of a server with a scripted engine."""
    with contextlib.ExitStack() as stack:

        def start(engine=None, *, limits=None, wire=None, **options) -> str:
            limits = Limits(**{"slots": 2, "queue": 2, "request_s": 20.0, **(limits or {})})
            options.setdefault("roots", (str(videos.resolve()),))
            settings = Settings(model="clueworld", limits=limits, **options)
            engine = engine or fakes.ScriptedEngine()
            app = fakes.app(engine, settings)
            return stack.enter_context(fakes.running(app, **(wire or {})))

        yield start


@pytest.fixture
def serve(videos):
    with starting(videos) as start:
        yield start


@pytest.fixture(scope="module")
def module_serve(videos):
    with starting(videos) as start:
        yield start
