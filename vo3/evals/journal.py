"""The record of a run: one trajectory a line, written as soon as a question is answered, read again after a kill."""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from typing import Any, BinaryIO

from etils import epath

from vo3.train.config import ConfigError
from vo3.trajectory import Task, Trajectory
from vo3.video.errors import STORAGE

FILE = "trajectories.jsonl"
SETTINGS = "settings.json"
_UPLOAD_EVERY = 30.0  # seconds; object stores cannot append


class JournalError(ValueError):
    """A kept answer cannot be read, or somebody else writes to the file; names file and line."""


def part_name(shard: int, shards: int) -> str:
    """The file of one of several processes; one process alone writes `FILE`."""
    return FILE if shards == 1 else f"trajectories-{shard:05d}-of-{shards:05d}.jsonl"


def failed(task: Task, kind: str, message: str, **meta: Any) -> Trajectory:
    """What is kept of a question that could not be asked."""
    return Trajectory(
        task, (), "void", meta={"failure": {"kind": kind, "message": message}, **meta}
    )


def failure_of(trajectory: Trajectory) -> dict[str, str] | None:
    """Why a question could not be asked, or None when it was."""
    return trajectory.meta.get("failure")


def may_be_asked(trajectory: Trajectory) -> bool:
    """Whether the next run asks a question again that could not be asked: the storage failed, not the video."""
    failure = failure_of(trajectory)
    return failure is not None and failure["kind"] in [f"video: {kind}" for kind in STORAGE]


class Journal:
    """Trajectories of one run in one file.

    A line is complete or it is not there: a torn last line, from a kill in the middle of writing, is cut off on opening, and its question
    asked again. One process at a time writes to a file (advisory lock; object stores and some network file systems have none).
    """

    def __init__(self, path: epath.PathLike, *, again: bool = False):
        """Opens or creates the file.

        Args:
          path: of the file.
          again: whether to drop what `may_be_asked` again, from the file too.

        Raises:
          JournalError: a line in the middle is no trajectory, or another process has the file open.
        """
        self.path = epath.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = None if "://" in str(self.path) else _alone(self.path)
        try:
            read, size = _read(self.path)
        except JournalError:
            if self._file is not None:
                self._file.close()
            raise
        self.trajectories = [t for t in read if not (again and may_be_asked(t))]
        self.done = {t.task.id for t in self.trajectories}
        self._uploaded = time.monotonic()
        self._kept = len(self.trajectories)  # of them on the object store
        if self._file is None:
            return
        if len(self.trajectories) < len(read):
            text = "".join(t.dumps() + "\n" for t in self.trajectories)
            write_atomically(self.path, text)
            size = len(text.encode())
            with self._file:  # the file that was; it stays locked until the new one is
                self._file = _alone(self.path)
        self._file.truncate(size)

    def append(self, trajectory: Trajectory) -> None:
        """Writes a trajectory; afterwards a kill does not lose it (on an object store: after some seconds)."""
        if trajectory.task.id in self.done:
            raise ValueError(f"{self.path} has question {trajectory.task.id} already")
        self.trajectories.append(trajectory)
        self.done.add(trajectory.task.id)
        if self._file is None:
            if time.monotonic() - self._uploaded > _UPLOAD_EVERY:
                self._upload()
            return
        self._file.write(trajectory.dumps().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def flush(self) -> None:
        """Writes what an object store has not got yet."""
        if self._file is None and self._kept < len(self.trajectories):
            self._upload()

    def close(self) -> None:
        """Ends writing."""
        if self._file is None:
            self._upload()
        else:
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _upload(self) -> None:
        self.path.write_bytes(b"".join(t.dumps().encode() + b"\n" for t in self.trajectories))
        self._uploaded, self._kept = time.monotonic(), len(self.trajectories)


def _alone(path: epath.Path) -> BinaryIO:
    """The file, opened for appending, and locked until it is closed or its process ends."""
    while True:
        file = open(path, "ab")  # noqa: SIM115 - closed in Journal.close()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise JournalError(
                f"{path} is being written to by another run; wait until it ends, or write elsewhere"
            ) from None
        except OSError:
            return file  # the file system has no locks
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
        file.close()  # replaced between opening and locking


def _read(path: epath.Path) -> tuple[list[Trajectory], int]:
    """The complete lines of a file, and the bytes that they take."""
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1
    trajectories = []
    for number, line in enumerate(data[:size].splitlines(), start=1):
        try:
            trajectories.append(Trajectory.loads(line.decode()))
        except ValueError as error:
            raise JournalError(
                f"{path}, line {number}, is no trajectory: {error}; remove the line, and its question will be asked again"
            ) from error
    return trajectories, size


def read_parts(folder: epath.Path) -> list[Trajectory]:
    """The trajectories of every process that wrote into `folder`, in the order of the files.

    A failure of the storage counts only as long as nobody has asked its question again.
    """
    files = sorted(p for p in folder.glob("trajectories*.jsonl"))
    every = [trajectory for file in files for trajectory in _read(file)[0]]
    asked = {t.task.id for t in every if not may_be_asked(t)}
    return [t for t in every if t.task.id not in asked or not may_be_asked(t)]


def check_settings(folder: epath.Path, settings: dict[str, Any]) -> None:
    """Writes what decides the answers on first use; refuses to go on with anything else.

    Raises:
      ConfigError: the folder's trajectories were made with other settings; the message names them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / SETTINGS
    if not file.exists():
        write_atomically(file, json.dumps(settings, indent=1, sort_keys=True) + "\n")
        return
    kept, now = flat(json.loads(file.read_text())), flat(settings)
    changed = [key for key in sorted({*kept, *now}) if kept.get(key) != now.get(key)]
    if "checkpoint.hash" in kept and "checkpoint.hash" not in changed:
        # The same parameters under another name: a path may be written in many ways.
        changed = [key for key in changed if key != "checkpoint.name"]
    if changed:
        told = "; ".join(f"{key} was {kept.get(key)!r}, is {now.get(key)!r}" for key in changed[:5])
        raise ConfigError(
            f"{folder} holds answers made with other settings ({told}); choose another --workdir, or remove the folder"
        )


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            result |= flat(value, f"{name}.")
        else:
            result[name] = value
    return result


def write_atomically(path: epath.Path, text: str) -> None:
    """Writes a whole file or none of it: an interrupted write leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # No process id: processes of several containers may have the same one, and this folder.
    part = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    part.write_text(text)
    part.replace(path)
