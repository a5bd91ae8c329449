"""A page for people to look at a sample of a run and say what is right.

    python -m data_prep.review DIR [--videos ROOT] [--each 8] [--port 8017]
    python -m data_prep.review DIR --apply        # writes trajectories.reviewed.jsonl and renews report.html

The page listens on this machine only, takes verdicts only with the token that it was served with, and shows only frames of
sampled rows. Verdicts land in the run's `rows.sqlite`.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import json
import secrets
import threading
import urllib.parse
from collections.abc import Sequence

import numpy as np
from etils import epath

from data_prep import report, sampling, verdicts, videos
from data_prep.jsonish import clock_text
from data_prep.pages import asset, document
from data_prep.schema import Record
from data_prep.store import Store
from vo3.video import CropPolicy, VideoCrop, VideoError
from vo3.viewer.markup import Markup, tag
from vo3.viewer.pictures import data_uri

_FRAMES = 4  # of a window
_LIMIT = 1 << 16  # bytes of a posted verdict


class Pictures:
    """Frames of the sampled rows' windows, read when they are asked for."""

    def __init__(self, items: Sequence[sampling.Item], root: str):
        self._records = {item.record.key: item.record for item in items}
        self._root = root
        self._lock = threading.Lock()
        self._read = functools.lru_cache(maxsize=256)(self._window)

    def times(self, window: tuple[float, float]) -> list[float]:
        """The times of a window's thumbnails, seconds."""
        return [float(t) for t in np.linspace(window[0], window[1], _FRAMES + 2)[1:-1]]

    def jpeg(self, key: str, window: int, frame: int) -> bytes | None:
        """One thumbnail; None when the row, the window or its video is not there."""
        record = self._records.get(key)
        windows = windows_of(record) if record is not None else []
        if not (0 <= window < len(windows) and 0 <= frame < _FRAMES):
            return None
        with self._lock:
            frames = self._read(key, window)
        return frames[frame] if frame < len(frames) else None

    def _window(self, key: str, number: int) -> list[bytes]:
        record = self._records[key]
        start, end = windows_of(record)[number]
        policy = CropPolicy(max_crop_frames=2 * _FRAMES)
        try:
            path = videos.below(self._root, record.triplet.video)
            video = VideoCrop(path, policy, frame_fps=record.triplet.frame_fps, timeout_s=20)
            clip = video.crop(start, max(end, start + 1.0), "coarse")
        except (VideoError, videos.PathError):
            return []
        picks = np.linspace(0, len(clip.frames) - 1, _FRAMES + 2).round().astype(int)[1:-1]
        uris = [data_uri(clip.frames[i], width=240) for i in picks]
        return [base64.b64decode(uri.partition(",")[2]) for uri in uris]


def windows_of(record: Record) -> list[tuple[float, float]]:
    """The windows that a row claims: its looks, or else its clues (the source's where stage 1 has not been)."""
    if record.generated is not None:
        looks = [s.window for s in record.generated.steps if s.window is not None]
        if looks:
            return looks
    clues = record.localised.clues if record.localised else record.triplet.clues
    return [(c.start, c.end) for c in clues]


def page(
    items: Sequence[sampling.Item],
    given: dict[tuple[str, str], str],
    *,
    token: str,
    pictures: Pictures,
    agreement: str,
) -> str:
    """The page.

    Args:
      items: what is shown.
      given: (key, stage) -> the last verdict.
      token: that verdicts must carry.
      pictures: names the thumbnails.
      agreement: a sentence on the verdicts so far.
    """
    groups = sorted({item.group for item in items})
    choices = [tag("option", "everything", value="")] + [tag("option", g, value=g) for g in groups]
    bar = tag(
        "div",
        tag(
            "label", "You are", tag("input", id="who", placeholder="your name", autocomplete="off")
        ),
        tag("label", "Show", tag("select", choices, id="show")),
        tag("span", agreement, id="agreement", class_="said"),
        class_="bar",
    )
    lead = (
        "Accept what is right, reject what is wrong: for a row that the pipeline kept, whether it is sound; "
        "for one that it rejected, accept means that it should have been kept."
    )
    head = tag("header", tag("h1", "Review"), tag("p", lead, class_="lead"))
    cards = [_card(item, given.get((item.record.key, item.stage)), pictures) for item in items]
    if not cards:
        cards = [tag("p", "This run has no rows yet.", class_="empty")]
    return document(
        "Review", tag("main", head, bar, *cards, data_token=token),
        script=asset("review.js"), pictures="'self' data:",
    )  # fmt: skip


def _card(item: sampling.Item, verdict: str | None, pictures: Pictures) -> Markup:
    record = item.record
    triplet = record.triplet
    info = f"video of {clock_text(record.info.duration)}" if record.info else "video not read"
    head = tag("header", [tag("span", s) for s in (item.group, triplet.id, triplet.video, info)])
    options = None
    if triplet.options:
        options = tag(
            "ul",
            [tag("li", f"{k}. {v}", class_="true" if k == triplet.answer else None) for k, v in triplet.options.items()],
            class_="options",
        )  # fmt: skip
    known = (
        None
        if triplet.options or not triplet.answer
        else tag("p", f"Known answer: {triplet.answer}")
    )
    steps, number = [], 0
    shown = []
    for step in record.generated.steps if record.generated else ():
        body = [tag("p", step.think)]
        if step.window is not None:
            a, b = step.window
            body.append(
                tag(
                    "p",
                    f"looks at {clock_text(a)} to {clock_text(b)}, {step.strategy}",
                    class_="look",
                )
            )
            body.append(_thumbs(record, number, pictures))
            number += 1
        else:
            body.append(tag("p", tag("b", "answers "), step.answer))
        steps.append(tag("div", body, class_="step"))
    if not number:
        shown = [_thumbs(record, n, pictures) for n in range(len(windows_of(record)[:3]))]
    stop = record.rejection
    reason = (
        tag("p", f"rejected by {stop.stage}: {stop.reason}. {stop.detail}", class_="reason")
        if stop
        else None
    )
    votes = None
    if record.verified is not None:
        v = record.verified
        votes = tag("p", f"answers from the clips: {', '.join(v.clip) or '-'}; from the overview: {', '.join(v.overview) or '-'}", class_="said")  # fmt: skip
    buttons = [
        tag("button", name, type="button", value=name, aria_pressed=str(verdict == name).lower())
        for name in ("accept", "reject")
    ]
    foot = tag("div", buttons, tag("input", placeholder="note", aria_label="note"), tag("span", class_="said", role="status"), class_="verdict")  # fmt: skip
    return tag(
        "article", head, tag("h3", triplet.question), options, known, shown, steps, votes, reason, foot,
        class_="card", data_key=record.key, data_stage=item.stage, data_group=item.group,
    )  # fmt: skip


def _thumbs(record: Record, number: int, pictures: Pictures) -> Markup:
    window = windows_of(record)[number]
    frames = [
        tag(
            "figure",
            tag("img", src=f"frame?key={record.key}&window={number}&frame={n}", alt=f"frame at {clock_text(t)}", loading="lazy"),
            tag("figcaption", clock_text(t)),
        )
        for n, t in enumerate(pictures.times(window))
    ]  # fmt: skip
    return tag("div", frames, class_="thumbs")


class Server(http.server.ThreadingHTTPServer):
    """Serves the page of one run."""

    daemon_threads = True

    def __init__(self, store: Store, *, root: str, each: int, port: int):
        self.store, self.token = store, secrets.token_urlsafe(16)
        self.items = sampling.sample(store, each=each)
        self.pictures = Pictures(self.items, root)
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        """The page and its thumbnails."""
        parts = urllib.parse.urlsplit(self.path)
        if not self._local():
            return
        if parts.path == "/":
            rows = self.server.store.rows("SELECT key, stage, verdict FROM verdicts")
            given = {(key, stage): verdict for key, stage, verdict in rows}
            text = page(
                self.server.items, given, token=self.server.token, pictures=self.server.pictures,
                agreement=verdicts.read_verdicts(self.server.store).agreement_text if given else "",
            )  # fmt: skip
            self._send(200, "text/html; charset=utf-8", text.encode())
        elif parts.path == "/frame":
            query = urllib.parse.parse_qs(parts.query)
            try:
                picture = self.server.pictures.jpeg(
                    query["key"][0], int(query["window"][0]), int(query["frame"][0])
                )
            except (KeyError, ValueError):
                picture = None
            if picture is None:
                self._send(404, "text/plain", b"no such frame")
            else:
                self._send(200, "image/jpeg", picture)
        else:
            self._send(404, "text/plain", b"not found")

    def do_POST(self) -> None:
        """A verdict."""
        if not self._local():
            return
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/verdict" or not 0 < length <= _LIMIT:
            self._answer(400, {"error": "not a verdict"})
            return
        if not secrets.compare_digest(self.headers.get("X-Token", ""), self.server.token):
            self._answer(403, {"error": "reload the page: its token is not this server's"})
            return
        try:
            data = json.loads(self.rfile.read(length))
            reviewer = str(data["reviewer"]).strip()[:80]
            if not reviewer:
                raise ValueError("a verdict needs a reviewer's name")
            self.server.store.judge(
                key=str(data["key"]), stage=str(data["stage"]), reviewer=reviewer,
                verdict=str(data["verdict"]), note=str(data.get("note", "")),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            self._answer(400, {"error": str(error)})
            return
        self._answer(200, {"agreement": verdicts.read_verdicts(self.server.store).agreement_text})

    def _local(self) -> bool:
        """Only requests that name this machine: a page elsewhere must not reach the server through a name of its own."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host in ("127.0.0.1", "localhost"):
            return True
        self._send(403, "text/plain", b"forbidden")
        return False

    def _answer(self, status: int, data: dict) -> None:
        self._send(status, "application/json", json.dumps(data).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        """Silent: the terminal shows the address only."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workdir", metavar="DIR", help="the run's folder")
    parser.add_argument("--videos", default="", metavar="ROOT")
    parser.add_argument("--each", type=int, default=8, help="items of every stage and quadrant")
    parser.add_argument("--port", type=int, default=8017)
    parser.add_argument("--apply", action="store_true", help="filter the rows by the verdicts")
    args = parser.parse_args(argv)
    if not (epath.Path(args.workdir) / "rows.sqlite").exists():
        parser.error(f"{args.workdir} is no run: it has no rows.sqlite")
    if args.each < 1:
        parser.error(f"--each {args.each} is below 1")
    store = Store(args.workdir)
    if args.apply:
        kept, left_out = verdicts.apply(store)
        report.write(store)
        print(
            f"{kept} rows kept, {left_out} left out: {store.workdir / 'trajectories.reviewed.jsonl'}"
        )
        return 0
    server = Server(store, root=args.videos, each=args.each, port=args.port)
    print(f"http://127.0.0.1:{server.server_address[1]}/  (end with Ctrl-C)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
