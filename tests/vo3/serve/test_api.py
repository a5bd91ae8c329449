"""Every path with a scripted engine: what OpenAI's client gets, and what is answered to what is wrong."""

from __future__ import annotations

import asyncio
import inspect
import json
import types

import httpx
import openai
import pytest
from prometheus_client import Counter
from serve_fakes import ANSWER, LOOK, ScriptedEngine, ask, data_url, without

from vo3.serve import request
from vo3.serve.guard import Guard
from vo3.trajectory import Trajectory

PATH = "/v1/chat/completions"


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20)


def lines(answer: httpx.Response) -> list[dict | str]:
    """What a stream's data lines hold."""
    data = [x.removeprefix("data: ") for x in answer.text.splitlines() if x.startswith("data: ")]
    return [x if x == "[DONE]" else json.loads(x) for x in data]


def test_the_client_gets_an_answer_with_its_trajectory(serve):
    engine = ScriptedEngine()
    got = client(serve(engine)).chat.completions.create(**ask())
    [choice] = got.choices
    assert (choice.message.content, choice.finish_reason) == ("B", "stop")
    assert choice.message.reasoning_content == "I look closer.\nIt shows six, I am sure."
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (46, 4)
    trajectory = Trajectory.from_json(got.vo3["trajectory"])
    assert trajectory.answer == "B" and trajectory.model == "clueworld"
    assert [turn.text for turn in trajectory.turns if turn.role == "assistant"] == [LOOK, ANSWER]
    assert trajectory.task.video == "a.mp4"
    assert engine.jobs[0].on_event is None


def test_a_stream_says_the_same_in_pieces(serve):
    url = serve()
    whole = client(url).chat.completions.create(**ask())
    chunks = list(
        client(url).chat.completions.create(
            **ask(), stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "B"
    thoughts = [getattr(delta, "reasoning_content", None) for delta in deltas]
    assert len(list(filter(None, thoughts))) > 4
    assert "".join(t or "" for t in thoughts) == "I look closer.\nIt shows six, I am sure."
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == [None, "stop"]
    assert chunks[-2].vo3["trajectory"]["answer"] == "B"
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_tells_of_every_look_where_asked(serve):
    body = ask(stream=True, vo3={"events": True, "trajectory": False})
    *chunks, done = lines(httpx.post(serve() + PATH, json=body))
    assert done == "[DONE]"
    told = [chunk["vo3"] for chunk in chunks if "vo3" in chunk]
    assert "trajectory" not in told[-1]
    kinds = [one["event"] for one in told[:-1]]
    assert [k for k in kinds if k != "token"] == [
        "turn_end", "observation", "turn_end", "turn_start", "turn_end", "observation", "turn_end", "turn_start", "turn_end",
    ]  # fmt: skip
    shown = [one["observation"] for one in told if one.get("event") == "observation"]
    assert [(o["index"], o["start"], o["end"]) for o in shown] == [(0, 0, 120), (1, 2, 6)]
    text = "".join(one["text"] for one in told if one.get("event") == "token")
    assert text == LOOK + ANSWER


def test_options_come_from_the_field_or_from_the_text(serve):
    engine = ScriptedEngine()
    url = serve(engine)
    text = "Which digit?\nOptions:\n(A) six\n(B) seven\nAnswer with the letter."
    for body in (
        ask(text=text),
        ask(vo3={"options": {"A": "six", "B": "seven"}}),
        ask(vo3={"options": ["six", "seven"]}),
        ask(text=text, vo3={"options": False}),
    ):
        httpx.post(url + PATH, json=body).raise_for_status()
    tasks = [job.task for job in engine.jobs]
    lettered = {"A": "six", "B": "seven"}
    assert [task.options for task in tasks] == [lettered, lettered, lettered, None]
    assert [task.question for task in tasks] == [
        "Which digit?\nAnswer with the letter.", "Which digit?", "Which digit?", text,
    ]  # fmt: skip


def test_sampling_and_limits_are_the_requests_own_up_to_the_servers(serve):
    engine = ScriptedEngine()
    body = ask(
        temperature=0.7, top_p=0.9, seed=-3, max_tokens=9, vo3={"max_turns": 2, "top_k": 5}, user="me",
        frequency_penalty=0,
    )  # fmt: skip
    url = serve(engine)
    httpx.post(url + PATH, json=body).raise_for_status()
    httpx.post(url + PATH, json=ask(max_completion_tokens=10**6)).raise_for_status()
    own, most = engine.jobs
    s = own.sampling
    assert (s.temperature, s.top_p, s.top_k, s.seed) == (0.7, 0.9, 5, 2**32 - 3)
    assert (own.policy.max_turns, own.policy.max_new_tokens) == (2, 9)
    assert most.policy.max_new_tokens == engine.policy.max_new_tokens


def test_every_parameter_of_the_client_is_read_refused_or_known_to_change_nothing():
    """A new one of OpenAI's is a decision to take, not an `unknown field`."""
    own = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    given = set(inspect.signature(openai.resources.chat.Completions.create).parameters) - own
    known = set(request.ChatRequest.model_fields), request._IGNORED, set(request._NEUTRAL)
    assert given <= set.union(*known)
    assert sum(map(len, known)) == len(set.union(*known))


def test_what_asks_for_nothing_is_taken(serve):
    """What clients send without being told to."""
    nothing = {
        "n": 1, "stop": None, "presence_penalty": 0, "logit_bias": {}, "logprobs": False, "response_format": {"type": "text"},
        "tools": [], "tool_choice": "auto", "modalities": ["text"], "parallel_tool_calls": True, "store": False, "user": "me",
        "reasoning_effort": "low", "stream": None, "temperature": None, "max_tokens": None, "seed": None,
    }  # fmt: skip
    url = serve()
    assert httpx.post(url + PATH, json=ask(**nothing)).json()["choices"][0]["message"]["content"] == "B"  # fmt: skip
    body = {k: v for k, v in ask(**nothing).items() if k != "vo3"}
    assert client(url).chat.completions.create(**body).choices[0].message.content == "B"
    plain = {"model": "clueworld", "messages": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "name": "me", "content": [{"type": "video_url", "video_url": "a.mp4"}]},
        {"role": "user", "content": "Which digit?"},
    ]}  # fmt: skip
    got = httpx.post(url + PATH, json=plain).json()
    assert got["vo3"]["trajectory"]["task"]["question"] == "Answer in one word.\nWhich digit?"


def test_every_way_to_give_a_video(serve, videos):
    url = serve()
    api = client(url)
    data = (videos / "a.mp4").read_bytes()
    upload = api.files.create(file=("mine.mp4", data), purpose="user_data")
    assert (upload.bytes, upload.filename) == (len(data), "mine.mp4")
    part = lambda file: {"type": "file", "file": file}
    given = {
        "a.mp4": "a.mp4",
        "deep/b.mp4": "deep/b.mp4",
        "inner.mp4": "inner.mp4",
        f"file://{videos}/deep/../a.mp4": f"file://{videos}/deep/../a.mp4",
        data_url(data): f"{len(data)} bytes of video/mp4",
        upload.id: "mine.mp4",
    }
    for video, label in given.items():
        got = api.chat.completions.create(**ask(video))
        assert got.vo3["trajectory"]["task"]["video"] == label
    for file in ({"file_id": upload.id}, {"file_data": data_url(data), "filename": "x.mp4"}):
        body = ask()
        body["messages"][0]["content"][0] = part(file)
        assert api.chat.completions.create(**body).choices[0].message.content == "B"
    assert api.files.retrieve(upload.id).bytes == len(data)
    assert api.files.delete(upload.id).deleted
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(upload.id)


def test_pictures_are_the_frames_of_a_video(serve, tmp_path):
    from PIL import Image

    pictures = []
    for number in range(6):
        Image.new("RGB", (56, 56), (40 * number, 0, 0)).save(tmp_path / "x.png")
        url = data_url((tmp_path / "x.png").read_bytes(), "image/png")
        pictures.append({"type": "image_url", "image_url": {"url": url}})
    body = ask(vo3={"frame_fps": 0.5})
    body["messages"][0]["content"][:1] = pictures
    got = client(serve()).chat.completions.create(**{k: v for k, v in body.items() if k != "vo3"}, extra_body={"vo3": body["vo3"]})  # fmt: skip
    overview = Trajectory.from_json(got.vo3["trajectory"]).observations[0]
    assert overview.end == 12.0


def test_models_health_metrics(serve):
    url = serve()
    api = client(url)
    assert [model.id for model in api.models.list()] == ["clueworld"]
    assert api.models.retrieve("clueworld").owned_by == "vo3"
    api.chat.completions.create(**ask())
    assert httpx.get(url + "/health").json() == {
        "status": "ok", "model": "clueworld", "running": 0, "waiting": 0,
    }  # fmt: skip
    text = httpx.get(url + "/metrics").text
    assert 'vo3_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'vo3_answers_total{outcome="answered"} 1.0' in text
    assert "process_resident_memory_bytes" in text


# What is wrong, and how it is said: (body or its change, status, code, words of the message).
WRONG = {
    "no JSON": (b"{", 400, "invalid_value", "JSON"),
    "no object": (b"[]", 400, "invalid_value", "object"),
    "no messages": ({"model": "clueworld"}, 400, "invalid_value", "messages"),
    "another model": (ask(model="gpt-4o"), 404, "model_not_found", "'clueworld'"),
    "no video": (without(ask(), 0), 400, "one_video", "no video"),
    "no question": (without(ask(), 1), 400, "invalid_value", "no question"),
    "two videos": (
        {"messages": ask()["messages"] * 2}, 400, "one_video", "2 videos",
    ),
    "a conversation": (
        {"messages": [*ask()["messages"], {"role": "assistant", "content": "B"}]}, 400, "unsupported_role", "one question at a time",
    ),
    "outside by dots": (ask("../outside/secret.mp4"), 403, "outside_roots", "outside"),
    "outside by a link": (ask("link.mp4"), 403, "outside_roots", "outside"),
    "outside, absolute": (ask("/etc/passwd"), 403, "outside_roots", "/etc/passwd"),
    "outside, as a URL": (ask("file:///etc/passwd"), 403, "outside_roots", "outside"),
    "outside, escaped": (ask("file:///%2e%2e/etc/passwd"), 403, "outside_roots", "outside"),
    "not there": (ask("c.mp4"), 404, "video_not_found", "c.mp4"),
    "a folder": (ask("deep"), 404, "video_not_found", "deep"),
    "no video inside": (ask("note.txt"), 400, "video_format", "note.txt is not a video"),
    "another scheme": (ask("gs://bucket/a.mp4"), 400, "invalid_value", "gs:"),
    "web": (ask("https://example.com/a.mp4"), 403, "host_not_allowed", "--allow-host example.com"),
    "a private address": (ask("http://169.254.169.254/latest"), 403, "host_not_allowed", "169.254"),
    "empty data": (ask("data:video/mp4;base64,"), 400, "invalid_value", "no bytes"),
    "broken data": (ask("data:video/mp4;base64,###"), 400, "invalid_value", "base64"),
    "data that is no video": (ask("data:video/mp4;base64,AAAA"), 400, "video_format", "3 bytes"),
    "a NUL": (ask("a\0.mp4"), 400, "invalid_value", "NUL"),
    "an unknown upload": (ask("file-" + "0" * 32), 404, "file_not_found", "upload the file again"),
    "temperature": (ask(temperature=-1), 400, "invalid_value", "temperature"),
    "top_p": (ask(top_p=0), 400, "invalid_value", "top_p"),
    "two answers": (ask(n=2), 400, "unsupported_value", "n: not supported"),
    "tools": (ask(tools=[{"type": "function"}]), 400, "unsupported_value", "tools"),
    "a typo": (ask(temprature=1), 400, "unknown_field", "temperature"),
    "a typo in vo3": (ask(vo3={"option": ["a"]}), 400, "unknown_field", "vo3.option"),
    "one option": (ask(vo3={"options": ["red"]}), 400, "invalid_value", "no choice"),
    "options out of order": (ask(vo3={"options": {"B": "x", "A": "y"}}), 400, "invalid_value", "A, B"),
    "a typo in a part": (
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "a.mp4", "fps": 2}}]}]}, 400, "unknown_field",
        "messages.0.content.0.video_url.fps: is not known",
    ),
    "a number as a text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, 400, "invalid_value", "messages.0.content.0.text: ",
    ),
    "sound": (ask(modalities=["text", "audio"]), 400, "unsupported_value", "modalities: not supported"),
    "a stop": (ask(stop=["\n"]), 400, "unsupported_value", "stop: not supported"),
    "JSON": (ask(response_format={"type": "json_object"}), 400, "unsupported_value", "response_format"),
    "probabilities": (ask(logprobs=True), 400, "unsupported_value", "logprobs"),
    "a part of another kind": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "invalid_value", "input_audio",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def url(module_serve):
    return module_serve()


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_is_wrong_is_said(url, videos, name, stream):
    body, status, code, words = WRONG[name]
    if isinstance(body, dict) and stream:
        body = body | {"stream": True}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    got = httpx.post(url + PATH, content=content, headers={"content-type": "application/json"})
    error = got.json()["error"]
    assert (got.status_code, error["code"]) == (status, code), error
    assert words in error["message"]
    assert error["request_id"] == got.headers["x-request-id"]
    assert str(videos.parent) not in got.text.replace(f"{videos.parent}/outside", "")


def test_unknown_paths_and_methods(url):
    for method, path, status in (
        ("GET", "/v2/models", 404),
        ("GET", PATH, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/gpt-4o", 404),
        ("GET", "/v1/files/file-1", 404),
    ):
        got = httpx.request(method, url + path)
        assert got.status_code == status
        assert got.json()["error"]["request_id"].startswith("req-")


def test_the_type_of_the_body_is_checked(url):
    got = httpx.post(url + PATH, content=json.dumps(ask()), headers={"content-type": "text/plain"})
    assert (got.status_code, got.json()["error"]["code"]) == (415, "content_type")
    got = httpx.post(url + "/v1/files", json={})
    assert got.status_code == 415
    got = httpx.post(url + "/v1/files", data={"purpose": "x"}, files={"other": b"1"})
    assert got.status_code == 400 and "field 'file'" in got.json()["error"]["message"]
    broken = {"content-type": "multipart/form-data; boundary=x"}
    got = httpx.post(url + "/v1/files", content=b"--x\r\nnothing", headers=broken)
    assert got.status_code == 400
    got = httpx.post(
        url + "/v1/files", content=b"", headers={"content-type": "multipart/form-data"}
    )
    assert got.status_code == 400
    got = httpx.post(url + "/v1/files", files={"file": b""})
    assert (got.status_code, got.json()["error"]["code"]) == (400, "empty_file")


def test_the_page_of_another_site_may_not_ask(url):
    for headers, status in (
        ({"origin": "https://evil.example"}, 403),
        ({"origin": url}, 200),
        ({}, 200),
    ):
        assert httpx.post(url + PATH, json=ask(), headers=headers).status_code == status


def test_a_name_that_leads_here_is_not_enough(serve):
    url = serve(names=frozenset(("127.0.0.1", "localhost")))
    assert httpx.get(url + "/v1/models").status_code == 200
    # The last ones are no names at all: a framework may put the server's own in their place.
    for name in (
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "[",
        "a b",
        "x/127.0.0.1",
        "localhost:99999999@evil",
    ):
        got = httpx.get(url + "/v1/models", headers={"host": name})
        assert (got.status_code, got.json()["error"]["code"]) == (403, "wrong_host"), name
    port = url.rpartition(":")[2]
    assert httpx.get(url + "/v1/models", headers={"host": f"LOCALHOST:{port}"}).status_code == 200


@pytest.mark.parametrize("host", ["x/health?", "x/?", "x/health#", "/health?"])
def test_no_host_header_opens_a_path_that_needs_a_key(host):
    """Frameworks may put it into the URL; what is asked for stands in the request's first line alone."""
    seen = []

    async def inner(scope, receive, send):
        seen.append(scope["path"])

    async def send(message):
        seen.append(message.get("status"))

    guard = Guard(inner, keys=["key"], names=None, metrics=types.SimpleNamespace(requests=Counter("x", "x", ["path", "status"], registry=None)))  # fmt: skip
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "query_string": b"", "headers": [(b"host", host.encode())]}  # fmt: skip
    asyncio.run(guard(scope, None, send))
    assert seen[0] == 401 and "/v1/models" not in seen
    scope |= {"path": "/health", "state": {}}
    asyncio.run(guard(scope, None, send))
    assert seen[-1] == "/health"


def test_keys(serve, caplog):
    caplog.set_level("INFO")
    url = serve(keys=("right-key", "other-key"))
    for key in ("right-key", "other-key"):
        assert client(url, key).models.list().data
    with pytest.raises(openai.AuthenticationError, match="wrong"):
        client(url, "a-wrong-key").chat.completions.create(**ask())
    for path in ("/v1/models", "/metrics", "/v1/files/x"):
        got = httpx.get(url + path)
        assert got.status_code == 401 and "missing" in got.json()["error"]["message"]
        assert got.headers["www-authenticate"] == "Bearer"
    assert httpx.get(url + "/health").status_code == 200
    assert "-key" not in caplog.text and "req-" in caplog.text


def test_an_engine_that_fails_loses_what_is_under_way_and_goes_on(serve, caplog):
    engine = ScriptedEngine()
    engine.failure = RuntimeError("the device is on fire at /secret/path")
    url = serve(engine)
    got = httpx.post(url + PATH, json=ask())
    assert (got.status_code, got.json()["error"]["code"]) == (500, "engine_failed")
    assert "fire" not in got.text and "on fire" in caplog.text
    assert httpx.post(url + PATH, json=ask()).status_code == 200


def test_an_answer_without_tags_is_its_text(serve):
    url = serve(ScriptedEngine("It is a cat."))
    assert client(url).chat.completions.create(**ask()).choices[0].message.content == "It is a cat."
    chunks = client(url).chat.completions.create(**ask(), stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "It is a cat."
