"""Rows of annotation files by number: JSON, JSONL and Parquet, local or on gs://.

Only places are kept in memory (two integers a row), and a row is read when it is asked for. Nothing is checked here but
that a row is an object: what its fields mean is `vo3.data.seeker`'s matter.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from etils import epath

from vo3.data.rejects import RowError

FileFormat = Literal["auto", "json", "jsonl", "parquet"]
SUFFIXES = (".json", ".jsonl", ".parquet")
_CHUNK = 1 << 24


class Rows(Protocol):
    """Raw rows by number. Attributes: name of the file, `fingerprint` of its contents."""

    name: str
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class RowFiles:
    """The rows of one or several files, one after the other in the order of the files' names.

    Attributes:
      files: the files.
      fingerprint: a hash of their contents.
    """

    def __init__(
        self, path: epath.PathLike | Sequence[epath.PathLike], *, format: FileFormat = "auto"
    ):
        """Finds the rows.

        Args:
          path: a file, a folder of files, a pattern with `*` in the last part, or a list of these.
          format: of the files, whatever their names end in; of a folder those ending in `SUFFIXES` are taken. "auto": by the
            ending, and an array in a .jsonl file or lines in a .json file are noticed.

        Raises:
          FileNotFoundError: there is no such file, or the folder or pattern holds none.
          ValueError: an unknown kind of file, or a JSON array that cannot be told apart into rows.
        """
        if format not in get_args(FileFormat):
            raise ValueError(
                f"unknown file format {format!r}; one of {', '.join(get_args(FileFormat))}"
            )
        found = find_files(path, any_ending=format != "auto")
        self.files: list[Rows] = [_open(file, format) for file in found]
        self._ends = np.cumsum([len(file) for file in self.files])
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            digest.update(file.fingerprint.encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The row.

        Raises:
          IndexError: there is no such row.
          RowError: it is not a JSON object.
          OSError: the file cannot be read any more.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        which = int(np.searchsorted(self._ends, index, side="right"))
        file = self.files[which]
        return file[index - (int(self._ends[which - 1]) if which else 0)]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[i] for i in range(len(self)))

    def describe(self, index: int) -> str:
        """Where a row without an id of its own is: file and number."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[which - 1]) if which else 0
        return f"{os.path.basename(self.files[which].name)}:{index - start + 1}"


def find_files(
    path: epath.PathLike | Sequence[epath.PathLike], *, any_ending: bool = False
) -> list[epath.Path]:
    """The annotation files of a path, a folder, a pattern or a list of these, sorted by name within each.

    Args:
      path: see `RowFiles`.
      any_ending: a pattern means every file that it matches; else those ending in `SUFFIXES`.

    Raises:
      FileNotFoundError, ValueError: see `RowFiles`.
    """
    if isinstance(path, (list, tuple)):
        if not path:
            raise FileNotFoundError("an empty list of annotation files")
        return [file for one in path for file in find_files(one, any_ending=any_ending)]
    path = epath.Path(path)
    if "*" in path.name or path.is_dir():
        pattern = "*" in path.name
        several = path.parent.glob(path.name) if pattern else path.iterdir()
        # A run's rejects, written into the folder of its rows, are none.
        found = sorted(
            file
            for file in several
            if (file.suffix in SUFFIXES or (pattern and any_ending))
            and not file.stem.endswith("rejects")
            and not file.name.startswith(".")  # half written by somebody, or an editor's
        )
    else:
        if not path.exists():
            raise FileNotFoundError(
                f"there is no annotation file {path}; give a file, a folder or a pattern"
            )
        found = [path]
    if not found:
        raise FileNotFoundError(f"{path} holds no file ending in {', '.join(SUFFIXES)}")
    return found


def _open(path: epath.Path, format: FileFormat) -> Rows:
    if format == "parquet" or (format == "auto" and path.suffix == ".parquet"):
        return ParquetRows(path)
    if format == "jsonl":
        return _json_lines(path)
    if format == "json":
        return _json_array(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: rows are read from files ending in {', '.join(SUFFIXES)}; rename or convert it, or say what it is "
            "(data.format)"
        )
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return _json_array(path) if head.startswith(b"[") else _json_lines(path)


class _Ranges:
    """Reads byte ranges of a file, from several threads and after pickling."""

    def __init__(self, path: epath.Path, size: int):
        self.path, self.size = path, size
        self._lock = threading.Lock()
        self._file: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["size"])

    def read(self, start: int, stop: int) -> bytes:
        try:
            with self._lock:
                if self._file is None:
                    self._file = self.path.open("rb")
                self._file.seek(start)
                data = self._file.read(stop - start)
        except OSError as error:
            raise OSError(
                f"{self.path} cannot be read any more ({error}); put the file back as it was and start again"
            ) from error
        if len(data) != stop - start:
            raise OSError(
                f"{self.path} ends before byte {stop} but had {self.size} bytes; put the file back as it was and start again"
            )
        return data


@dataclasses.dataclass(frozen=True)
class JsonRows:
    """Rows of a JSON or JSONL file: row i is the object in bytes [starts[i], stops[i])."""

    name: str
    fingerprint: str
    starts: np.ndarray
    stops: np.ndarray
    ranges: _Ranges

    def __len__(self) -> int:
        return self.starts.size

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        data = self.ranges.read(int(self.starts[index]), int(self.stops[index]))
        where = f"{os.path.basename(self.name)}:{index + 1}"
        try:
            row = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise RowError(where, "json", f"not UTF-8: {error}") from error
        except (ValueError, RecursionError) as error:
            raise RowError(where, "json", f"not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise RowError(where, "json", f"a JSON {type(row).__name__}, not an object")
        return row


def _json_lines(path: epath.Path) -> JsonRows:
    """Rows of a file with one object a line; empty lines are none."""
    digest = hashlib.blake2b(digest_size=16)
    ends: list[np.ndarray] = []
    size, first = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if not size and chunk.startswith(b"\xef\xbb\xbf"):
                first = 3
            digest.update(chunk)
            ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + size)
            size += len(chunk)
    breaks = np.concatenate([*ends, [size]]).astype(np.int64)
    starts = np.concatenate([[first], breaks[:-1] + 1]).astype(np.int64)
    ranges = _Ranges(path, size)
    # A row takes more than a line end: only the shortest lines are read to see whether they are empty.
    keep = breaks > starts
    for i in np.flatnonzero(keep & (breaks - starts <= 8)):
        keep[i] = bool(ranges.read(int(starts[i]), int(breaks[i])).strip())
    return JsonRows(os.fspath(path), digest.hexdigest(), starts[keep], breaks[keep], ranges)


def _json_array(path: epath.Path) -> JsonRows:
    """Rows of a file that is one JSON array.

    Raises:
      ValueError: the text is no JSON array. Where it breaks, the rows after cannot be told apart.
    """
    data = path.read_bytes()
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from error
    size, plain = len(data), text.isascii()
    del data
    decoder = json.JSONDecoder()
    starts, stops = [], []
    # Characters and bytes differ outside of ASCII: `at` counts the former, `byte` the latter.
    at = _skip_blanks(text, int(text.startswith("\ufeff")))
    if text[at : at + 1] != "[":
        raise ValueError(
            f"{path}: not a JSON array: it begins with {text[at : at + 20]!r}; rows one a line are jsonl"
        )
    at += 1
    byte = len(text[:at].encode())
    try:
        while True:
            after = _skip_blanks(text, at)
            byte, at = byte + after - at, after
            if text[at : at + 1] == "]" and not starts:
                break
            _, end = decoder.raw_decode(text, at)
            width = end - at if plain else len(text[at:end].encode())
            starts.append(byte)
            stops.append(byte + width)
            after = _skip_blanks(text, end)
            byte, at = byte + width + after - end, after
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("a comma or the closing bracket is missing", text, at)
            byte, at = byte + 1, at + 1
        rest = _skip_blanks(text, at + 1)
        if rest != len(text):
            raise json.JSONDecodeError("text after the closing bracket", text, rest)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a JSON array after row {len(starts)}: {error}. The rows after it cannot be told apart: "
            "repair the file, or write one row a line (.jsonl), where a broken row costs only itself"
        ) from error
    return JsonRows(
        os.fspath(path), digest, np.array(starts, np.int64), np.array(stops, np.int64), _Ranges(path, size)
    )  # fmt: skip


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


class ParquetRows:
    """Rows of a Parquet file; the row groups last used are kept in memory.

    Random access reads a whole row group a row: for training, files with small row groups (some hundred rows), or the
    prepared data set of `data_prep.seeker_173k`.
    """

    _KEPT = 4

    def __init__(self, path: epath.Path):
        self.name, self._path = os.fspath(path), path
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        self.fingerprint = digest.hexdigest()
        self._setup()
        metadata = self._parquet().metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = np.cumsum(groups, dtype=np.int64) if groups else np.zeros(1, np.int64)

    def _setup(self) -> None:
        self._lock = threading.Lock()
        self._file: Any = None
        self._groups: collections.OrderedDict[int, Any] = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        names = ("name", "_path", "fingerprint", "_ends")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._setup()

    def _parquet(self) -> Any:
        if self._file is None:
            import pyarrow
            import pyarrow.parquet

            try:
                self._file = pyarrow.parquet.ParquetFile(self._path.open("rb"))
            except pyarrow.ArrowInvalid as error:
                raise ValueError(f"{self.name}: not a Parquet file: {error}") from error
        return self._file

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        with self._lock:
            if group not in self._groups:
                self._groups[group] = self._parquet().read_row_group(group)
                while len(self._groups) > self._KEPT:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            table = self._groups[group]
        return table.slice(index - first, 1).to_pylist()[0]
