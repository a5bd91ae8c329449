"""The reply cache: a reply that was paid for is never asked for again, on this machine or on a cluster."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import threading
import uuid
from typing import Protocol

from etils import epath

from data_prep.models.base import RawReply


class ReplyCache(Protocol):
    """Replies by the key of their request's content."""

    def get(self, key: str) -> RawReply | None:
        """The stored reply, if there is one."""

    def put(self, key: str, stage: str, reply: RawReply) -> None:
        """Stores a reply for good before it is used; a second one under the same key is ignored."""

    def close(self) -> None:
        """Lets go of files."""


def connect(path: epath.PathLike) -> sqlite3.Connection:
    """A database that several processes may use and that survives kill -9: what was committed stays."""
    db = sqlite3.connect(os.fspath(path), timeout=60, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    # With a write-ahead log, NORMAL loses nothing when a process dies, only when the machine does.
    db.execute("PRAGMA synchronous=NORMAL")
    return db


class SqliteCache:
    """Replies in one SQLite file, for any number of processes on one machine."""

    def __init__(self, path: epath.PathLike):
        self._db = connect(path)
        self._lock = threading.Lock()
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, stage TEXT, reply TEXT) WITHOUT ROWID"
        )

    def get(self, key: str) -> RawReply | None:
        """See `ReplyCache`."""
        with self._lock:
            row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else RawReply(**json.loads(row[0]))

    def put(self, key: str, stage: str, reply: RawReply) -> None:
        """See `ReplyCache`."""
        text = json.dumps(dataclasses.asdict(reply), ensure_ascii=True)
        with self._lock:
            self._db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?)", (key, stage, text))

    def count(self) -> int:
        """Replies stored."""
        with self._lock:
            return self._db.execute("SELECT COUNT(*) FROM replies").fetchone()[0]

    def close(self) -> None:
        """See `ReplyCache`."""
        with self._lock:
            self._db.close()


class FolderCache:
    """Replies as objects below a folder, for workers on many machines (gs:// and the like)."""

    def __init__(self, root: epath.PathLike):
        self._root = epath.Path(root)
        self._local = "://" not in os.fspath(self._root)

    def _path(self, key: str) -> epath.Path:
        return self._root / key[:2] / f"{key}.json"

    def get(self, key: str) -> RawReply | None:
        """See `ReplyCache`."""
        try:
            return RawReply(**json.loads(self._path(key).read_text()))
        except FileNotFoundError:
            return None

    def put(self, key: str, stage: str, reply: RawReply) -> None:
        """See `ReplyCache`."""
        path = self._path(key)
        text = json.dumps(dataclasses.asdict(reply), ensure_ascii=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._local:
            # An object appears whole or not at all.
            path.write_text(text)
            return
        part = path.with_name(f".{uuid.uuid4().hex}")
        part.write_text(text)
        part.replace(path)

    def close(self) -> None:
        """See `ReplyCache`."""


def open_cache(workdir: epath.PathLike, location: str = "") -> ReplyCache:
    """The cache at `location`: `WORKDIR/replies.sqlite` when empty, a SQLite file (*.sqlite), else a folder of objects."""
    if not location:
        return SqliteCache(epath.Path(workdir) / "replies.sqlite")
    return SqliteCache(location) if location.endswith(".sqlite") else FolderCache(location)
