"""Too much, too slow, too many: what clients may hold of a server, how long, and what is told to whoever comes then."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
import tempfile
import threading
import time

import httpx
import pytest
from serve_fakes import ScriptedEngine, ask

from vo3.serve.connections import Connection, Seen
from vo3.serve.errors import ApiError
from vo3.serve.settings import Limits
from vo3.serve.uploads import Uploads

PATH = "/v1/chat/completions"


def test_too_large(serve):
    url = serve(limits={"body": 2000, "upload": 5000})
    got = httpx.post(url + PATH, json=ask(text="x" * 3000))
    assert (got.status_code, got.json()["error"]["code"]) == (413, "too_large")

    def endless():
        for _ in range(1000):
            yield b"x" * 1000

    headers = {"content-type": "application/json"}
    assert httpx.post(url + PATH, content=endless(), headers=headers).status_code == 413
    got = httpx.post(url + "/v1/files", files={"file": b"x" * 100_000})
    assert got.status_code == 413 and "upload" in got.json()["error"]["message"]
    got = httpx.post(url + "/v1/files", files={"file": b"x" * 6000})
    assert got.status_code == 413


def test_a_question_that_no_context_holds_reaches_no_engine(serve):
    engine = ScriptedEngine()
    url = serve(engine)
    most = 16 * engine.max_length
    long = "x" * (most // 2 + 1)
    for body in (
        ask(text="x" * (most + 1)),
        ask(text=long, vo3={"options": {"A": "a", "B": long}}),
        ask(text=long, vo3={"options": ["a", long]}),
        ask(text=long + "\nA. a\nB. " + long),
    ):
        got = httpx.post(url + PATH, json=body)
        error = got.json()["error"]
        assert (got.status_code, error["code"]) == (413, "text_too_long")
        assert (
            f"{most:,}" in error["message"] and f"{engine.max_length:,} tokens" in error["message"]
        )
    assert not engine.jobs
    assert httpx.post(url + PATH, json=ask(text="x" * most)).status_code == 200


def test_large_requests_take_turns(serve):
    """What all requests hold is bounded, however many may wait; what one held is free again when it is done."""
    engine = ScriptedEngine()
    engine.hold.set()
    url = serve(engine, limits={"slots": 2, "queue": 10, "bodies": 10_000})
    large = ask(text="x" * 8000)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        first = threads.submit(httpx.post, url + PATH, json=large)
        wait_for(lambda: len(engine.jobs) == 1)
        got = httpx.post(url + PATH, json=large)
        assert (got.status_code, got.json()["error"]["code"]) == (429, "requests_busy")
        small = threads.submit(httpx.post, url + PATH, json=ask())
        engine.hold.clear()
        assert first.result().status_code == small.result().status_code == 200
    assert httpx.post(url + PATH, json=large).status_code == 200


def test_too_long_and_too_slow(serve):
    got = httpx.post(serve(limits={"duration": 10.0}) + PATH, json=ask())
    assert (got.status_code, got.json()["error"]["code"]) == (413, "video_too_long")
    engine = ScriptedEngine()
    engine.hold.set()
    url = serve(engine, limits={"request_s": 0.5})
    for stream in (False, True):
        got = httpx.post(url + PATH, json=ask(stream=stream))
        assert (got.status_code, got.json()["error"]["code"]) == (504, "timeout")
    wait_for(lambda: len(engine.left) == 2)


def test_a_client_that_reads_nothing_holds_its_place_no_longer_than_others(serve):
    """Its answer does not fit the buffers on its way: the handler itself waits, and something else has to end it."""
    engine = ScriptedEngine()
    url = serve(engine, limits={"request_s": 3.0, "bodies": 10_000}, wire={"send_buffer": 4096})
    large = ask(text="x" * 8000, stream=True, vo3={"events": "html"})
    body = json.dumps(large).encode()
    with connected(url) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        began = time.monotonic()
        stuck.sendall(head.encode() + body)
        wait_for(lambda: httpx.get(url + "/health").json()["running"] == 0 and engine.jobs)
        got = httpx.post(url + PATH, json=ask(text="x" * 8000))
        if time.monotonic() < began + 3:  # else this machine has had no time for it
            assert (got.status_code, got.json()["error"]["code"]) == (429, "requests_busy")
        wait_for(lambda: httpx.post(url + PATH, json=ask(text="x" * 8000)).status_code == 200)


def test_pictures_that_nobody_reads_keep_their_place(serve):
    """They are frames in memory: else every slow client would add its own."""
    engine = ScriptedEngine()
    wire = {"send_buffer": 4096}
    url = serve(engine, limits={"slots": 1, "queue": 0, "request_s": 60.0}, wire=wire)
    body = json.dumps(ask(stream=True, vo3={"events": "html"})).encode()
    with connected(url) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        stuck.sendall(head.encode() + body)
        wait_for(lambda: engine.jobs and httpx.get(url + "/health").json()["running"] == 0)
        got = httpx.post(url + PATH, json=ask())
        assert (got.status_code, got.json()["error"]["code"]) == (429, "queue_full")
    wait_for(lambda: httpx.post(url + PATH, json=ask()).status_code == 200)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_connection_of_a_client_that_reads_nothing_is_ended(serve, stream):
    """With its answer, which will not be read: closing would wait for that."""
    ended: list[int] = []

    class Hasty(Connection):
        idle_s = 0.3

        def connection_lost(self, exc):
            super().connection_lost(exc)
            ended.append(self.client[1])

    engine = ScriptedEngine()
    wire = {"send_buffer": 4096, "connection": Hasty}
    url = serve(engine, limits={"request_s": 1.0}, wire=wire)
    body = json.dumps(ask(text="x" * 30_000, stream=stream, vo3={"events": "html"})).encode()
    with connected(url) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        stuck.sendall(head.encode() + body)
        wait_for(lambda: stuck.getsockname()[1] in ended)
    assert engine.jobs and httpx.get(url + "/health").json()["running"] == 0


_A, _B = object(), object()


@pytest.mark.parametrize(
    ("before", "now", "stuck"),
    [
        # The handler waits all the time: what is queued can become less alone.
        (Seen(_A, False, True, 0, 90_000), Seen(_A, False, True, 0, 90_000), True),
        (Seen(_A, False, True, 0, 90_000), Seen(_A, False, True, 0, 89_500), True),
        (Seen(_A, False, True, 0, 90_000), Seen(_A, False, True, 0, 70_000), False),
        # It went on in between, so the client has read.
        (Seen(_A, False, True, 0, 90_000), Seen(_A, False, True, 1, 95_000), False),
        # It is still at work: it may have written what the client has read.
        (Seen(_A, False, False, 0, 900), Seen(_A, False, False, 0, 900), False),
        (Seen(_A, False, False, 0, 900), Seen(_A, True, False, 0, 900), False),
        # All is written.
        (Seen(_A, True, False, 0, 900), Seen(_A, True, False, 0, 900), True),
        (Seen(_A, True, False, 0, 900), Seen(_B, True, False, 0, 900), False),
        (Seen(_A, True, False, 0, 900), Seen(_A, True, False, 0, 0), False),
        (Seen(None, True, False, 0, 0), Seen(None, True, False, 0, 0), False),
    ],
)
def test_which_clients_are_given_up(before, now, stuck):
    assert now.is_stuck(before, 10.0) == stuck


def test_a_connection_that_asks_for_nothing_is_ended(serve):
    """One that is silent, one that sends a letter of a header now and then, before and after a request; one that only takes its time goes on."""

    class Hasty(Connection):
        idle_s = 0.6

    engine = ScriptedEngine()
    engine.hold.set()
    url = serve(engine, wire={"connection": Hasty})
    request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        slow = threads.submit(httpx.post, url + PATH, json=ask(), timeout=20)
        for first, more in ((b"", b""), (b"GET / HTTP/1.1\r\nX: ", b"x"), (request, b"x")):
            with connected(url) as raw:
                raw.sendall(first)
                trickle(raw, more)
        engine.hold.clear()
        assert slow.result().status_code == 200


def test_an_upload_that_trickles_in_is_given_up(serve):
    with connected(serve(limits={"read_s": 0.5})) as raw:
        raw.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 99999\r\n\r\n"
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        )
        assert trickle(raw, b"x", until=b"too_slow").startswith(b"HTTP/1.1 408 ")


def test_an_upload_is_deleted_once(serve):
    """Whoever comes second is told so, also at the same moment."""
    uploads = Uploads(Limits())
    for _ in range(50):
        name, file = uploads.write()
        with file:
            file.write(b"x")
        uploads.keep(name, "a", "user_data")
        start, ends = threading.Barrier(4), []

        def remove(name=name, start=start, ends=ends):
            start.wait()
            try:
                uploads.remove(name)
                ends.append("gone")
            except ApiError as error:
                ends.append(error.code)

        threads = [threading.Thread(target=remove) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ends) == ["file_not_found"] * 3 + ["gone"]
    uploads.close()


def test_an_upload_that_is_deleted_is_still_asked_about(serve, videos, tmp_path, monkeypatch):
    """By the question that is under way and by the one that waits; then nothing is left of it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = ScriptedEngine()
    engine.hold.set()
    url = serve(engine, limits={"slots": 1})
    got = httpx.post(url + "/v1/files", files={"file": (videos / "a.mp4").read_bytes()}).json()
    [file] = tmp_path.glob(f"*/{got['id']}")
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(httpx.post, url + PATH, json=ask(got["id"])) for _ in range(2)]
        wait_for(lambda: httpx.get(url + "/health").json()["waiting"] == 1 and engine.jobs)
        assert httpx.delete(f"{url}/v1/files/{got['id']}").status_code == 200
        assert httpx.post(url + PATH, json=ask(got["id"])).status_code == 404
        engine.hold.clear()
        assert [one.result().status_code for one in asked] == [200, 200]
    wait_for(lambda: not file.exists())


def test_a_full_queue_says_when_to_come_back(serve):
    engine = ScriptedEngine()
    engine.hold.set()
    url = serve(engine, limits={"slots": 1, "queue": 2})
    with httpx.Client() as http:
        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            waiting = [threads.submit(httpx.post, url + PATH, json=ask()) for _ in range(3)]
            wait_for(lambda: http.get(url + "/health").json()["waiting"] == 2)
            got = http.post(url + PATH, json=ask())
            assert (got.status_code, got.json()["error"]["code"]) == (429, "queue_full")
            assert 1 <= int(got.headers["retry-after"]) <= 60
            engine.hold.clear()
            assert [one.result().status_code for one in waiting] == [200, 200, 200]
        assert http.post(url + PATH, json=ask()).status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_frees_its_place(serve, stream):
    engine = ScriptedEngine()
    engine.hold.set()
    url = serve(engine, limits={"slots": 1, "queue": 1})
    for _ in range(2):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + PATH, json=ask(stream=stream), timeout=0.4)
    wait_for(lambda: len(engine.left) == 2)
    engine.hold.clear()
    assert httpx.post(url + PATH, json=ask()).status_code == 200
    assert "vo3_clients_left_total 2.0" in httpx.get(url + "/metrics").text


def connected(url: str):
    """A bare connection to a server."""
    host, _, port = url.removeprefix("http://").partition(":")
    return contextlib.closing(socket.create_connection((host, int(port)), 10))


def trickle(raw: socket.socket, piece: bytes, *, until: bytes | None = None) -> bytes:
    """Sends a piece ten times a second until the server says something or (None) ends the connection, which it has to; gives all it said."""
    said, end = b"", time.monotonic() + 15
    raw.settimeout(0.1)
    while time.monotonic() < end:
        if until is not None and until in said:
            return said
        try:
            got = raw.recv(4096)
            if not got:
                return said
            said += got
        except TimeoutError:
            pass
        except OSError:
            return said
        with contextlib.suppress(OSError):
            raw.sendall(piece)
    raise AssertionError(f"the connection goes on; it said {said}")


def wait_for(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
