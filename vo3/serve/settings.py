"""What a server allows, in one place."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Sequence

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Attributes:
    slots: questions answered at a time.
    queue: questions that wait for a slot; more are told to come back later.
    body: bytes of a request's JSON; bodies: of all that are under way.
    upload: bytes of one uploaded or fetched video; uploads: of all that are kept.
    duration: seconds of a video.
    request_s: seconds from a request's arrival to its last byte.
    read_s: seconds that one read of a video may take, and that a client may take to send a request's JSON.
    images: of one request.
    """

    slots: int = 4
    queue: int = 64
    body: float = 64 * MIB
    bodies: float = 512 * MIB
    upload: float = 1024 * MIB
    uploads: float = 4096 * MIB
    duration: float = 4 * 3600.0
    request_s: float = 600.0
    read_s: float = 120.0
    images: int = 512

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, low = getattr(self, field.name), 0 if field.name == "queue" else 1e-9
            if not value >= low:
                raise ValueError(f"a limit of {value} for {field.name} is too small")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a server is set up.

    Attributes:
      model: the name it is asked for by.
      roots: folders, resolved, whose videos may be asked about.
      hosts: that videos may be fetched from, `host` or `host:port`, see `fetch.check`; an address only where it is listed as one.
      keys: of clients; none: everybody may ask.
      names: by which this machine may be called, where nobody needs a key; None: any.
      limits: see `Limits`.
    """

    model: str
    roots: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()
    keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    names: frozenset[str] | None = None
    limits: Limits = Limits()


def resolve_roots(given: Sequence[str]) -> tuple[str, ...]:
    """Folders with every symbolic link resolved.

    Raises:
      ValueError: one is no folder.
    """
    roots = []
    for folder in given:
        path = os.path.realpath(os.path.expanduser(folder))
        if not os.path.isdir(path):
            raise ValueError(f"--root {folder} is no folder; give one that holds videos")
        roots.append(path)
    return tuple(dict.fromkeys(roots))


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
