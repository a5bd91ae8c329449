"""Which files and hosts a request may reach, and that no other is ever opened."""

from __future__ import annotations

import builtins
import contextlib
import http.server
import os
import socket
import threading
import time
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from serve_fakes import CROP, data_url

from vo3.serve import fetch, media
from vo3.serve.commands import ServeError
from vo3.serve.errors import ApiError
from vo3.serve.launch import host_of
from vo3.serve.settings import Limits, Settings, resolve_roots
from vo3.serve.shelf import Shelf
from vo3.serve.uploads import Uploads
from vo3.video import VideoError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    base = tmp_path_factory.mktemp("media")
    root = base / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "v.mp4").write_bytes(b"x")
    (base / "root-secret").mkdir()
    (base / "root-secret" / "v.mp4").write_bytes(b"x")
    (root / "up").symlink_to(base)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    return root


def found(root, given: str) -> str:
    return media.under_root(given, resolve_roots([str(root)]), param="x")


@pytest.mark.parametrize(
    "given",
    ["a/b/v.mp4", "./a/../a/b/v.mp4", "{root}/a/b/v.mp4", "up/root/a/b/v.mp4", "a//b///v.mp4"],
)
def test_inside(root, given):
    path = found(root, given.format(root=root))
    assert path == os.path.realpath(root / "a" / "b" / "v.mp4")


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("../root-secret/v.mp4", 403),  # begins with the root's name
        ("{root}-secret/v.mp4", 403),
        ("up/root-secret/v.mp4", 403),
        ("up", 403),
        ("/etc/passwd", 403),
        ("/", 403),
        ("~/.ssh/id_rsa", 404),  # a folder named "~" under the root, which is not there
        ("a/b", 404),
        (".", 404),
        ("loop", 404),
        ("pipe", 404),
        ("a" * 5000, 404),
        ("%2e%2e/etc/passwd", 404),
    ],
)
def test_outside_and_not_there(root, given, status):
    with pytest.raises(ApiError) as caught:
        found(root, given.format(root=root))
    assert caught.value.status == status
    assert len(caught.value.message) < 400


_PIECE = st.sampled_from(["..", ".", "a", "b", "v.mp4", "up", "root", "root-secret", "etc", "~", "", "loop", "\\..", "//", "%2e%2e", "file:", "\n"])  # fmt: skip


@given(st.lists(_PIECE, max_size=8), st.booleans())
def test_whatever_is_given_leads_inside_or_nowhere(root, pieces, absolute):
    try:
        path = found(root, ("/" if absolute else "") + "/".join(pieces))
    except ApiError:
        return
    assert path.startswith(os.path.realpath(root) + os.sep)
    assert os.path.realpath(path) == path


def test_a_file_may_be_called_as_uploads_are(tmp_path):
    (tmp_path / "file-001.mp4").write_bytes(b"x")
    settings = Settings("m", roots=resolve_roots([str(tmp_path)]))
    found = media.video("file-001.mp4", settings, Uploads(settings.limits), param="x")
    assert found.path == os.path.realpath(tmp_path / "file-001.mp4")


def test_no_roots_no_files():
    with pytest.raises(ApiError, match="reads no files") as caught:
        media.under_root("a", (), param="x")
    assert caught.value.status == 403


def test_a_root_that_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        resolve_roots([str(tmp_path / "none")])


SHELF = Shelf(CROP, timeout_s=10, duration=3600)


def test_errors_speak_of_the_video_as_its_client_does(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(VideoError, match=r"^mine is not a video") as caught:
        SHELF.open(media.File("mine", str(tmp_path / "a.mp4")))
    assert str(tmp_path) not in str(caught.value)


def test_errors_that_come_later_name_no_path_either(tmp_path, videos, monkeypatch):
    """What is wrong with a later picture, or a file that goes while it is open, shows when it is looked at."""
    Image.new("RGB", (56, 56)).save(tmp_path / "x.png")
    good = (tmp_path / "x.png").read_bytes()
    pictures = media.Pictures("3 pictures", [(".png", good), (".png", b"no picture")] * 2, 1.0)
    opened = SHELF.open(pictures)
    with pytest.raises(VideoError, match=r"the frame image 00001\.png cannot be read") as caught:
        opened.overview()
    assert "vo3-frames" not in str(caught.value)
    pictures.close()
    short = media.Bytes("a film", (videos / "a.mp4").read_bytes())
    opened = SHELF.open(short)
    monkeypatch.setattr(opened._video, "overview", lambda: (_ for _ in ()).throw(VideoError("corrupt", "it breaks off", "")))  # fmt: skip
    with pytest.raises(VideoError, match="it breaks off") as caught:
        opened.overview()
    assert (
        caught.value.__cause__ is not caught.value
    )  # whoever looks for the first cause would look for ever
    fetched = media.Fetched("http://films.example/a.mp4", None, 1e9)
    fetched._file = str(tmp_path / "vo3-fetched-x")
    told = fetched.told(VideoError("corrupt", f"{fetched._file} breaks off", f"mend {fetched._file}"))  # fmt: skip
    assert (told.message, told.remedy) == ("http://films.example/a.mp4 breaks off", "mend http://films.example/a.mp4")  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "data:video/mp4,abc",
        "data:video/mp4;base64",
        "data:",
        "data:video/mp4;base64,AB=C",
        "data:video/mp4;base64,????",
        "data:video/mp4;base64,AAA",
    ],
)
def test_data_urls_that_are_none(url):
    with pytest.raises(ApiError):
        media.decode(url, limit=100, param="x")


def test_data_urls():
    assert media.decode(data_url(b"abc"), limit=3, param="x") == ("video/mp4", b"abc")
    assert media.decode("data:VIDEO/WebM;codecs=vp9;BASE64,AAAA", limit=3, param="x")[0] == "video/webm"  # fmt: skip
    with pytest.raises(ApiError) as caught:
        media.decode(data_url(b"x" * 200), limit=100, param="x")
    assert caught.value.status == 413


def test_pictures_are_removed_with_the_request():
    pictures = media.Pictures("2 pictures", [(".png", b"no picture")] * 2, 1.0)
    with pytest.raises(VideoError, match=r"the frame image 00000\.png cannot be read"):
        SHELF.open(pictures)
    folder = pictures._folder.name
    assert len(os.listdir(folder)) == 2
    pictures.close()
    assert not os.path.exists(folder)


def test_uploads_make_room_and_go_with_the_server():
    uploads = Uploads(Limits(upload=10, uploads=25))
    kept = []
    for number in range(3):
        name, file = uploads.write()
        with file:
            file.write(bytes([number]) * 10)
        kept.append(uploads.keep(name, f"{number}.mp4", "user_data"))
    with pytest.raises(ApiError, match="upload the file again"):
        uploads.get(kept[0].id)
    assert uploads.get(kept[1].id, param="x") is kept[1]
    for name in ("file-../../etc/passwd", "file-" + "a" * 32, "file-" + "0" * 31 + "\n", ""):
        with pytest.raises(ApiError):
            uploads.get(name)
    uploads.close()
    assert not os.path.exists(kept[2].path)


def test_uploads_stay_while_they_are_held():
    """By whoever asks about them: no room is made of them, and what is deleted goes with its last holder."""
    uploads = Uploads(Limits(upload=10, uploads=25))

    def keep():
        name, file = uploads.write()
        with file:
            file.write(b"x" * 10)
        return uploads.keep(name, "a.mp4", "user_data")

    first, second = keep(), keep()
    holders = [media.Uploaded.find(first.id, uploads, param="x") for _ in range(2)]
    for holder in holders:
        holder.hold()
    third = keep()  # in the place of the second, though the first is older
    with pytest.raises(ApiError, match="upload the file again"):
        uploads.get(second.id)
    uploads.remove(first.id)
    with pytest.raises(ApiError) as caught:
        media.Uploaded.find(first.id, uploads, param="x")
    assert caught.value.status == 404
    last = media.Uploaded.find(third.id, uploads, param="x")
    last.hold()
    with pytest.raises(ApiError, match="leave no room") as caught:
        keep()
    assert (caught.value.status, len(os.listdir(os.path.dirname(first.path)))) == (429, 2)
    for _ in range(2):
        assert os.path.exists(first.path)
        holders[0].close()  # twice, and it counts once
    holders[1].close()
    assert not os.path.exists(first.path)
    last.close()
    assert os.path.exists(third.path)
    keep()
    lost = media.Uploaded.find(third.id, uploads, param="x")
    uploads.remove(third.id)
    with pytest.raises(ApiError, match="upload the file again"):
        lost.hold()
    assert not os.path.exists(third.path)
    uploads.close()
    holders[0].close()


# The web.


class Handler(http.server.BaseHTTPRequestHandler):
    video = b""

    def do_GET(self):
        if self.path in ("/slow", "/slow-head"):
            with contextlib.suppress(OSError):
                if self.path == "/slow":
                    self.send_response(200)
                    self.end_headers()
                else:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
                for _ in range(600):  # longer than any test waits
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            return
        code = {"/a.mp4?x=1%202": 200, "/cut.mp4": 200, "/moved": 302}.get(self.path, 404)
        self.send_response(code)
        if self.path == "/cut.mp4":
            self.send_header("Content-Length", str(len(self.video) + 1))
        self.send_header("Location", "http://169.254.169.254/latest")
        self.end_headers()
        if code == 200:
            self.wfile.write(self.video)

    def log_message(self, *args):
        pass


@pytest.fixture
def web(videos):
    Handler.video = (videos / "a.mp4").read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def allowed(url: str) -> str:
    """Host and port of an address."""
    return urllib.parse.urlsplit(url).netloc


def opened(url: str, hosts, **limits):
    settings = Settings("m", hosts=frozenset(hosts), limits=Limits(**limits))
    found = media.video(url, settings, Uploads(settings.limits), param="x")
    try:
        return found.open(CROP, 1.0)
    finally:
        found.close()
        assert found._file is None or not os.path.exists(found._file)


def test_an_allowed_host_is_fetched_from(web):
    assert opened(web + "/a.mp4?x=1%202", [allowed(web)]).duration == 120


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://films.example/a.mp4", "films.example"),
        ("https://films.example:443/a.mp4", "films.example"),
        ("https://films.example:8443/a.mp4", "films.example:8443"),
        ("https://films.example:80/a.mp4", "films.example:80"),
        ("http://films.example/a.mp4", "films.example"),
        ("http://films.example:443/a.mp4", "films.example:443"),
        ("https://[2606:4700::1111]/a.mp4", "[2606:4700::1111]"),
    ],
)
def test_a_host_is_called_by_its_name_without_the_schemes_own_port(monkeypatch, url, host):
    """What is sent after TLS has begun, which stands aside here."""
    ours, theirs = socket.socketpair()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"

    class Context:
        def wrap_socket(self, sock, server_hostname):
            return sock

    monkeypatch.setattr(fetch.ssl, "create_default_context", Context)
    monkeypatch.setattr(fetch, "_resolve", lambda url: ["203.0.113.1"])
    monkeypatch.setattr(socket, "create_connection", lambda *_: ours)
    with contextlib.closing(theirs):
        theirs.sendall(answer)
        hosts = {host_of(urllib.parse.urlsplit(url).netloc)}
        found = fetch.check(url, hosts, param="x")
        os.unlink(fetch.download(found, limit=10, timeout_s=5))
        sent = theirs.recv(4096).decode()
    assert f"\r\nHost: {host}\r\n" in sent


def test_a_host_is_fetched_from_at_the_port_that_is_allowed_alone(web):
    """Who may name a host may not knock at all of its doors."""
    for url in (web + "/a.mp4", "https://127.0.0.1:80/a.mp4", "http://127.0.0.1:443/a.mp4"):
        with pytest.raises(ApiError, match=r"--allow-host 127\.0\.0\.1:\d+") as caught:
            fetch.check(url, {"127.0.0.1"}, param="x")
        assert caught.value.status == 403
    for url, hosts in (
        ("http://127.0.0.1/a", {"127.0.0.1"}),
        ("https://EXAMPLE.com:443/a", {"example.com"}),
        ("http://[::1]:81/a", {host_of("[::1]:81")}),
        ("http://[::1]/a", {host_of("::1")}),
        ("https://example.com:8443/a", {host_of("Example.com:8443")}),
    ):
        assert fetch.check(url, hosts, param="x").text == url
    for text in ("https://example.com", "example.com/videos", "example.com:x", "", "a@example.com"):
        with pytest.raises(ServeError, match="--allow-host"):
            host_of(text)


def test_which_addresses_are_the_internets():
    for address in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1%eth0", "fc00::1",
                    "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "ff02::1", "2002:7f00:1::"):  # fmt: skip
        assert not fetch.is_public(address), address
    for address in ("8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"):
        assert fetch.is_public(address), address


def test_a_name_is_looked_up_once_and_the_next_address_is_tried(web, monkeypatch):
    """What a name leads to a moment later does not matter: the addresses that were checked are connected to."""
    looked = []

    def getaddrinfo(host, port, **_):
        looked.append(host)
        last = "127.0.0.1" if len(looked) == 1 else "169.254.169.254"
        return [(0, 0, 0, "", (address, port)) for address in ("127.0.0.2", last)]

    connected = []
    connect = socket.create_connection

    def create_connection(address, *rest):
        connected.append(address[0])
        if address[0] == "127.0.0.2":
            raise ConnectionRefusedError
        monkeypatch.undo()
        return connect(address, *rest)

    monkeypatch.setattr(fetch, "is_public", lambda address: address.startswith("127."))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    port = urllib.parse.urlsplit(web).port
    assert opened(f"http://films.example:{port}/a.mp4?x=1%202", [f"films.example:{port}"]).duration == 120  # fmt: skip
    assert (looked, connected) == (["films.example"], ["127.0.0.2", "127.0.0.1"])


@pytest.mark.parametrize(
    ("path", "hosts", "status", "words"),
    [
        ("/a.mp4", [], 403, "--allow-host"),
        ("/a.mp4", ["example.com"], 403, "--allow-host"),
        ("/none", None, 400, "answered 404"),
        ("/moved", None, 400, "redirects are not followed"),
        ("/slow", None, 400, "took more than 1 s"),
        ("/slow-head", None, 400, "took more than 1 s"),
        ("/cut.mp4", None, 400, "cannot be fetched: IncompleteRead"),
    ],
)
def test_what_is_not_fetched(web, path, hosts, status, words):
    began = time.monotonic()
    with pytest.raises(ApiError, match=words) as caught:
        opened(web + path, [allowed(web), "169.254.169.254"] if hosts is None else hosts)
    assert caught.value.status == status
    assert time.monotonic() - began < 15  # the slow ones go on for 30 s


def test_without_a_network(monkeypatch):
    def getaddrinfo(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ApiError, match=r"the host films\.example is not known") as caught:
        opened("https://films.example/a.mp4", ["films.example"])
    assert (caught.value.status, caught.value.code) == (400, "fetch_failed")


def test_a_video_on_the_web_that_is_too_large(web):
    with pytest.raises(ApiError) as caught:
        opened(web + "/a.mp4?x=1%202", [allowed(web)], upload=1000)
    assert caught.value.status == 413


def test_a_name_that_leads_to_a_private_address(web):
    """Who owns a name decides where it leads; only an address that is itself allowed may be private."""
    named = web.replace("127.0.0.1", "localhost")
    with pytest.raises(ApiError, match="private address") as caught:
        opened(named + "/a.mp4", [allowed(named)])
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://[::1",
        "http://127.0.0.1:99999/",
        "http://user:secret@127.0.0.1/",
        "http://127.0.0.1/a\r\nHost: x",
        "http:/x",
        "http://evil.example\\@127.0.0.1/",
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(ApiError) as caught:
        fetch.check(url, {"127.0.0.1"}, param="x")
    assert caught.value.status in (400, 403)
    assert "secret" not in caught.value.message


def test_nothing_outside_is_opened(root, monkeypatch):
    """Checks open nothing at all."""

    def no(*args, **kwargs):
        raise AssertionError(f"opened {args}")

    monkeypatch.setattr(builtins, "open", no)
    monkeypatch.setattr(os, "open", no)
    for name in ("a/b/v.mp4", "../root-secret/v.mp4", "up/root-secret/v.mp4", "/etc/passwd"):
        with contextlib.suppress(ApiError):
            found(root, name)
