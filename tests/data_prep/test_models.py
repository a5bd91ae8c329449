"""Endpoints that misbehave: each case has one clear outcome, is retried or not, and is paid for once."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import sqlite3
import threading
import time

import pytest
from stub_server import KEY, Serving, Stub, half, hang, reply, status

from configs.data_prep import get_config
from data_prep import config as configs
from data_prep import videos
from data_prep.cache import FolderCache, SqliteCache
from data_prep.models import calling, frames
from data_prep.models.base import Media, ModelError, RawReply, Request
from data_prep.models.calling import Caller, CallLimits, Price, UnusableReply
from data_prep.models.limits import Limiter
from data_prep.models.openai import OpenAIClient

SCHEMA = {"type": "object", "required": ["answer"], "properties": {"answer": {"type": "string"}}}
QUICK = CallLimits(concurrency=4, timeout=5.0, attempts=4, first_wait=0.01, longest_wait=0.05)
PRICE = Price(2, 10)
GOOD = '{"answer": "B"}'


def request(text: str = "what?", **changes) -> Request:
    made = Request(stage="verify", prompt="p", system="s", text=text, schema=SCHEMA)
    return dataclasses.replace(made, **changes)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    return Stub()


def ask(stub: Stub, cache, *requests: Request, limits: CallLimits = QUICK, price: Price = PRICE):
    """Replies or errors of the requests, asked at once, and the caller."""

    async def run():
        with Serving(stub) as url:
            client = OpenAIClient(model="m", base_url=url, api_key_env="TEST_KEY")
            caller = Caller(client, cache, limits=limits, price=price)
            try:
                jobs = [caller.ask(r) for r in requests]
                return await asyncio.gather(*jobs, return_exceptions=True), caller
            finally:
                await client.close()

    return asyncio.run(run())


def test_a_reply_is_parsed_counted_and_stored(stub, tmp_path):
    stub.script = [GOOD]
    cache = SqliteCache(tmp_path / "c.sqlite")
    (answer,), caller = ask(stub, cache, request())
    assert answer.value == {"answer": "B"}
    (note,) = answer.notes
    assert (note.prompt_tokens, note.reply_tokens, note.model) == (100, 10, "stub-1")
    assert note.cost == pytest.approx((100 * 2 + 10 * 10) / 1e6) and caller.tally.cost == note.cost
    assert cache.count() == 1
    (again,), caller = ask(stub, cache, request())
    assert again == answer and caller.tally.calls == 0 and caller.tally.cached == 1
    assert sum(stub.calls.values()) == 1


@pytest.mark.parametrize("kind", [SqliteCache, FolderCache])
def test_caches_keep_the_first_reply(kind, tmp_path):
    path = tmp_path / ("c.sqlite" if kind is SqliteCache else "folder")
    cache = kind(path)
    assert cache.get("ab" * 16) is None
    cache.put("ab" * 16, "verify", RawReply("één \ud800", 1, 2, False, "m"))
    assert kind(path).get("ab" * 16) == RawReply("één \ud800", 1, 2, False, "m")


def test_the_same_content_at_the_same_time_is_asked_once(stub, tmp_path):
    stub.delay = 0.1
    stub.script = [GOOD]
    answers, _ = ask(stub, SqliteCache(tmp_path / "c.sqlite"), *[request()] * 5)
    assert len({repr(a) for a in answers}) == 1 and sum(stub.calls.values()) == 1


def test_every_part_of_a_request_is_part_of_its_key(stub, tmp_path):
    changes = [{}, {"draw": 1}, {"system": "t"}, {"temperature": 0.5}, {"inputs": {"a": 1}}, {"max_tokens": 9}, {"prompt": "q"}]  # fmt: skip
    stub.script = [GOOD] * len(changes)
    ask(stub, SqliteCache(tmp_path / "c.sqlite"), *[request(**c) for c in changes])
    assert len(stub.calls) == len(changes)


@pytest.mark.parametrize(
    ("step", "retries"),
    [(status(429), 1), (status(500), 1), (status(503), 1), (half, 1), ('{"answer": "B"', 0)],
)
def test_what_may_pass_is_tried_again(stub, tmp_path, step, retries):
    stub.script = [step, GOOD]
    (answer,), caller = ask(stub, SqliteCache(tmp_path / "c.sqlite"), request())
    assert answer.value == {"answer": "B"}
    assert caller.tally.retries == retries and caller.tally.repairs == 1 - retries


def test_half_of_the_endpoints_own_json_is_tried_again(stub, tmp_path):
    async def cut(_):
        whole = reply(GOOD)
        return type(whole)(text=whole.text[:40], content_type="application/json")

    stub.script = [cut, GOOD]
    (answer,), caller = ask(stub, SqliteCache(tmp_path / "c.sqlite"), request())
    assert answer.value == {"answer": "B"} and caller.tally.retries == 1


def test_a_hang_ends_at_the_time_limit(stub, tmp_path):
    stub.script = [hang, hang]
    limits = dataclasses.replace(QUICK, timeout=0.2, attempts=2)
    (error,), _ = ask(stub, SqliteCache(tmp_path / "c.sqlite"), request(), limits=limits)
    assert isinstance(error, ModelError) and error.kind == "timeout"


class Film:
    """Stands in for `frames.read`: `seconds` of decoding, or `error`; `read` counts, `most_at_once` too; `threads` by name."""

    def __init__(self, monkeypatch, seconds: float = 0.0, error: ModelError | None = None):
        self.seconds, self.error = seconds, error
        self.read = self.at_once = self.most_at_once = 0
        self.threads: set[str] = set()
        self._lock = threading.Lock()
        monkeypatch.setattr(frames, "read", self)

    def __call__(self, media, settings):
        with self._lock:
            self.read += 1
            self.threads.add(threading.current_thread().name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.seconds)
        with self._lock:
            self.at_once -= 1
        if self.error:
            raise self.error
        return [frames.Shown(1.0, "aGk=")]


def shown(text: str = "what?") -> Request:
    return request(text, media=Media("v.mp4", "/v.mp4", "id"))


def test_a_slow_film_is_no_timeout_of_the_endpoint(stub, tmp_path, monkeypatch):
    film = Film(monkeypatch, seconds=1.0)
    stub.script = [GOOD]
    limits = dataclasses.replace(QUICK, timeout=0.5, attempts=3)
    (answer,), caller = ask(stub, SqliteCache(tmp_path / "c.sqlite"), shown(), limits=limits)
    assert answer.value == {"answer": "B"} and caller.tally.retries == 0
    assert film.read == 1 and sum(stub.calls.values()) == 1
    kinds = [part["type"] for part in stub.bodies[0]["messages"][1]["content"]]
    assert kinds == ["text", "image_url", "text"]


def test_a_slow_endpoint_is_tried_again_with_the_same_frames(stub, tmp_path, monkeypatch):
    film = Film(monkeypatch)
    limits = dataclasses.replace(QUICK, timeout=0.5, attempts=3)
    stub.script = [hang, status(500), GOOD]
    (answer,), caller = ask(stub, SqliteCache(tmp_path / "c.sqlite"), shown(), limits=limits)
    assert answer.value == {"answer": "B"} and caller.tally.retries == 2
    assert film.read == 1 and stub.bodies[0] == stub.bodies[1] == stub.bodies[2]
    stub.script = [hang] * 3
    (error,), _ = ask(stub, SqliteCache(tmp_path / "d.sqlite"), shown(), limits=limits)
    assert isinstance(error, ModelError) and error.kind == "timeout" and film.read == 2


@pytest.mark.parametrize("kind", ["storage", "media"])
def test_a_video_that_cannot_be_read_is_not_asked_about(stub, tmp_path, monkeypatch, kind):
    film = Film(monkeypatch, error=ModelError(kind, "v.mp4 is not there"))
    (error,), caller = ask(stub, SqliteCache(tmp_path / "c.sqlite"), shown())
    assert isinstance(error, ModelError) and error.kind == kind
    assert film.read == 1 and caller.tally.retries == 0 and not stub.calls


def test_few_videos_are_decoded_at_once_and_none_in_the_loops_own_threads(stub, tmp_path, monkeypatch):  # fmt: skip
    film = Film(monkeypatch, seconds=0.05)
    stub.script = [GOOD] * 20
    limits = dataclasses.replace(QUICK, concurrency=20, timeout=0.5)
    requests = [shown(str(n)) for n in range(20)]
    monkeypatch.setattr(frames, "AT_ONCE", 3)
    answers, caller = ask(stub, SqliteCache(tmp_path / "c.sqlite"), *requests, limits=limits)
    assert all(a.value == {"answer": "B"} for a in answers) and caller.tally.retries == 0
    assert film.read == 20 and film.most_at_once == 3
    assert all(name.startswith("frames") for name in film.threads)


@pytest.mark.parametrize(
    ("code", "kind", "tries"), [(429, "rate", 4), (500, "server", 4), (401, "auth", 1), (400, "request", 1), (422, "request", 1), (402, "refused", 1), (404, "refused", 1)]
)  # fmt: skip
def test_what_does_not_pass_ends_the_call(stub, tmp_path, code, kind, tries):
    stub.script = [status(code)] * 5
    (error,), _ = ask(stub, SqliteCache(tmp_path / "c.sqlite"), request())
    assert isinstance(error, ModelError) and error.kind == kind
    assert sum(stub.calls.values()) == tries
    assert KEY not in str(error)


def test_retry_after_is_honoured_up_to_the_longest_wait(stub, tmp_path, monkeypatch):
    slept = []
    real = asyncio.sleep
    monkeypatch.setattr(calling.asyncio, "sleep", lambda s: (slept.append(s), real(0))[1])
    stub.script = [status(429, **{"Retry-After": "7"}), GOOD]
    limits = dataclasses.replace(QUICK, longest_wait=3.0)
    ask(stub, SqliteCache(tmp_path / "c.sqlite"), request(), limits=limits)
    assert max(slept) >= 3.0


def test_a_filter_is_an_answer_that_ends_the_row(stub, tmp_path):
    async def filtered(_):
        return reply("", finish="content_filter")

    stub.script = [filtered]
    (error,), _ = ask(stub, SqliteCache(tmp_path / "c.sqlite"), request())
    assert isinstance(error, ModelError) and error.kind == "request"


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ("I cannot help with that.", "not_json"), ("", "empty"), ('{"answer": "B', "truncated"),
        ('{"other": 1}', "schema"), ("答案是乙", "not_json"),
    ],
)  # fmt: skip
def test_unusable_replies_are_asked_again_once_then_end_the_row(stub, tmp_path, bad, kind):
    stub.script = [bad, bad, GOOD]
    cache = SqliteCache(tmp_path / "c.sqlite")
    (error,), _ = ask(stub, cache, request())
    assert isinstance(error, UnusableReply) and error.kind == kind
    assert [n.repaired for n in error.notes] == [kind, kind]
    # What is wrong was told, and a bad reply is paid for once: the next run ends in the same way without a call.
    assert "cannot be used" in stub.bodies[1]["messages"][-1]["content"]
    before = sum(stub.calls.values())
    (again,), _ = ask(stub, cache, request())
    assert str(again) == str(error) and sum(stub.calls.values()) == before == 2


def test_a_cut_reply_is_given_more_room(stub, tmp_path):
    async def cut(_):
        return reply('{"answer": "B', finish="length")

    stub.script = [cut, GOOD]
    (answer,), _ = ask(stub, SqliteCache(tmp_path / "c.sqlite"), request(max_tokens=50))
    assert answer.value == {"answer": "B"} and stub.bodies[1]["max_tokens"] == 100


def test_concurrency_is_bounded_and_used(stub, tmp_path):
    stub.delay = 0.05
    stub.script = [GOOD] * 20
    requests = [request(str(n)) for n in range(20)]
    ask(stub, SqliteCache(tmp_path / "c.sqlite"), *requests)
    assert stub.most_at_once == QUICK.concurrency


def test_the_limiter_spaces_calls(monkeypatch):
    now, slept = [100.0], []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("data_prep.models.limits.time.monotonic", lambda: now[0])
    monkeypatch.setattr("data_prep.models.limits.asyncio.sleep", sleep)

    async def run():
        limiter = Limiter(requests_per_minute=60, tokens_per_minute=6000)
        for tokens in (10, 10, 500, 10):
            await limiter.wait(tokens)
        limiter.back_off(30)
        await limiter.wait(1)

    asyncio.run(run())
    # A second a request; 500 tokens at 100 a second take five.
    assert slept == pytest.approx([1, 2, 7, 30])


def test_other_frames_under_the_same_names_are_another_video(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(bytes([i]) * 10)
    first = videos._identity.__wrapped__(str(tmp_path))
    assert first == videos._identity.__wrapped__(str(tmp_path))
    (tmp_path / "2.jpg").write_bytes(b"x" * 10)  # the middle one
    second = videos._identity.__wrapped__(str(tmp_path))
    (tmp_path / "3.jpg").write_bytes(b"x" * 11)
    assert len({first, second, videos._identity.__wrapped__(str(tmp_path))}) == 3
    (tmp_path / "empty").mkdir()
    assert videos._identity.__wrapped__(str(tmp_path / "empty"))
    shown = [Media("v", str(tmp_path), first, frame_fps=fps) for fps in (None, 1.0, 2.0)]
    assert len({json.dumps(request(media=media).content()) for media in shown}) == 3


def test_what_frames_cost_is_waited_for_once_it_is_known(monkeypatch):
    now, slept = [100.0], []

    async def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("data_prep.models.limits.time.monotonic", lambda: now[0])
    monkeypatch.setattr("data_prep.models.limits.asyncio.sleep", sleep)

    async def run():
        limiter = Limiter(tokens_per_minute=6000)
        for _ in range(3):
            await limiter.wait(100)
            limiter.spent(100, 4100)
        limiter.spent(100, 50)  # less than expected frees nothing: calls under way counted on it

    asyncio.run(run())
    assert slept == pytest.approx([41, 41])


def test_a_missing_key_is_said_at_once_and_a_local_endpoint_needs_none(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = get_config("openai")
    config.model.name = "m"
    with pytest.raises(ModelError, match="OPENAI_API_KEY is not set"):
        configs.client(config, connections=1)
    config.model.base_url = "http://localhost:1/v1"
    configs.client(config, connections=1)
    config.model.name = ""
    with pytest.raises(configs.ConfigError, match=r"config\.model\.name"):
        configs.client(config, connections=1)
    gemini = get_config("gemini")
    gemini.model.name = "g"
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(ModelError, match="GEMINI_API_KEY is not set"):
        configs.client(gemini, connections=1)


def test_the_key_stays_in_its_header(stub, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    stub.script = [status(500), status(400)]
    path = tmp_path / "c.sqlite"
    (error,), caller = ask(stub, SqliteCache(path), request())
    stub.script = [GOOD]
    ask(stub, SqliteCache(path), request("other"))
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    written = "\n".join(sqlite3.connect(path).iterdump())
    for text in (str(error), repr(error), caplog.text, written, json.dumps(caller.client.identity()), json.dumps(stub.bodies)):  # fmt: skip
        assert KEY not in text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.backend", "chatgpt", "config.model.backend"),
        ("source.name", "charades", "charades-sta"),
        ("source.name", "cg-bench", "the oracle knows the synthetic world only"),
        ("engine", "spark", "local or beam"),
    ],
)
def test_configs_that_cannot_run_are_refused(tmp_path, key, value, message):
    from data_prep.synthesize import synthesize

    config = get_config()
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    if key == "source.name" and value == "charades":
        config.model.backend, config.model.name, config.model.base_url = "openai", "m", "http://localhost:1/v1"  # fmt: skip
    config.source.limit = 1
    with pytest.raises(configs.ConfigError, match=message):
        synthesize(config, tmp_path)


def test_workers_on_other_machines_need_everything_where_they_can_see_it(tmp_path):
    config = get_config("openai")
    assert configs.exchange(config, tmp_path) == tmp_path / "beam"
    config.beam.folder = "gs://b/beam"
    for key in ("cache", "videos"):
        with pytest.raises(configs.ConfigError, match=rf"config\.{key}"):
            configs.exchange(config, tmp_path)
        config[key] = f"gs://b/{key}"
    assert str(configs.exchange(config, tmp_path)) == "gs://b/beam"


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(configs.ConfigError, match="did you mean 'votes'"):
        configs.struct(type(configs.StageSettings().verify), {"vote": 3}, "stages.verify")
