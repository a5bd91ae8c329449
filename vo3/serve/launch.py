"""From the command's arguments to a running server."""

from __future__ import annotations

import argparse
import logging
import math
import os
import socket
import threading
import time
import urllib.parse
from typing import Any

import uvicorn

from vo3.chat import PromptPack
from vo3.rollout import GroupBuckets, GroupEngine, RolloutPolicy, Sampling
from vo3.rollout.setting import own_crop, own_dialect
from vo3.serve.app import make_app
from vo3.serve.commands import ServeError, read_keys, warn
from vo3.serve.connections import KEEP_ALIVE_S, Connection
from vo3.serve.desk import Desk
from vo3.serve.settings import MIB, Limits, Settings, is_loopback, resolve_roots
from vo3.serve.shelf import Shelf


def run(args: argparse.Namespace, listener: socket.socket) -> int:
    """Serves until it is told to end.

    Raises:
      ServeError: an argument that cannot be used.
    """
    settings = settings_of(args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s")
    pack = pack_of(args)  # before a model is loaded, which may take minutes
    model = load(args)
    engine = engine_of(model, args, settings.limits, pack)
    if args.warm_up:
        warm_up(engine)
    host, port = listener.getsockname()[:2]
    if not settings.keys and not is_loopback(args.host):
        warn(f"anybody who reaches {host} may ask: no key is set; set VO3_API_KEY or --key-file")
    shown = f"[{host}]" if ":" in host else host
    warn(f"asks in the words of the prompt pack {engine.pack.name}")
    warn(f"{settings.model} on http://{shown}:{port}")
    app = make_app(
        desk_of(engine, settings, own_crop(model, engine.policy.dialect), args.temperature),
        settings,
    )
    config = uvicorn.Config(
        app, http=Connection, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5, server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=65536,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def settings_of(args: argparse.Namespace) -> Settings:
    """What the arguments allow.

    Raises:
      ServeError: a value that cannot be used.
    """
    keys = read_keys(args.key_file)
    try:
        limits = Limits(
            slots=args.slots,
            queue=args.queue,
            body=args.max_body_mb * MIB,
            upload=args.max_upload_mb * MIB,
            uploads=4 * args.max_upload_mb * MIB,
            duration=60 * args.max_minutes,
            request_s=args.timeout,
        )
        roots = resolve_roots(args.root)
    except ValueError as error:
        raise ServeError(f"{error}; `vo3 serve --help` lists what may be set") from error
    # Without a key, a name that a page made lead here must not do: see Guard.
    local = is_loopback(args.host) and not keys
    return Settings(
        model=args.model_name or os.path.basename(args.checkpoint.rstrip("/")) or args.checkpoint,
        roots=roots,
        hosts=frozenset(map(host_of, args.allow_host)),
        keys=keys,
        names=frozenset(("localhost", "127.0.0.1", "::1", args.host)) if local else None,
        limits=limits,
    )


def host_of(text: str) -> str:
    """`--allow-host` as `fetch.check` takes it.

    Raises:
      ServeError: it is a URL, or its port is none.
    """
    try:
        parts = urllib.parse.urlsplit(f"//{text}" if text.count(":") < 2 or "[" in text else f"//[{text}]")  # fmt: skip
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.path or "@" in text:
        raise ServeError(f"--allow-host {text} is no HOST or HOST:PORT; write it without https:// and path")  # fmt: skip
    return host if port is None else f"{host}:{port}"


def pack_of(args: argparse.Namespace) -> PromptPack | None:
    """The wording that the arguments name, if they do.

    Raises:
      ServeError: there is no such pack.
    """
    if args.prompt_pack is None:
        return None
    try:
        return PromptPack.load(args.prompt_pack)
    except ValueError as error:
        raise ServeError(f"--prompt-pack {args.prompt_pack}: {error}") from error


def load(args: argparse.Namespace) -> Any:
    """The model, spread over the mesh if there is one.

    Raises:
      ServeError: the mesh cannot be made of the devices.
    """
    import vo3.models

    options = {} if args.mesh is None else {"mesh": mesh_of(args.mesh)}
    if args.quantize:
        options["quantize"] = args.quantize
    return vo3.models.load(args.checkpoint, dtype=args.dtype, **options)


def mesh_of(text: str) -> Any:
    """`data=2,tensor=4` as a mesh of the first devices; axes that are not named have size 1, and one of -1 takes all that are left.

    Raises:
      ServeError: an unknown axis, no number, or sizes that do not fit the devices.
    """
    import jax
    import ml_collections

    from vo3.train.config import AXES, ConfigError
    from vo3.train.sharding import make_mesh

    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        if axis not in sizes or not size.removeprefix("-").isdigit():
            raise ServeError(f"--mesh {text}: {part!r} is not AXIS=N with one of {', '.join(AXES)}")
        sizes[axis] = int(size)
    # Unlike training, a server may leave devices to others.
    devices, wanted = jax.devices(), math.prod(sizes.values())
    if 0 < wanted < len(devices):
        warn(f"--mesh {text} uses {wanted} of {len(devices)} devices")
        devices = devices[:wanted]
    try:
        return make_mesh(ml_collections.ConfigDict({"mesh": sizes}), devices)
    except ConfigError as error:
        raise ServeError(f"--mesh {text}: {error}") from error


def engine_of(
    model: Any, args: argparse.Namespace, limits: Limits, pack: PromptPack | None
) -> GroupEngine:
    """The engine: one rollout of each question, `slots` of them side by side, in the words of `pack` or (None) the model's own.

    Raises:
      ServeError: slots that the mesh cannot hold, or limits below 1.
    """
    given = {"max_turns": args.max_turns, "max_new_tokens": args.max_new_tokens}
    try:
        policy = RolloutPolicy(
            dialect=args.dialect or own_dialect(model),
            **{k: v for k, v in given.items() if v is not None},
        )
        return GroupEngine(
            model,
            pack=pack,
            policy=policy,
            buckets=GroupBuckets().showing(own_crop(model, policy.dialect)),
            slots=limits.slots,
            rollouts=1,
            timeout_s=limits.read_s,
        )
    except ValueError as error:
        raise ServeError(str(error)) from error


def warm_up(engine: GroupEngine, every_s: float = 10.0) -> None:
    """Compiles all that questions can ask for, and tells now and then how far it is: with a large model this takes a while."""
    began, done = time.monotonic(), threading.Event()
    told = lambda: f"{engine.compilations} programs after {time.monotonic() - began:.0f} s"

    def tell() -> None:
        while not done.wait(every_s):
            warn(f"warming up: {told()}")

    teller = threading.Thread(target=tell, name="vo3-warm-up", daemon=True)
    teller.start()
    try:
        engine.warm_up(live=True)
    finally:
        done.set()
        teller.join()
    warn(f"warm: {told()}")


def desk_of(engine: GroupEngine, settings: Settings, crop: Any, temperature: float) -> Desk:
    """The desk of an engine.

    Raises:
      ServeError: a temperature that cannot be used.
    """
    limits = settings.limits
    shelf = Shelf(crop, timeout_s=limits.read_s, duration=limits.duration)
    try:
        return Desk(engine, limits, shelf=shelf, sampling=Sampling(temperature))
    except ValueError as error:
        raise ServeError(f"--temperature: {error}") from error
