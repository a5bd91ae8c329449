"""Mutated requests and mutated videos against a server in a process of its own: it lives, answers clearly, and opens nothing that it may not."""

from __future__ import annotations

import copy
import ctypes
import json
import os
import pathlib
import random
import socket
import struct
import subprocess
import sys
import threading

import httpx
import pytest
import rollout_fakes
from serve_fakes import ask, data_url

PATH = "/v1/chat/completions"
REQUESTS = int(os.environ.get("VO3_FUZZ_REQUESTS", "2000"))
VIDEOS = int(os.environ.get("VO3_FUZZ_VIDEOS", "1000"))
_IN_OPEN = 0x20
pytestmark = pytest.mark.soak


class Watched:
    """Files and an address that must not be touched; Linux tells of every opening, by whatever library."""

    def __init__(self, files):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK)
        if self._fd < 0:
            pytest.skip("inotify is not to be had here")
        for file in files:
            assert self._libc.inotify_add_watch(self._fd, str(file).encode(), _IN_OPEN) > 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.connected = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                self._socket.accept()[0].close()
            except OSError:
                return
            self.connected += 1

    @property
    def opened(self) -> int:
        """Openings so far."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return 0
        return len(data) // struct.calcsize("iIII")

    def close(self):
        os.close(self._fd)
        self._socket.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a video, and secrets beside it that are watched."""
    base = tmp_path_factory.mktemp("fuzz")
    root = base / "root"
    root.mkdir()
    rollout_fakes.write_mp4(root / "a.mp4", seconds=2, size=(32, 48))
    for name in ("secret.mp4", "secret.ts", "secret.sub", "root2.mp4"):
        (base / name).write_bytes((root / "a.mp4").read_bytes())
    (root / "link.mp4").symlink_to(base / "secret.mp4")
    watched = Watched([base / n for n in ("secret.mp4", "secret.ts", "secret.sub", "root2.mp4")] + ["/etc/hostname"])  # fmt: skip
    yield base, root, watched
    watched.close()


@pytest.fixture(scope="module")
def server(world):
    """(process, address)"""
    _, root, _ = world
    script = pathlib.Path(rollout_fakes.__file__).with_name("serve_fakes.py")
    command = [sys.executable, str(script), str(root)]
    env = os.environ | {"PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(script.parent.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http"), "the server did not start"
            yield process, url
        finally:
            process.kill()


def rss(url: str) -> float:
    """MiB of the server's process."""
    text = httpx.get(url + "/metrics").text
    line = next(x for x in text.splitlines() if x.startswith("process_resident_memory_bytes "))
    return float(line.split()[1]) / 2**20


def check(answer: httpx.Response) -> int:
    """The status, of an answer as it should be."""
    status = answer.status_code
    assert status < 500 or (status == 500 and answer.json()["error"]["request_id"]), answer.text
    if status != 200:
        error = answer.json()["error"]
        assert error["message"] and error["request_id"] == answer.headers["x-request-id"]
        assert len(error["message"]) < 800
    return status


# Requests.


def lists(base, watched) -> list[bytes]:
    """Files that are no videos and name others."""
    secret, web = base / "secret.ts", watched.address
    return [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n".encode(),
        f"#EXTM3U\n#EXTINF:9,\nhttp://{web}/a.ts\n".encode(),
        f"ffconcat version 1.0\nfile {secret}\n".encode(),
        f"ffconcat version 1.0\nfile 'file:{secret}'\n".encode(),
        f"\n\n{' ' * 40}#EXTM3U\n#EXTINF:9,\nfile://{secret}\n".encode(),
        f'<?xml version="1.0"?><MPD><Period><BaseURL>{secret}</BaseURL></Period></MPD>'.encode(),
        f"{' ' * 64}<MPD><BaseURL>http://{web}/</BaseURL></MPD>".encode(),
        f"# VobSub index file, v7\nid: en, index: 0\n{secret}".encode(),
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video {web.split(':')[1]} RTP/AVP 96\n".encode(),
        f"<svg xmlns='http://www.w3.org/2000/svg'><image href='file://{secret}'/></svg>".encode(),
    ]  # fmt: skip


def seeds(base, root, watched) -> list[dict]:
    secret = base / "secret.mp4"
    paths = [
        "a.mp4", "../secret.mp4", str(secret), f"file://{secret}", "link.mp4", "../root2.mp4", "/etc/hostname",
        f"concat:{secret}|{secret}", f"subfile,,start,0,end,0,,:{secret}", f"http://{watched.address}/a.mp4",
        f"https://{watched.address}/", "file-" + "0" * 32, f"crypto:{secret}", f"pipe:{secret}", "/dev/stdin", "/proc/self/environ",
        f"a.mp4\0{secret}", f"..%2f..%2f{secret}", f"\\\\{watched.address}\\a.mp4", "data:video/mp4;base64,AAAA",
    ]  # fmt: skip
    videos = [*paths, *(data_url(text) for text in lists(base, watched))]
    bodies = [ask(video) for video in videos]
    bodies += 6 * [
        ask(stream=True, vo3={"events": "html"}, stream_options={"include_usage": True}),
        ask(temperature=0.5, top_p=0.5, seed=3, max_tokens=5, vo3={"options": ["a", "b"], "max_turns": 2}),
        ask(text="What?\nA. x\nB. y"),
    ]  # fmt: skip
    return bodies


_VALUES = [
    None, True, False, 0, -1, 1e308, -1e308, 2**63, 10**400, 0.1, "", "x", "\0", "\ud800", "a" * 5000, [], {}, [[]], [None], {"a": {}},
    "file", "text", "video_url", "image_url", "assistant", "../secret.mp4", {"url": 5}, float("nan"),
]  # fmt: skip


def nodes(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()  # fmt: skip
    for key, child in items:
        yield from nodes(child, (*path, key))


def mutated(rng: random.Random, body: dict) -> bytes:
    """A body with some nodes replaced, removed or doubled, and maybe some bytes changed."""
    body = json.loads(json.dumps(body))
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        path = rng.choice([p for p in nodes(body) if p] or [()])
        if not path:
            break
        parent = body
        for key in path[:-1]:
            parent = parent[key]
        action = rng.random()
        if action < 0.6:
            parent[path[-1]] = copy.deepcopy(rng.choice(_VALUES))
        elif action < 0.8:
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.extend([copy.deepcopy(parent[path[-1]])] * rng.choice([1, 70]))
        else:
            name = rng.choice(["x", "tools", "n", "stop", "vo3", "messages"])
            parent[name] = copy.deepcopy(parent[path[-1]])
    data = bytearray(json.dumps(body).encode("utf-8", "surrogatepass"))
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.choice([0, 1, 1, 9])] = rng.randbytes(rng.choice([0, 1, 3]))
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.05 else data)


def test_mutated_requests(server, world):
    process, url = server
    base, root, watched = world
    rng, found = random.Random(9), {}
    bodies = seeds(base, root, watched)
    _ = watched.opened  # those of writing
    with httpx.Client(timeout=60) as client:
        client.post(url + PATH, json=ask())
        before = rss(url)
        for number in range(REQUESTS):
            body = mutated(rng, bodies[number % len(bodies)])
            headers = {"content-type": "application/json"}
            if rng.random() < 0.05:
                headers |= {rng.choice(["authorization", "origin", "host", "content-type"]): rng.choice(["", "[", "Bearer x", "; x", "x" * 9000])}  # fmt: skip
            status = check(client.post(url + PATH, content=body, headers=headers))
            found[status] = found.get(status, 0) + 1
            assert process.poll() is None, "the server is gone"
        for number in range(REQUESTS // 20):  # what is no HTTP at all
            with socket.create_connection(url[7:].split(":"), 10) as raw:
                line = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {rng.choice(['5', '-1', 'x', '9' * 30])}\r\n\r\n".encode()
                raw.sendall(mutated(rng, {"a": 1}) if number % 2 else line[: rng.randrange(1, len(line))])  # fmt: skip
        assert check(client.post(url + PATH, json=ask())) == 200
        after = rss(url)
    print(f"requests by status: {dict(sorted(found.items()))}; RSS {before:.0f} -> {after:.0f} MiB")
    assert found[200] and found[400] and found[403] and found.get(500, 0) == 0
    assert watched.opened == watched.connected == 0
    assert after < before + 200


# Videos.


def containers(folder: pathlib.Path) -> list[bytes]:
    """The same short film in several containers."""
    files = []
    for suffix in ("mp4", "mkv", "avi", "ts", "mov"):
        path = folder / f"seed.{suffix}"
        rollout_fakes.write_mp4(path, seconds=2, size=(32, 48), seed=len(files))
        files.append(path.read_bytes())
    return files


def broken(rng: random.Random, data: bytes) -> bytes:
    """A file with bytes changed, cut, moved or doubled; often in its header."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 40])):
        near = rng.choice([64, 1024, len(out)])
        tail = rng.random() < 0.5
        at = rng.randrange(max(1, min(near, len(out))))
        at = max(0, len(out) - 1 - at) if tail else at
        action = rng.random()
        if action < 0.4:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif action < 0.6:
            out[at : at + 4] = rng.choice(
                [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", rng.randbytes(4)]
            )
        elif action < 0.7:
            del out[at : at + rng.randrange(1, 200)]
        elif action < 0.8:
            out[at:at] = out[at : at + rng.randrange(1, 200)]
        elif action < 0.9:
            del out[max(1, at) :]
        else:
            out[at : at + 16] = rng.choice([b"moovtrakmdiaminf", b"drefurl file:///", b"\x1a\x45\xdf\xa3" * 4, b"#EXTM3U\n#EXTINF:"])  # fmt: skip
    return bytes(out)


def test_mutated_videos(server, world):
    process, url = server
    base, root, watched = world
    rng, found = random.Random(10), {}
    films = containers(base) + lists(base, watched)
    _ = watched.opened
    with httpx.Client(timeout=120) as client:
        client.post(url + PATH, json=ask())
        before = rss(url)
        for number in range(VIDEOS):
            data = broken(rng, films[number % len(films)])
            if not data:
                continue
            way = rng.randrange(3)
            if way == 0:
                (root / "mutant.mp4").write_bytes(data)
                video = "mutant.mp4"
            elif way == 1:
                video = data_url(data)
            else:
                video = client.post(url + "/v1/files", files={"file": data}).json()["id"]
            status = check(answer := client.post(url + PATH, json=ask(video)))
            assert status < 500, (answer.text, data)
            found[status] = found.get(status, 0) + 1
            assert process.poll() is None, "the server is gone"
        assert check(client.post(url + PATH, json=ask())) == 200
        after = rss(url)
    print(f"videos by status: {dict(sorted(found.items()))}; RSS {before:.0f} -> {after:.0f} MiB")
    assert found[200] and found[400] and set(found) <= {200, 400, 413}
    assert watched.opened == watched.connected == 0
    assert after < before + 300
