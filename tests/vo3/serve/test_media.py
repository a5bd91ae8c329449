"""Which files and hosts a request may reach, and that no other is ever opened."""

from __future__ import annotations

import builtins
import contextlib
import http.server
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_fakes import CROP, data_url

from vo3.serve import fetch, media
from vo3.serve.errors import ApiError
from vo3.serve.settings import Limits, Settings, resolve_roots
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


def test_no_roots_no_files():
    with pytest.raises(ApiError, match="reads no files") as caught:
        media.under_root("a", (), param="x")
    assert caught.value.status == 403


def test_a_root_that_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        resolve_roots([str(tmp_path / "none")])


def test_errors_speak_of_the_video_as_its_client_does(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(VideoError, match=r"^mine is not a video") as caught:
        media.File("mine", str(tmp_path / "a.mp4")).open(CROP, 10)
    assert str(tmp_path) not in str(caught.value)


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
        pictures.open(CROP, 10)
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
    assert uploads.find(kept[1].id, param="x") == ("1.mp4", kept[1].path)
    for name in ("file-../../etc/passwd", "file-" + "a" * 32, "file-" + "0" * 31 + "\n", ""):
        with pytest.raises(ApiError):
            uploads.get(name)
    uploads.close()
    assert not os.path.exists(kept[2].path)


# The web.


class Handler(http.server.BaseHTTPRequestHandler):
    video = b""

    def do_GET(self):
        if self.path == "/slow":
            with contextlib.suppress(OSError):
                self.send_response(200)
                self.end_headers()
                for _ in range(30):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            return
        code = {"/a.mp4?x=1%202": 200, "/moved": 302}.get(self.path, 404)
        self.send_response(code)
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


def opened(url: str, hosts, **limits):
    settings = Settings("m", hosts=frozenset(hosts), limits=Limits(**limits))
    found = media.video(url, settings, Uploads(settings.limits), param="x")
    try:
        return found.open(CROP, 1.0)
    finally:
        found.close()
        assert found._file is None or not os.path.exists(found._file)


def test_an_allowed_host_is_fetched_from(web):
    assert opened(web + "/a.mp4?x=1%202", ["127.0.0.1"]).duration == 120


@pytest.mark.parametrize(
    ("path", "hosts", "status", "words"),
    [
        ("/a.mp4", [], 403, "--allow-host"),
        ("/a.mp4", ["example.com"], 403, "--allow-host"),
        ("/none", ["127.0.0.1"], 400, "answered 404"),
        ("/moved", ["127.0.0.1", "169.254.169.254"], 400, "redirects are not followed"),
        ("/slow", ["127.0.0.1"], 400, "took more than 1 s"),
    ],
)
def test_what_is_not_fetched(web, path, hosts, status, words):
    with pytest.raises(ApiError, match=words) as caught:
        opened(web + path, hosts)
    assert caught.value.status == status


def test_a_video_on_the_web_that_is_too_large(web):
    with pytest.raises(ApiError) as caught:
        opened(web + "/a.mp4?x=1%202", ["127.0.0.1"], upload=1000)
    assert caught.value.status == 413


def test_a_name_that_leads_to_a_private_address(web):
    """Who owns a name decides where it leads; only an address that is itself allowed may be private."""
    with pytest.raises(ApiError, match="private address") as caught:
        opened(web.replace("127.0.0.1", "localhost") + "/a.mp4", ["localhost"])
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
