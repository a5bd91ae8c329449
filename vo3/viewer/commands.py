"""`vo3 view`. Only what the parser needs is imported here; the rest when the command runs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from etils import epath

from vo3.arguments import UsageError, positive


def add(commands: Any) -> None:
    """Adds the command to `vo3`'s subparsers."""
    view = commands.add_parser(
        "view", help="write a page that lists the trajectories of a file, and pages with frames"
    )
    view.set_defaults(run=_view)
    view.add_argument("trajectories", metavar="TRAJECTORIES.jsonl")
    view.add_argument(
        "--beside", metavar="FILE", help="trajectories of another checkpoint on the same questions"
    )
    view.add_argument(
        "--out", metavar="DIR", help="default: a folder named after the file, beside it"
    )
    view.add_argument(
        "--videos", metavar="ROOT", help="folder that the videos' relative paths start from"
    )
    view.add_argument(
        "--limit", type=positive(int), default=200, metavar="N",
        help="pages with frames at most (default: %(default)s); the list has every trajectory",
    )  # fmt: skip
    view.add_argument("--no-frames", action="store_true", help="do not read the videos")
    view.add_argument("--open", action="store_true", help="open the list in a browser")
    view.add_argument(
        "--serve", action="store_true",
        help="write nothing; serve the list on this machine, and read a trajectory and its frames when it is looked at",
    )  # fmt: skip
    view.add_argument("--port", type=_port, default=8018, help="(default: %(default)s)")


def _port(text: str) -> int:
    if not 1 <= (value := int(text)) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text} is no port, which are 1 to 65535")
    return value


def _view(args: argparse.Namespace) -> int:
    source = epath.Path(args.trajectories)
    if source.is_dir():
        raise UsageError(
            f"{args.trajectories} is a directory; give a file with one trajectory a line"
        )
    if not source.exists():
        raise UsageError(
            f"{args.trajectories} does not exist; `vo3 ask ... --json PATH` writes one"
        )
    if args.beside is not None and not epath.Path(args.beside).is_file():
        raise UsageError(f"--beside {args.beside} is no file; give trajectories, one a line")
    return _serve(args) if args.serve else _write(args, source)


def _write(args: argparse.Namespace, source: epath.Path) -> int:
    from vo3.viewer import gallery

    out = epath.Path(args.out) if args.out else source.with_suffix("")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; choose another folder with --out")
    result = gallery.write(
        source,
        out,
        videos=args.videos,
        limit=args.limit,
        frames=not args.no_frames,
        other=args.beside,
    )
    for line in result.problems:
        print(f"vo3: {line}", file=sys.stderr)
    if result.shown == 0:
        raise UsageError(f"{args.trajectories} holds no trajectory that can be shown")
    print(f"wrote {result.pages} pages and {out / 'index.html'}")
    if args.open:
        _browse((out / "index.html").resolve().as_uri())
    return 2 if result.broken else 0


def _serve(args: argparse.Namespace) -> int:
    from vo3.viewer.server import Server

    server = Server(
        args.trajectories,
        other=args.beside,
        videos=args.videos,
        frames=not args.no_frames,
        port=args.port,
    )
    with server:
        for line in server.problems:
            print(f"vo3: {line}", file=sys.stderr)
        if not server.shelf.summaries:
            raise UsageError(f"{args.trajectories} holds no trajectory that can be shown")
        print(f"{server.url}  (end with Ctrl-C)", flush=True)
        if args.open:
            _browse(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def _browse(address: str) -> None:
    import webbrowser

    webbrowser.open(address)
