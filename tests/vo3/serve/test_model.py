"""The embedded model behind real HTTP: the openai client gets the agent's answers, several at a time, streamed or whole."""

from __future__ import annotations

import concurrent.futures
import contextlib

import jax
import openai
import pytest
import serve_fakes as fakes

import vo3.models
from vo3.agent import VideoAgent
from vo3.clueworld import tasks
from vo3.clueworld.world import make_world
from vo3.rollout import GroupBuckets, GroupEngine, Sampling
from vo3.serve.app import make_app
from vo3.serve.desk import Desk
from vo3.serve.launch import warm_up
from vo3.serve.settings import Limits, Settings
from vo3.serve.shelf import Shelf
from vo3.trajectory import Trajectory

BUCKETS = GroupBuckets(tokens=(256,), patches=(256,), prefix=(512,), suffix=(512,))


@pytest.fixture(scope="module")
def model():
    return vo3.models.load("clueworld")


@pytest.fixture(scope="module")
def compiled():
    """Names of what XLA compiled for the engine so far, not only of what was traced."""
    names = []

    def listen(event, seconds, *, fun_name="", **_):
        if "backend_compile" in event and "_body" in fun_name:
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return names


@pytest.fixture(scope="module")
def engine(model, compiled):
    return GroupEngine(model, buckets=BUCKETS, slots=2, rollouts=1)


@contextlib.contextmanager
def client_of(engine, model, videos):
    """The openai client of a server with an engine."""
    limits = Limits(slots=2, queue=8)
    settings = Settings("clueworld", roots=(str(videos.resolve()),), limits=limits)
    shelf = Shelf(model.crop_policy, timeout_s=60, duration=600)
    desk = Desk(engine, limits, shelf=shelf, sampling=Sampling())
    with fakes.running(make_app(desk, settings)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def api(model, engine, videos):
    with client_of(engine, model, videos) as client:
        yield client


def questions() -> list[str]:
    """One on each card of the world: each needs a look."""
    return [
        tasks.digit_question(card).text
        for card in make_world(fakes.WORLD, duration=fakes.SECONDS).cards
    ]


def words(trajectory: Trajectory) -> list[str]:
    return [turn.text for turn in trajectory.turns if turn.role == "assistant"]


def test_every_program_is_compiled_once(api, engine, compiled):
    """Weights that lie on a device make no second variant of a program; asked before any other engine compiles."""
    for text in questions()[:2]:
        api.chat.completions.create(**fakes.ask(text=text))
    assert len(compiled) == engine.compilations >= 4


def test_clients_get_what_the_agent_says_alone(api, model, videos):
    """Four questions at once, through two slots: word for word what one conversation at a time gives."""
    asked = questions()[:4]
    ask = lambda text: api.chat.completions.create(**fakes.ask(text=text))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        got = list(threads.map(ask, asked))
    agent = VideoAgent(model)
    for text, answer in zip(asked, got, strict=True):
        alone = agent.ask(str(videos / "a.mp4"), text)
        trajectory = Trajectory.from_json(answer.vo3["trajectory"])
        assert words(trajectory) == words(alone)
        assert answer.choices[0].message.content == alone.answer
        assert len(trajectory.calls) >= 1
    cards = make_world(fakes.WORLD, duration=fakes.SECONDS).cards
    right = sum(a.choices[0].message.content == str(c.digit) for a, c in zip(got, cards))
    assert right >= 3


def test_a_stream_comes_in_pieces_and_says_the_same(api):
    body = fakes.ask(text=questions()[0])
    whole = api.chat.completions.create(**body)
    chunks = list(api.chat.completions.create(**body, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(d.content or "" for d in deltas) == whole.choices[0].message.content
    thoughts = [d.reasoning_content for d in deltas if getattr(d, "reasoning_content", None)]
    assert len(thoughts) > 10
    assert "".join(thoughts) == whole.choices[0].message.reasoning_content


def test_a_seed_is_a_seed_whatever_else_is_asked(api):
    body = fakes.ask(text=questions()[1], temperature=1.5, seed=7)
    ask = lambda change: api.chat.completions.create(**(body | change))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        first, _, second, other = threads.map(ask, [{}, {"temperature": 0}, {}, {"seed": 8}])
    said = [words(Trajectory.from_json(a.vo3["trajectory"])) for a in (first, second, other)]
    assert said[0] == said[1] != said[2]


def test_nothing_compiles_after_the_warm_up(model, videos, compiled, capfd):
    """Greedy and drawn answers, streamed and whole, alone and beside each other, long and cut short."""
    engine = GroupEngine(model, buckets=BUCKETS, slots=2, rollouts=1)
    before = len(compiled)
    warm_up(engine, every_s=0.05)
    lines = capfd.readouterr().err.splitlines()
    warm = engine.compilations
    assert lines[-1].startswith(f"vo3 serve: warm: {warm} programs after ")
    assert any("warming up: " in line for line in lines[:-1])
    assert warm == len(compiled) - before >= 10
    with client_of(engine, model, videos) as api:
        changes = [{}, {"temperature": 1.0, "seed": 1}, {"temperature": 0.7, "top_p": 0.9, "extra_body": {"vo3": {"top_k": 5}}}, {"max_tokens": 9}]  # fmt: skip
        ask = lambda text, change: api.chat.completions.create(**fakes.ask(text=text) | change)
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            list(threads.map(ask, questions()[:4], changes))
        ask(questions()[1], changes[1])
        list(ask(questions()[0], {"stream": True}))
    assert engine.compilations == warm == len(compiled) - before
