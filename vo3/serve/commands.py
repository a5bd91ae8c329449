"""`vo3 serve`. Only what the parser needs is imported here; the rest when the command runs."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from typing import Any

from vo3.arguments import UsageError

_EXTRA = "vo3 serve needs more packages: pip install -e '.[serve]' in the checkout of vo3"


class ServeError(UsageError):
    """The server cannot be started as asked; the message says what to do."""


def add(commands: Any) -> None:
    """Adds the command to `vo3`'s subparsers."""
    serve = commands.add_parser(
        "serve", help="answer questions over HTTP as OpenAI's API does, with a page on /"
    )
    serve.set_defaults(run=_serve)
    add_arg = serve.add_argument
    add_arg("--checkpoint", default="clueworld", metavar="NAME|DIR", help="default: %(default)s")
    add_arg("--model-name", metavar="NAME", help="what clients ask for; default: the checkpoint's last part")  # fmt: skip
    add_arg("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add_arg("--port", type=int, default=8000, help="default: %(default)s; 0 takes a free one")
    add_arg("--root", action="append", default=[], metavar="DIR", help="a folder whose videos may be asked about by path; may be repeated")  # fmt: skip
    add_arg("--allow-host", action="append", default=[], metavar="HOST[:PORT]", help="a host that videos may be fetched from; without PORT at the usual one; may be repeated")  # fmt: skip
    add_arg("--key-file", metavar="PATH", help="API keys of clients, one a line; or set VO3_API_KEY")  # fmt: skip
    add_arg("--slots", type=int, default=4, metavar="N", help="questions answered at a time (default: %(default)s)")  # fmt: skip
    add_arg("--queue", type=int, default=64, metavar="N", help="questions that wait; more get 429 (default: %(default)s)")  # fmt: skip
    add_arg("--max-body-mb", type=float, default=64, metavar="MIB", help="of a request (default: %(default)s)")  # fmt: skip
    add_arg("--max-upload-mb", type=float, default=1024, metavar="MIB", help="of one video (default: %(default)s)")  # fmt: skip
    add_arg("--max-minutes", type=float, default=240, metavar="MIN", help="length of a video (default: %(default)s)")  # fmt: skip
    add_arg("--timeout", type=float, default=600, metavar="S", help="for one answer, waiting included (default: %(default)s)")  # fmt: skip
    add_arg("--max-turns", type=int, metavar="N", help="rounds in which it may look; default: the dialect's")  # fmt: skip
    add_arg("--max-new-tokens", type=int, metavar="N", help="in one turn; default: the dialect's")
    add_arg("--temperature", type=float, default=0.0, help="where a request says nothing (default: %(default)s)")  # fmt: skip
    add_arg("--dtype", choices=("float32", "bfloat16"), help="of the computation; default: as the weights")  # fmt: skip
    add_arg("--quantize", choices=("int8",), help="of the decoder's weights: with --slots 1 the 7B fits a 16 GB chip")  # fmt: skip
    add_arg(
        "--dialect", metavar="NAME", help="how it calls its tool; default: the checkpoint's own"
    )
    add_arg("--prompt-pack", metavar="NAME|PATH", help="the wording; default: the checkpoint's own, else the dialect's")  # fmt: skip
    add_arg("--mesh", metavar="AXIS=N,...", help="spread the model over devices, as in training: data, fsdp, tensor, context")  # fmt: skip
    add_arg("--warm-up", action="store_true", help="compile everything before the first question")


def _serve(args: argparse.Namespace) -> int:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ServeError(f"{_EXTRA} ({error})") from error

    from vo3.serve import launch

    # The port first: a large model takes minutes to load, and an occupied port shows at once.
    listener = bind(args.host, args.port)
    try:
        return launch.run(args, listener)
    finally:
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
      ServeError: the port is taken, or may not be used, or the address is not this machine's.
    """
    if not 0 <= port < 65536:
        raise ServeError(f"--port {port} lies outside of 0 to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ServeError(f"--host {host} is no address of this machine ({error})") from error
    listener = socket.socket(family, kind, proto)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        what = {
            errno.EADDRINUSE: f"port {port} of {host} is taken; stop what listens there, or choose another with --port (0: any that is free)",
            errno.EACCES: f"port {port} may not be opened without more rights; choose one above 1023 with --port",
            errno.EADDRNOTAVAIL: f"--host {host} is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all",
        }  # fmt: skip
        raise ServeError(what.get(error.errno, f"cannot listen on {host}:{port}: {error}")) from error  # fmt: skip
    return listener


def read_keys(path: str | None) -> tuple[str, ...]:
    """API keys from a file, one a line, or from VO3_API_KEY.

    Raises:
      ServeError: the file holds none, or one that cannot be sent in a header.
    """
    if path is None:
        keys = tuple(filter(None, [os.environ.get("VO3_API_KEY", "").strip()]))
    else:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
        keys = tuple(line for line in lines if line and not line.startswith("#"))
        if not keys:
            raise ServeError(f"--key-file {path} holds no key; write one a line")
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise ServeError("an API key may hold printable ASCII without spaces alone")
    return keys


def warn(text: str) -> None:
    """A line for whoever started the server."""
    print(f"vo3 serve: {text}", file=sys.stderr, flush=True)
